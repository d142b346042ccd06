"""The IO law, its constants and the lower bounds, against numbers worked out by hand."""

import pytest

from perfkit.analysis.bounds import bounds
from perfkit.analysis.io_model import subjects
from perfkit.analysis.law import LAWS, VARIABLES, fit_all, fitted, matrix_bytes, sweeps
from perfkit.errors import UsageError
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Moved

OP = find_op("attention")


def row(name: str) -> Implementation:
    found = OP.implementation(name)
    assert found is not None
    return found


@pytest.mark.parametrize("impl", LAWS)
def test_closed_forms_have_the_exponents_of_the_law(impl: str) -> None:
    found = fit_all(row(impl))
    assert [one.sweep.variable for one in found] == list(VARIABLES)
    for one in found:
        assert one.verdict.status == "holds", one.verdict.reason
        assert one.fit.exponent == pytest.approx(one.law, abs=0.01)
        # The smaller terms are below 2 % of the leading one at the last point.
        assert one.constant == pytest.approx(LAWS[impl].constant, rel=0.02)


def test_the_constant_of_flash_by_hand() -> None:
    """N 65536, d 64, B_r 64: reads Q and T_r = 1024 passes over K and V, writes O: 2 + 2048 times N d."""
    (by_length, _, _) = fit_all(row("flash"))
    moved = 2050 * 65536 * 64
    assert by_length.traffic[-1] == 2 * moved
    memory = 2 * 64 * 64  # Q and O, 64 rows of 64
    assert by_length.constant == pytest.approx(moved / (65536**2 * 64**2 / memory))
    assert by_length.constant == pytest.approx(4 + 4 / 1024)  # 2050 N d / (N^2 d / 128), N = 2^16


def test_flash1_moves_twenty_where_the_paper_counts_twelve() -> None:
    """A block of keys costs Q read, O read and written: 3 N d elements, of 2, 4 and 4 bytes: 10 for 6."""
    trial = sweeps(row("flash1"))[0].trials[-1]
    blocks = trial.workload.seq_k // trial.uses[0].block_n
    io = row("flash1").io
    assert io is not None
    moved = matrix_bytes(io.ledger(trial.workload, trial.uses))
    assert moved == pytest.approx(blocks * 10 * 65536 * 64, rel=2e-3)
    assert LAWS["flash1"].constant == 12 * 10 / 6


def test_a_sweep_over_d_keeps_what_is_on_chip() -> None:
    for impl in ("flash", "flash1"):
        by_width = sweeps(row(impl))[1]
        assert len({trial.memory for trial in by_width.trials}) == 1
        assert len({trial.workload.head_dim for trial in by_width.trials}) == 3


def test_bytes_that_follow_another_law_are_found() -> None:
    (by_length, _, _) = sweeps(row("flash"))
    linear = fitted(by_length, lambda trial: float(trial.workload.seq_q), "measured")
    assert linear.verdict.status == "violated"
    assert linear.fit.exponent == pytest.approx(1.0)
    close = fitted(by_length, lambda trial: float(trial.workload.seq_q) ** 1.96, "measured")
    assert close.verdict.status == "holds"  # within 0.05 of a measurement, not within 0.01 of a count
    assert (
        fitted(by_length, lambda t: float(t.workload.seq_q) ** 1.96, "counted").verdict.status == "violated"
    )


def test_statistics_are_no_matrices() -> None:
    ledger = (
        Moved(kernel="k", tensor="Q", traffic=Traffic(read_bytes=100, write_bytes=0)),
        Moved(kernel="k", tensor="LSE", traffic=Traffic(read_bytes=0, write_bytes=7)),
        Moved(kernel="k", tensor="O", traffic=Traffic(read_bytes=0, write_bytes=20)),
    )
    assert matrix_bytes(ledger) == 120


def test_an_implementation_without_a_law_has_no_sweeps() -> None:
    assert sweeps(row("sdpa-flash")) == ()


def test_bounds_by_hand() -> None:
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=1024, seq_k=1024, head_dim=64)
    found = bounds(w, 16384.0)
    assert found.compulsory == 4 * 1024 * 64
    assert found.flash == 1024**2 * 64**2 / 16384  # 262144
    assert found.square == 1024**2 * 64 / 128  # 524288
    assert (found.least, found.regime) == (262144.0, "M >= d^2")


def test_below_d_squared_square_tiles_win() -> None:
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=4096, seq_k=4096, head_dim=128)
    small = bounds(w, 1024.0)
    assert small.regime == "M < d^2"
    assert small.least == small.square < small.flash
    edge = bounds(w, 128.0**2)
    assert edge.flash == edge.square  # the two regimes meet at M = d^2


def test_nothing_is_below_its_bound() -> None:
    w = AttentionWorkload(heads=2, kv_heads=2, seq_q=4096, seq_k=4096)
    for one in subjects([row("flash"), row("flash1"), row("standard")], w, load("h200-141gb-sxm")):
        if one.row.name == "standard":
            assert one.distance is None  # nothing stays on chip
        else:
            assert one.distance is not None
            assert one.distance.moved > one.distance.bounds.least


def test_subjects_need_a_model_and_must_serve_the_workload() -> None:
    w = AttentionWorkload(seq_q=64, seq_k=64, head_dim=20)
    with pytest.raises(UsageError, match="sdpa-flash has no IO model"):
        subjects([row("sdpa-flash")], w, load("t4"))
    with pytest.raises(UsageError, match="flash cannot serve it: head dim 20"):
        subjects([row("flash")], w, load("t4"))
    with pytest.raises(UsageError, match="dtype fp32: flash takes bf16, fp16"):
        subjects([row("flash")], AttentionWorkload(seq_q=64, seq_k=64, dtype="fp32"), load("t4"))
