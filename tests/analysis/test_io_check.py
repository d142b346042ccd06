"""Every verdict of the IO check, and that each check can fail."""

from collections.abc import Callable
from typing import Any

import pytest

from perfkit.analysis.io_check import SLACK_BYTES, check, implied_tile_height
from perfkit.analysis.placement import place
from perfkit.analysis.verdict import Verdict, judge, unchecked
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import OPS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse
from perfkit.record import Record, Run

MakeRun = Callable[..., Run]
FORWARD = KernelUse(kernel="flash_forward", block_m=128, block_n=64)
GB = 10**9


@pytest.fixture
def verdicts(make_run: MakeRun, make_record: Callable[..., Record]) -> Callable[..., dict[str, Verdict]]:
    def make(**fields: Any) -> dict[str, Verdict]:
        run = make_run(**fields)
        return {found.check: found for found in check("attention", place(make_record(run), run))}

    return make


Verdicts = Callable[..., dict[str, Verdict]]


def test_judge() -> None:
    assert judge("c", 100, 101, 0.01, "r") == Verdict(
        check="c", status="holds", reason="r", expected=100, measured=101, tolerance=0.01
    )
    assert judge("c", 100, 102, 0.01, "r").status == "violated"
    assert judge("c", 100, 98, 0.01, "r").status == "violated"
    assert judge("c", 100, 102, 0.01, "r").deviation == pytest.approx(0.02)
    assert unchecked("c", "r").deviation is None


def test_judge_with_slack() -> None:
    """Noise of `slack` is allowed; what is no more than noise itself cannot fail, and so does not hold."""
    assert judge("c", 1000, 1090, 0.01, "r", slack=100).status == "holds"
    assert judge("c", 1000, 1110, 0.01, "r", slack=100).status == "violated"
    assert judge("c", 1000, 0, 0.01, "r", slack=999).status == "violated"
    for measured in (0, 100, 10**9):
        found = judge("c", 100, measured, 0.01, "r", slack=100)
        assert (found.status, found.reason) == ("undecided", "too little traffic to tell it from noise")
    assert judge("c", 0, 5, 0.01, "r").status == "undecided"
    assert judge("c", 0, 5, 0.01, "r").deviation is None


@pytest.mark.parametrize("status", ["refused", "incorrect", "failed", "out-of-memory", "interrupted"])
def test_runs_that_were_not_measured_are_not_judged(verdicts: Verdicts, status: str) -> None:
    assert verdicts(status=status, l2_read=GB, l2_read_modelled=GB) == {}


@pytest.mark.parametrize("side", ["read", "write"])
def test_flash_is_held_against_its_formula_at_l2(verdicts: Verdicts, side: str) -> None:
    name = f"SM<->L2 {side} = IO model"

    def found(measured: float | str) -> Verdict:
        return verdicts(**{f"l2_{side}_modelled": GB, f"l2_{side}": measured})[name]

    reason = "closed form, tolerance 1%"
    assert found(1.005 * GB) == Verdict(
        check=name, status="holds", reason=reason, expected=GB, measured=1.005 * GB, tolerance=0.01
    )
    assert found(GB).status == "holds"
    assert found(GB).reason == reason
    assert found(1.02 * GB).status == "violated"
    assert found(0.98 * GB).status == "violated"
    assert found("no counters here") == Verdict(
        check=name, status="unchecked", reason="no counters here", expected=GB
    )


