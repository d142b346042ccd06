"""A session with stub backends: whatever one implementation does, nothing that was measured is lost."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from perfkit.errors import EnvironmentMissing, PerfkitError
from perfkit.measure.draft import Draft, Incorrect, OutOfMemory, Refused
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.modelled import add_model
from perfkit.measure.session import Stage, Work, refusal, run_session
from perfkit.model.catalogue import load
from perfkit.ops import OPS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Op
from perfkit.record import BY_TAG, INTERRUPTED, Record, Run

OP = OPS[0]
STANDARD, FLASH, PEER = (OP.implementation(name) for name in ("standard", "flash", "sdpa-flash"))
ROWS = [row for row in (STANDARD, FLASH, PEER) if row is not None]
W = AttentionWorkload(seq_q=1024, seq_k=1024)
MODELLED = {
    "flops_convention", "flops_exact", "flops_issued", "exps",
    "dram_read_compulsory", "dram_write_compulsory",
    "l2_read_modelled", "l2_write_modelled", "l2_zeros_modelled", "dram_read_modelled", "dram_write_modelled",
}  # fmt: skip
#: What only a measurement gives.
COUNTED = {"l2_read_counted", "l2_write_counted"}
MEASURED = BY_TAG.keys() - MODELLED - COUNTED - {"launches"}


class Stub(FakeBackend):
    """Measures like the fake backend; calls `act` for the implementation `victim`, before or after that."""

    def __init__(self, act: Callable[[Draft], object], victim: str = "flash", late: bool = False) -> None:
        super().__init__()
        self.act, self.victim, self.late = act, victim, late

    def prepare(self, op: Op, draft: Draft, stage: Stage) -> Work:
        if draft.row.name == self.victim and not self.late:
            self.act(draft)
        return super().prepare(op, draft, stage)

    def examine(self, op: Op, draft: Draft, work: Work, stage: Stage) -> None:
        super().examine(op, draft, work, stage)
        if draft.row.name == self.victim and self.late:
            self.act(draft)


def throw(error: BaseException) -> Callable[[Draft], object]:
    def act(_: Draft) -> None:
        raise error

    return act


def session(backend: Any, rows: list[Implementation] | None = None, w: AttentionWorkload = W) -> Record:
    return run_session(OP, [w], ROWS if rows is None else rows, backend, lambda _impl, _what: None)


def outcome(record: Record) -> list[tuple[str, str, str | None]]:
    return [(run.impl, run.status, run.reason) for run in record.runs]


def row(name: str) -> Implementation:
    found = OP.implementation(name)
    assert found is not None
    return found


def test_all_goes_well() -> None:
    record = session(FakeBackend())
    assert outcome(record) == [
        ("standard", "measured", None),
        ("flash", "measured", None),
        ("sdpa-flash", "measured", None),
    ]
    assert (record.op, record.backend, record.device.name) == ("attention", "fake", "h200-141gb-sxm")
    assert record.notes == ("fake backend: no number here was measured",)
    assert all(run.value("time") and run.timing for run in record.runs)


class Odd(Exception):
    """Its text is empty."""

    def __str__(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("CUDA error: an illegal memory access\nCompile with..."),
         "RuntimeError: CUDA error: an illegal memory access"),
        (RuntimeError("\n\n  out of resource\n"), "RuntimeError:   out of resource"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (AssertionError(), "AssertionError: "),
        (Odd(), "Odd: "),
        (KeyError("block_m"), "KeyError: 'block_m'"),
        (PerfkitError("something else", "do this"), "something else"),
        (EnvironmentMissing("torch is not installed", "pip install torch"), "torch is not installed"),
        (ValueError("x" * 1000), ("ValueError: " + "x" * 1000)[:300]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("late", [False, True])
def test_a_failure_is_a_row_and_the_others_go_on(error: Exception, reason: str, late: bool) -> None:
    record = session(Stub(throw(error), late=late))
    assert outcome(record) == [
        ("standard", "measured", None),
        ("flash", "failed", reason),
        ("sdpa-flash", "measured", None),
    ]
    failed = record.runs[1]
    assert failed.timing is None
    assert not [tag for tag in failed.numbers if tag.startswith("time")]
    assert failed.numbers.keys() >= MODELLED  # what needs no execution is there


@pytest.mark.parametrize("late", [False, True])
def test_a_wrong_result_has_no_time(late: bool) -> None:
    record = session(Stub(throw(Incorrect("largest error 1 against the oracle, allowed 0.01")), late=late))
    wrong = record.runs[1]
    assert (wrong.status, wrong.reason) == ("incorrect", "largest error 1 against the oracle, allowed 0.01")
    assert wrong.timing is None
    assert wrong.value("time") is None
    assert [run.status for run in record.runs] == ["measured", "incorrect", "measured"]


def test_a_wrong_result_keeps_its_error() -> None:
    def measure(draft: Draft) -> None:
        draft.put("error", 0.5, "measured")
        raise Incorrect("wrong")

    assert session(Stub(measure)).runs[1].value("error") == 0.5


def test_an_error_that_is_nan_is_unavailable() -> None:
    draft = Draft(row=row("flash"), workload=W)
    draft.put("error", float("nan"), "measured")
    assert draft.numbers["error"].provenance == "unavailable"


def test_out_of_memory() -> None:
    record = session(Stub(throw(OutOfMemory("needs 8.59 GB")), victim="standard"))
    assert outcome(record)[0] == ("standard", "out-of-memory", "needs 8.59 GB")
    assert [run.status for run in record.runs[1:]] == ["measured", "measured"]
    assert record.runs[0].numbers.keys() >= {"flops_convention", "dram_read_modelled"}


def test_refused_by_the_implementation() -> None:
    record = session(Stub(throw(Refused("flash: no such kernel here"))))
    assert outcome(record)[1] == ("flash", "refused", "flash: no such kernel here")
    assert [run.status for run in record.runs] == ["measured", "refused", "measured"]


def test_ctrl_c_keeps_what_was_measured_and_marks_the_rest() -> None:
    record = session(Stub(throw(KeyboardInterrupt())))
    assert outcome(record) == [
        ("standard", "measured", None),
        ("flash", "interrupted", "interrupted while it was measured"),
        ("sdpa-flash", "interrupted", "not started: the session was interrupted"),
    ]
    assert record.runs[0].value("time") is not None
    assert record.runs[1].numbers.keys() >= MODELLED
    assert record.runs[2].numbers == {}


def test_ctrl_c_after_the_timing_keeps_the_time() -> None:
    run = session(Stub(throw(KeyboardInterrupt()), late=True)).runs[1]
    assert run.status == "interrupted"
    assert run.value("time") is not None
    assert run.timing is not None


def test_ctrl_c_in_the_first_starts_no_other() -> None:
    started: list[str] = []

    class Watched(Stub):
        def prepare(self, op: Op, draft: Draft, stage: Stage) -> Work:
            started.append(draft.row.name)
            return super().prepare(op, draft, stage)

    record = session(Watched(throw(KeyboardInterrupt()), victim="standard"))
    assert started == ["standard"]
    assert [run.status for run in record.runs] == ["interrupted"] * 3


def test_a_backward_that_fails_after_its_forward_is_a_row() -> None:
    """The forward kernel has noted its tile, the backward ones never ran."""

    def forward_only(draft: Draft) -> None:
        draft.uses.append(KernelUse(kernel="flash_forward", block_m=128, block_n=64))
        raise RuntimeError("no resources for the backward")

    w = AttentionWorkload(seq_q=1024, seq_k=1024, pass_="bwd")
    record = session(Stub(forward_only), w=w)
    assert [run.status for run in record.runs] == ["measured", "failed", "measured"]


def test_stages_name_the_implementation() -> None:
    seen: list[tuple[str, str]] = []
    run_session(OP, [W], ROWS, FakeBackend(), lambda impl, what: seen.append((impl, what)))
    assert seen == [(name.name, "pretending") for name in ROWS]


# Several workloads, timed together.

SIZES = [AttentionWorkload(seq_q=n, seq_k=n) for n in (1024, 2048)]


def together(backend: Any) -> Record:
    return run_session(OP, SIZES, ROWS, backend, lambda *_: None, baseline="standard")


def test_runs_that_are_compared_are_timed_together() -> None:
    timed: list[list[str]] = []

    class Watched(FakeBackend):
        def time(self, drafts: Sequence[Draft], works: Sequence[Work], stage: Stage) -> None:
            timed.append([draft.row.name for draft in drafts])
            super().time(drafts, works, stage)

    record = together(Watched())
    assert timed == [["standard", "flash", "sdpa-flash"]] * 2
    assert record.baseline == "standard"
    assert [(run.workload.seq_q, run.impl) for run in record.runs] == [
        (n, name) for n in (1024, 2048) for name in ("standard", "flash", "sdpa-flash")
    ]
    assert all(run.timing is not None and run.timing.interleaved for run in record.runs)
    assert not any(run.timing is not None and run.timing.interleaved for run in session(FakeBackend()).runs)


def test_one_that_cannot_be_prepared_leaves_the_others_to_be_timed() -> None:
    record = together(Stub(throw(OutOfMemory("needs 8.59 GB")), victim="standard"))
    assert [run.status for run in record.runs] == ["out-of-memory", "measured", "measured"] * 2


def test_a_failure_while_timing_together_is_that_of_all() -> None:
    class Failing(FakeBackend):
        def time(self, *_: object) -> None:
            raise RuntimeError("CUDA error: an illegal memory access")

    record = together(Failing())
    assert {run.status for run in record.runs} == {"failed"}
    assert all(run.value("time") is None for run in record.runs)


def test_ctrl_c_while_timing_together_keeps_the_samples_of_all() -> None:
    class Interrupted(FakeBackend):
        def time(self, drafts: Sequence[Draft], works: Sequence[Work], stage: Stage) -> None:
            super().time(drafts, works, stage)
            for draft in drafts:
                assert draft.timing is not None
                draft.timing = msgspec.structs.replace(draft.timing, stop_reason=INTERRUPTED)

    record = together(Interrupted())
    first, second = record.runs[:3], record.runs[3:]
    assert [run.reason for run in first] == ["interrupted while it was measured"] * 3
    assert all(run.timing is not None and run.value("time") for run in first)
    assert [(run.status, run.reason) for run in second] == [
        ("interrupted", "not started: the session was interrupted")
    ] * 3


def test_ctrl_c_while_examining_keeps_the_times_of_all() -> None:
    record = together(Stub(throw(KeyboardInterrupt()), late=True))
    assert {run.status for run in record.runs} == {"interrupted"}
    assert all(run.value("time") for run in record.runs[:3])
    assert not any(run.numbers for run in record.runs[3:])


def test_progress_names_the_length_where_there_are_several() -> None:
    seen: list[str] = []
    run_session(OP, SIZES, ROWS[:1], FakeBackend(), lambda name, _: seen.append(name))
    assert seen == ["standard N 1k", "standard N 2k"]


# Refusals before anything runs.


@pytest.mark.parametrize(
    ("name", "device", "fields", "reason"),
    [
        ("flash", "h200-141gb-sxm", {}, None),
        ("flash", "h200-141gb-sxm", {"dtype": "fp32"}, "dtype fp32: flash takes bf16, fp16"),
        ("standard", "h200-141gb-sxm", {"dtype": "fp32"}, None),
        ("standard", "t4", {}, "dtype bf16: NVIDIA T4 has no bf16; use --dtype fp16"),
        ("flash", "t4", {}, "dtype bf16: NVIDIA T4 has no bf16; use --dtype fp16"),
        ("standard", "v100-16gb-sxm2", {},
         "dtype bf16: NVIDIA V100 16GB SXM2 has no bf16; use --dtype fp16"),
        ("flash", "t4", {"dtype": "fp16"}, None),
        ("standard", "mi300x", {}, None),
        ("flash", "h200-141gb-sxm", {"head_dim": 8},
         "head dim 8: flash takes multiples of 8 from 16 to 256"),
        ("flash", "h200-141gb-sxm", {"head_dim": 20},
         "head dim 20: flash takes multiples of 8 from 16 to 256"),
        ("flash", "h200-141gb-sxm", {"head_dim": 264},
         "head dim 264: flash takes multiples of 8 from 16 to 256"),
        ("flash", "h200-141gb-sxm", {"seq_k": 2048, "causal": True}, None),
        ("sdpa-flash", "h200-141gb-sxm", {"seq_k": 2048, "causal": True},
         "torch aligns a causal mask to the top left; perfkit's is bottom right, and they differ here"),
        ("sdpa-flash", "h200-141gb-sxm", {"seq_k": 2048}, None),
    ],
)  # fmt: skip
def test_refusal(name: str, device: str, fields: dict[str, Any], reason: str | None) -> None:
    w = AttentionWorkload(**{"seq_q": 1024, "seq_k": 1024, **fields})
    assert refusal(row(name), w, load(device)) == reason


def test_a_refused_row_is_never_started_and_says_why() -> None:
    record = session(
        Stub(throw(AssertionError("started"))), w=AttentionWorkload(seq_q=64, seq_k=64, dtype="fp32")
    )
    assert outcome(record) == [
        ("standard", "measured", None),
        ("flash", "refused", "dtype fp32: flash takes bf16, fp16"),
        ("sdpa-flash", "refused", "dtype fp32: sdpa-flash takes bf16, fp16"),
    ]
    assert record.runs[1] == Run(
        impl="flash", workload=record.runs[1].workload, status="refused",
        reason="dtype fp32: flash takes bf16, fp16",
    )  # fmt: skip


# Without a GPU.


def test_the_model_backend_gives_formulas_and_reasons() -> None:
    record = session(ModelBackend(load("h200-141gb-sxm"), "no NVIDIA GPU on this machine"))
    assert record.backend == "model"
    assert record.notes == ("nothing was measured: no NVIDIA GPU on this machine",)
    for run in record.runs:
        assert run.status == "modelled"
        assert run.timing is None
        for tag in MEASURED:
            found = run.numbers[tag]
            assert (found.value, found.provenance) == (None, "unavailable")
            assert found.reason == "no NVIDIA GPU on this machine"
        counted = {run.numbers[tag].reason for tag in COUNTED}
        assert counted == {"not counted here: perfkit io --count executes kernels"}  # needs no GPU
    standard, flash, peer = record.runs
    assert {flash.numbers[tag].provenance for tag in MODELLED} == {"modelled"}
    for tag in ("l2_read_modelled", "l2_zeros_modelled"):
        assert standard.numbers[tag].reason == "the tiles of its matmul library are not known"
    for tag in ("flops_issued", "l2_zeros_modelled"):
        assert peer.numbers[tag].reason == "the tiles of this implementation are not known"
    assert [use.kernel for use in flash.uses] == ["flash_hopper_forward", "flash_hopper_dkdv"]


def test_what_did_not_run_is_modelled_on_the_path_of_what_did() -> None:
    """`flash` ran the portable forward kernel, as without Gluon, and its backward failed."""
    w = AttentionWorkload(seq_q=256, seq_k=256, pass_="fwd-bwd")
    ran = KernelUse(kernel="flash_forward", block_m=64, block_n=128, registers=154)
    draft = Draft(row=row("flash"), workload=w, uses=[ran])
    add_model(OP, draft, load("h200-141gb-sxm"))
    assert draft.uses[0] == ran
    assert [use.kernel for use in draft.uses] == ["flash_forward", "flash_dkdv", "flash_dq"]
    portable = row("flash-triton").io
    assert portable is not None
    moved = portable.traffic(w, tuple(draft.uses))
    assert draft.numbers["l2_read_modelled"].value == moved.read_bytes
    assert draft.numbers["launches"].value == 4


@pytest.mark.parametrize(
    ("head_dim", "seq", "zeros", "outside"),
    [
        # Tiles of 192 x 128 of 64 columns: 2 heads of 384 rows of Q are whole. 512 rows are 3 tiles, of 576.
        (64, 384, 0, None),
        (64, 512, 2 * 64 * 128, "beyond the last row"),
        # 3 tiles of 128 x 128 of 96 columns: Q, and K and V three times, lack 16 columns of each row.
        (80, 384, 2 * 16 * 2 * (384 + 3 * 2 * 384), "beyond head dim 80"),
        # N 200 is 2 tiles, 256 rows.
        (
            80,
            200,
            2 * 16 * 2 * (200 + 2 * 2 * 200) + 2 * 192 * (56 + 2 * 2 * 56),
            "beyond head dim 80 and the last row",
        ),
    ],
)
def test_zeros_are_a_number_that_says_where_they_are(
    head_dim: int, seq: int, zeros: int, outside: str | None
) -> None:
    w = AttentionWorkload(heads=2, kv_heads=2, seq_q=seq, seq_k=seq, head_dim=head_dim)
    draft = Draft(row=row("flash"), workload=w)
    add_model(OP, draft, load("h200-141gb-sxm"))
    found = draft.numbers["l2_zeros_modelled"]
    assert (found.value, found.unit, found.provenance, found.reason) == (zeros, "B", "modelled", outside)
    # Without TMA there are none.
    draft = Draft(row=row("flash"), workload=w)
    add_model(OP, draft, load("a100-80gb-sxm"))
    assert draft.numbers["l2_zeros_modelled"].value == 0


def test_what_was_put_is_never_replaced_by_a_reason() -> None:
    draft = Draft(row=row("flash"), workload=W)
    draft.put("time", 1.0, "measured")
    draft.lack(("time", "power"), "no sensor")
    assert draft.numbers["time"].value == 1.0
    assert draft.numbers["power"].reason == "no sensor"


def test_a_value_has_a_note_and_its_absence_a_reason() -> None:
    draft = Draft(row=row("flash"), workload=W)
    draft.put("clock", 1e9, "measured", note="probe", absent="no clock")
    draft.put("power", None, "measured", note="probe", absent="no sensor")
    draft.put("energy", None, "measured")
    draft.put("error", float("nan"), "measured", note="all heads")
    assert [(draft.numbers[tag].value, draft.numbers[tag].reason) for tag in draft.numbers] == [
        (1e9, "probe"),
        (None, "no sensor"),
        (None, "not obtained"),
        (None, "it is nan"),
    ]
