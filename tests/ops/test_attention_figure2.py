"""Figure 2 of FA1: computed values against the printed ones, and which formulas do not give them."""

import pytest

from perfkit.ops import attention_figure2 as figure2
from perfkit.ops.attention_gpt2 import gpt2_refuses
from perfkit.ops.attention_published import GPT2_MEDIUM, GPT2_PIPELINE, published

ENTRIES = {(one.impl, one.hint, one.label): one for one in figure2.reconciliation()}

#: (implementation, unit, label) -> (value in G, printed in G), by hand.
EXPECTED = {
    # One N x N pass is 2.147483648 GB, u = 0.134217728 GB.
    ("standard", "bytes", "GPT-2 pipeline, additive mask"): (40.2653184, 40.3),  # 38.6547 + 1.6106
    ("standard", "bytes", "Algorithms 0 and 3"): (25.232932864, 40.3),  # 23.6223 + 1.6106
    ("standard", "bytes", "GPT-2 pipeline, masked_fill"): (44.560285696, 40.3),  # 42.9497 + 1.6106
    # T_c = 1024 / 256 = 4. A statistic is 64 x 16 x 1024 x 4 B = 4.194304 MB.
    ("flash", "bytes", "fp16 partial O and dQ, first read spared"): (4.429185024, 4.4),  # 13 + 20 = 33 u
    ("flash", "bytes", "Algorithms 1 and 4, literally"): (5.100273664, 4.4),  # 14 + 24 = 38 u
    # 19 + 26 = 45 u and 15 statistics
    ("flash", "bytes", "the code of 2022, partial O and dQ in fp32"): (6.10271232, 4.4),
    ("flash", "bytes", "each tensor once"): (1.619001344, 4.4),  # 12 u and 2 statistics
    # 2 x 1024^2 x 64 x 64 = 8.589934592 G a product of one head of each sequence; 14 x 1024^3 is
    # 15.032385536 G; 16 heads.
    ("standard", "flop", "products of one head, scores of all"): (66.571993088, 66.6),
    ("standard", "flop", "products of all heads"): (824.633720832, 66.6),
    ("flash", "flop", "products of one head, scores of all"): (75.16192768, 75.2),
    ("flash", "flop", "products of all heads"): (962.072674304, 75.2),
}


def test_every_entry_is_derived_here() -> None:
    assert ENTRIES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("key", EXPECTED, ids=lambda key: f"{key[0]}-{key[2]}")
def test_values_by_hand(key: tuple[str, str, str]) -> None:
    value, printed = EXPECTED[key]
    assert ENTRIES[key].value / 1e9 == pytest.approx(value, rel=1e-12)
    assert ENTRIES[key].printed == pytest.approx(printed * 1e9)


def test_one_formula_fits_each_printed_figure() -> None:
    fitting = [(one.impl, one.hint, one.formula) for one in ENTRIES.values() if one.fits]
    assert fitting == [
        ("standard", "bytes", "18 N^2 + 12 u"),
        ("flash", "bytes", "(1 + 3 T_c) u + (4 + 4 T_c) u"),
        ("standard", "flop", "6 x 2 N^2 d B + 14 N^2 h B"),
        ("flash", "flop", "7 x 2 N^2 d B + 14 N^2 h B"),
    ]


def test_the_entries_do_not_depend_on_dropout_and_padding() -> None:
    assert figure2.reconciliation(GPT2_MEDIUM) == figure2.reconciliation(GPT2_PIPELINE)


def test_the_left_table_is_what_compare_shows_beside_a_run() -> None:
    known = {(row.impl, row.tag): row.value for row in published(GPT2_PIPELINE)}
    for line in figure2.LEFT[1:]:
        assert known["gpt2", line.tag] == line.standard
        assert known["flash", line.tag] == line.flash
    assert [line.standard / line.flash for line in figure2.LEFT] == pytest.approx(
        [0.886, 9.16, 5.71], rel=1e-3
    )


def test_the_middle_panel() -> None:
    # N 1024: T_c 16, 8, 4, 2, so 50, 26, 14 and 8 u
    found = [figure2.middle_bytes(block) / 1e9 for block in figure2.MIDDLE_BLOCKS]
    assert found == pytest.approx([6.7108864, 3.489660928, 1.879048192, 1.073741824], rel=1e-12)
    assert [round(value, 2) for value in found] == [6.71, 3.49, 1.88, 1.07]


def test_a_block_that_does_not_divide_the_length_counts_whole() -> None:
    assert figure2.middle_bytes(1000) == (2 + 3 * 2) * GPT2_PIPELINE.query_bytes


def test_appendix_e() -> None:
    times = {(point.label, point.seq): point.time_s for point in figure2.APPENDIX_E}
    assert times["PyTorch", 4096] / times["FlashAttention", 4096] == pytest.approx(3.31, abs=0.005)
    assert times["FlashAttention", 4096] / times["block-sparse FlashAttention", 4096] == pytest.approx(
        9.1, abs=0.005
    )
    assert {point.seq for point in figure2.APPENDIX_E} == {1024, figure2.RIGHT_SEQ}
    w = figure2.appendix_e()
    assert (w.batch, w.heads, w.seq_q, w.seq_k, w.head_dim, w.pass_) == (16, 8, 4096, 4096, 64, "fwd-bwd")
    assert w.features == ("dropout", "padding")
    assert gpt2_refuses(w) is None