def test_zeros_by_tma_are_expected_of_the_counter_at_the_sm(verdicts: Verdicts) -> None:
    """A third of the ledger, as at head dim 96 in tiles of 128 columns. The counter of L2 is to have none."""
    name = "SM<->L2 read = IO model"

    def found(measured: float, counter: str, zeros: float = GB) -> Verdict:
        notes = {"l2_read": counter, "l2_zeros_modelled": "beyond head dim 96"}
        return verdicts(notes=notes, l2_read_modelled=3 * GB, l2_zeros_modelled=zeros, l2_read=measured)[name]

    at_sm, at_l2, plain = "cupti: l1_fill_bytes", "cupti: l2_read_bytes", "closed form, tolerance 1%"
    assert found(4.01 * GB, at_sm) == Verdict(
        check=name,
        status="holds",
        reason=f"{plain}; expected has 1.00 GB of zeros that TMA fills in beyond head dim 96",
        expected=4 * GB,
        measured=4.01 * GB,
        tolerance=0.01,
    )
    assert found(4 * GB, "ncu: l1_fill_bytes").status == "holds"
    # The ledger alone is too little there, and no tolerance is wider: 1 % of 4 GB.
    assert found(3 * GB, at_sm).status == found(4.05 * GB, at_sm).status == "violated"
    for counter in (at_l2, "fake: settled"):
        assert found(4 * GB, counter).status == "violated"
        kept = found(3 * GB, counter)
        assert (kept.status, kept.reason, kept.expected) == ("holds", plain, 3 * GB)
    assert found(3 * GB, at_sm, zeros=0).reason == plain
    # Nothing of the kind is written.
    notes = {"l2_write": at_sm, "l2_zeros_modelled": "beyond head dim 96"}
    written = verdicts(notes=notes, l2_write_modelled=3 * GB, l2_zeros_modelled=GB, l2_write=3 * GB)
    assert written["SM<->L2 write = IO model"].status == "holds"


@pytest.mark.parametrize(
    ("counter", "read", "fields", "status", "said"),
    [
        ("cupti: l1_fill_bytes", 4, {}, "violated", True),
        ("cupti: l1_fill_bytes", 3.02, {}, "holds", False),
        ("cupti: l1_fill_bytes", 2, {}, "violated", False),  # zeros make it no less
        ("cupti: l2_read_bytes", 4, {}, "violated", False),
        ("cupti: l1_fill_bytes", 4, {"l2_zeros_modelled": 0}, "violated", False),
        ("cupti: l1_fill_bytes", 4, {"l2_zeros_modelled": "not modelled"}, "violated", False),
    ],
)
def test_a_record_of_before_zeros_were_modelled_says_so(
    verdicts: Verdicts, counter: str, read: float, fields: dict[str, Any], status: str, said: bool
) -> None:
    found = verdicts(notes={"l2_read": counter}, l2_read_modelled=3 * GB, l2_read=read * GB, **fields)
    reads = found["SM<->L2 read = IO model"]
    more = "; zeros of TMA were not modelled in this record" if said else ""
    assert (reads.status, reads.expected) == (status, 3 * GB)
    assert reads.reason == f"closed form, tolerance 1%{more}"


def test_l2_has_no_slack(verdicts: Verdicts) -> None:
    assert verdicts(l2_read_modelled=1000, l2_read=1020)["SM<->L2 read = IO model"].status == "violated"


@pytest.mark.parametrize("side", ["read", "write"])
def test_standard_is_held_against_its_formula_at_dram(verdicts: Verdicts, side: str) -> None:
    name = f"DRAM {side} = IO model"

    def found(measured: float | str) -> Verdict:
        return verdicts(impl="standard", **{f"dram_{side}_modelled": GB, f"dram_{side}": measured})[name]

    assert found(1.02 * GB) == Verdict(
        check=name,
        status="holds",
        reason="closed form, tolerance 3%",
        expected=GB,
        measured=1.02 * GB,
        tolerance=0.03,
    )
    assert found(GB).status == "holds"
    assert found(1.04 * GB).status == "violated"
    assert found(0.96 * GB).status == "violated"
    assert found("off").status == "unchecked"
    assert "DRAM read = L2 model" not in verdicts(impl="standard", dram_read_modelled=GB)


def test_a_model_that_is_not_there_is_unchecked(verdicts: Verdicts) -> None:
    found = verdicts(l2_read=GB, l2_read_modelled="tiles unknown")["SM<->L2 read = IO model"]
    assert found == Verdict(check="SM<->L2 read = IO model", status="unchecked", reason="tiles unknown")
    assert verdicts(l2_read=GB)["SM<->L2 read = IO model"].reason == "not measured"


@pytest.mark.parametrize("side", ["read", "write"])
def test_nothing_moves_less_than_compulsory(verdicts: Verdicts, side: str) -> None:
    name = f"DRAM {side} >= compulsory"

    def found(measured: float | str) -> Verdict:
        return verdicts(
            notes={"dram_write": "CUPTI: dram_write_bytes, dirty lines settled"},
            **{f"dram_{side}_compulsory": GB, f"dram_{side}": measured},
        )[name]

    assert found(GB).status == "holds"
    assert found(9 * GB).status == "holds"  # more is the implementation's doing
    assert found(9 * GB).measured == 9 * GB
    assert found(0.995 * GB).status == "holds"
    assert found(0.98 * GB) == Verdict(
        check=name,
        status="violated",
        reason="less than the tensors hold: warm cache or lost counts",
        expected=GB,
        measured=0.98 * GB,
        tolerance=0.01,
    )
    assert found("off") == Verdict(check=name, status="unchecked", reason="off", expected=GB)
    assert name not in verdicts(**{f"dram_{side}": GB})


def test_writes_that_are_still_dirty_prove_nothing(verdicts: Verdicts) -> None:
    found = verdicts(dram_write_compulsory=GB, dram_write=0.5 * GB)["DRAM write >= compulsory"]
    assert (found.status, found.reason) == ("undecided", "dirty lines that are still in L2 were not counted")


def test_dram_reads_against_the_l2_model(verdicts: Verdicts) -> None:
    name = "DRAM read = L2 model"
    assert verdicts(dram_read_modelled=GB, dram_read=1.1 * GB)[name].status == "holds"
    assert verdicts(dram_read_modelled=GB, dram_read=1.2 * GB)[name].status == "violated"
    assert verdicts(dram_read_modelled=GB, dram_read=0.8 * GB)[name].status == "violated"
    assert verdicts(dram_read_modelled=GB, dram_read="off")[name].status == "unchecked"
    assert name not in verdicts(dram_read=GB)


def test_a_little_noise_at_dram_is_allowed_beside_the_tolerance(verdicts: Verdicts) -> None:
    small = 2 * SLACK_BYTES
    name = "DRAM read = L2 model"
    assert verdicts(dram_read_modelled=small, dram_read=small + SLACK_BYTES)[name].status == "holds"
    assert verdicts(dram_read_modelled=small, dram_read=small + SLACK_BYTES + 1)[name].status == "violated"


def test_a_check_that_cannot_fail_does_not_hold(verdicts: Verdicts) -> None:
    """Less traffic than the noise: whatever is measured, nothing follows from it."""
    for measured in (0.0, SLACK_BYTES, 100.0 * SLACK_BYTES):
        found = verdicts(dram_read_modelled=SLACK_BYTES, dram_read_compulsory=1000, dram_read=measured)
        assert found["DRAM read = L2 model"].status == "undecided"
        assert found["DRAM read >= compulsory"].status == "undecided"
        standard = verdicts(impl="standard", dram_write_modelled=1000, dram_write=measured)
        assert standard["DRAM write = IO model"].status == "undecided"


# Tile height.


def reads_of(passes: int, **w: int) -> int:
    """SM<-L2 bytes of Q and of so many passes over K and V, for 1024 x 64 in bf16 unless told."""
    rows, keys = w.get("seq_q", 1024), w.get("seq_k", 1024)
    return w.get("heads", 1) * (rows * 64 * 2 + passes * 2 * keys * 64 * 2)


def test_tile_height_from_the_counter(verdicts: Verdicts) -> None:
    name = "tile height from counter"
    # 8 passes over K and V are 1024 / 8 = 128 rows
    found = verdicts(uses=(FORWARD,), l2_read=reads_of(8))[name]
    assert (found.status, found.expected, found.measured) == ("holds", 128, 128)
    assert verdicts(uses=(FORWARD,), l2_read=reads_of(16))[name].status == "violated"  # 64 rows


@pytest.mark.parametrize(("n", "passes"), [(5000, 40), (113, 1), (203, 2)])
def test_tile_height_of_a_ragged_size(verdicts: Verdicts, n: int, passes: int) -> None:
    """ceil(N / 128) passes: the last block is not full, and the mean height is N over the passes."""
    w = {"seq_q": n, "seq_k": n}
    found = verdicts(w=w, uses=(FORWARD,), l2_read=reads_of(passes, **w))["tile height from counter"]
    assert found.status == "holds"
    assert found.expected == n / passes


def test_tile_height_of_a_peer_is_a_finding(verdicts: Verdicts) -> None:
    found = verdicts(impl="sdpa-flash", l2_read=reads_of(4))["tile height from counter"]
    assert found == Verdict(
        check="tile height from counter",
        status="found",
        reason="rows of Q per pass over K and V",
        measured=256,
    )


@pytest.mark.parametrize(
    ("head_dim", "counter", "impl", "said"),
    [
        (96, "cupti: l1_fill_bytes", "sdpa-cudnn", True),
        (128, "cupti: l1_fill_bytes", "sdpa-cudnn", False),  # nothing to pad
        (96, "cupti: l2_read_bytes", "sdpa-cudnn", False),
        (96, "cupti: l1_fill_bytes", "flash", False),
    ],
)
def test_tile_height_of_a_peer_that_may_pad(
    verdicts: Verdicts, head_dim: int, counter: str, impl: str, said: bool
) -> None:
    """Q once, K and V twice are 5 tensors, and in boxes of 128 columns for 96 a third more."""
    tensor = 1024 * head_dim * 2
    fields = {"w": {"head_dim": head_dim}, "notes": {"l2_read": counter}}
    if impl == "flash":  # its zeros are known, and its tile here is not
        fields["l2_zeros_modelled"] = 5 * tensor / 3
    found = verdicts(impl=impl, l2_read=5 * tensor * 4 / 3, **fields)["tile height from counter"]
    more = "; zeros of TMA, if it pads, make it look lower" if said else ""
    assert (found.status, found.reason) == ("found", f"rows of Q per pass over K and V{more}")
    # 2 passes of 512 rows, which look like (20/3 - 1) / 2 = 17/6: 361 rows.
    assert found.measured == pytest.approx(512 if impl == "flash" else 1024 * 6 / 17)


def test_tile_height_in_a_record_of_before_zeros_were_modelled(verdicts: Verdicts) -> None:
    """8 passes in boxes of a half more look like (25.5 - 1) / 2 = 12.25."""
    numbers = {"l2_read_modelled": reads_of(8), "l2_read": reads_of(8) * 3 // 2}
    found = verdicts(notes={"l2_read": "cupti: l1_fill_bytes"}, uses=(FORWARD,), **numbers)
    height = found["tile height from counter"]
    assert (height.status, height.measured) == ("violated", pytest.approx(1024 / 12.25))
    assert height.reason == (
        "N_q / passes over K and V, B_r = 128; zeros of TMA were not modelled in this record"
    )


def test_tile_height_is_of_reads_without_zeros(verdicts: Verdicts) -> None:
    """8 passes in boxes of 96 columns for 64: half as many bytes again."""
    notes = {"l2_read": "cupti: l1_fill_bytes"}
    numbers = {"l2_zeros_modelled": reads_of(8) // 2, "l2_read": reads_of(8) * 3 // 2}
    found = verdicts(notes=notes, uses=(FORWARD,), **numbers)["tile height from counter"]
    assert (found.status, found.expected, found.measured) == ("holds", 128, 128)
    # At L2 there are none to subtract.
    found = verdicts(uses=(FORWARD,), **numbers)["tile height from counter"]
    assert (found.status, found.measured) == ("violated", pytest.approx(1024 / 12.25))


def test_tile_height_counts_query_heads(make_run: MakeRun) -> None:
    w = {"heads": 8, "kv_heads": 2, "seq_q": 1024, "seq_k": 512}
    assert implied_tile_height(make_run(w=w, l2_read=reads_of(16, **w))) == 64


@pytest.mark.parametrize("fields", [{"w": {"causal": True}}, {"w": {"pass_": "bwd"}}, {"impl": "standard"}])
def test_no_tile_height_where_it_means_nothing(verdicts: Verdicts, fields: dict[str, Any]) -> None:
    assert "tile height from counter" not in verdicts(l2_read=reads_of(8), uses=(FORWARD,), **fields)


def test_no_tile_height_from_less_than_q(make_run: MakeRun) -> None:
    assert implied_tile_height(make_run(l2_read=1024 * 64 * 2)) is None
    assert implied_tile_height(make_run(l2_read="off")) is None


# FLOPs.


def flops(verdicts: Verdicts, issued: float, counted: float | str, **fields: Any) -> Verdict:
    numbers = {"flops_convention": 1e12, "flops_issued": issued, "flops_tensor": counted}
    return verdicts(**numbers, **fields)["tensor FLOPs = tiles"]


def test_tensor_flops(verdicts: Verdicts) -> None:
    assert flops(verdicts, 1e12, 1.0005e12).status == "holds"
    assert flops(verdicts, 1e12, 1.002e12).status == "violated"
    assert flops(verdicts, 1e12, 0.0).status == "violated"
    assert flops(verdicts, 1e12, "off").status == "unchecked"
    assert "tensor FLOPs = tiles" not in verdicts(flops_convention=1e12, flops_issued="unknown")


@pytest.mark.parametrize(
    ("issued", "fields", "reason"),
    [
        (1e12, {}, "equals the convention"),
        (1.2e12, {"w": {"causal": True}}, "1.200x the convention: masked part of diagonal tiles"),
        (2e12, {"w": {"causal": True}, "impl": "standard"}, "2.000x the convention: masked half computed"),
        (
            1.4e12,
            {"w": {"pass_": "bwd"}},
            "1.400x the convention: S and dP recomputed twice (7 products for 5)",
        ),
        (
            0.8e12,
            {"w": {"pass_": "bwd"}, "impl": "standard"},
            "0.800x the convention: no recomputation (4 products for 5)",
        ),
        (1.6e12, {"w": {"head_dim": 80}}, "1.600x the convention: head dim 80 padded to a power of two"),
        (1.1e12, {}, "1.100x the convention: tiles padded at the edges"),
    ],
)
def test_why_flops_differ(verdicts: Verdicts, issued: float, fields: dict[str, Any], reason: str) -> None:
    assert flops(verdicts, issued, issued, **fields).reason == reason


def test_fp32_is_not_held_against_the_tensor_units(verdicts: Verdicts) -> None:
    """Its products run on the vector units: 0 tensor FLOPs are right there."""
    numbers = {"flops_convention": 1e12, "flops_issued": 1e12, "flops_tensor": 0.0}
    assert "tensor FLOPs = tiles" not in verdicts(impl="standard", w={"dtype": "fp32"}, **numbers)


def test_tensor_flops_of_a_peer_are_not_predicted(verdicts: Verdicts) -> None:
    assert verdicts(impl="flex", flops_convention=1e12, flops_issued=1e12, flops_tensor=1e12) == {}


# Whole sessions: counters that repeat the model violate nothing.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd-bwd"])
@pytest.mark.parametrize("n", [113, 5000, 16384])
def test_counters_that_repeat_the_model_hold(n: int, pass_: Any, causal: bool) -> None:
    op = OPS[0]
    w = AttentionWorkload(seq_q=n, seq_k=n, causal=causal, pass_=pass_)
    rows = [row for row in op.implementations if row.io and not row.refusal(w)]
    record = run_session(op, [w], rows, FakeBackend(), lambda _impl, _what: None)
    for run in record.runs:
        found = check(record.op, place(record, run))
        assert found
        assert {verdict.check: verdict.status for verdict in found if verdict.status == "violated"} == {}
