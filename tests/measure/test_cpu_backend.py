"""One real session on this CPU, tiny: the whole chain runs, and what it gives is coherent."""

from typing import Any

import pytest

pytest.importorskip("torch")

from perfkit.analysis.placement import place
from perfkit.analysis.study import study
from perfkit.cli.selection import select
from perfkit.measure import cpu_backend
from perfkit.measure.choose import choose_backend
from perfkit.measure.options import Options
from perfkit.measure.session import run_session
from perfkit.ops import OPS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Run, dump, load

OP = OPS[0]
W = AttentionWorkload(heads=2, kv_heads=2, seq_q=128, seq_k=128, dtype="fp32")


@pytest.fixture(scope="module")
def backend() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(cpu_backend, "_SECONDS", 0.02)
    patch.setattr(cpu_backend, "MATMUL", 256)
    patch.setattr(cpu_backend, "COPY_BYTES", 1 << 24)
    yield choose_backend("cpu", "fp32", Options(limit_s=0.2))
    patch.undo()


@pytest.fixture(scope="module")
def record(backend: Any) -> Record:
    return run_session(
        OP, [W], select(OP, "standard,sdpa", backend.hardware), backend, lambda _impl, _what: None
    )


def test_both_are_measured(record: Record) -> None:
    assert [(run.impl, run.status, run.reason) for run in record.runs] == [
        ("standard", "measured", None),
        ("sdpa", "measured", None),
    ]
    assert record.backend == "cpu"
    assert record.notes == ("ceilings are torch's own matmul and copy on this CPU, measured",)
    for run in record.runs:
        time_s, low, high = (run.value(tag) for tag in ("time", "time_low", "time_high"))
        assert time_s is not None
        assert 0 < time_s < 1
        assert low is None or high is None or low <= time_s <= high
        assert run.timing is not None
        assert len(run.timing.samples_s) >= 5
        assert not run.timing.cold


def test_results_are_right_and_say_against_what(record: Record) -> None:
    for run in record.runs:
        error = run.numbers["error"]
        assert error.value is not None
        assert 0 < error.value < 1e-5
        assert error.reason == "against float64, out, all heads"


def test_what_a_cpu_does_not_tell_has_a_reason(record: Record) -> None:
    for run in record.runs:
        for tag in ("clock", "power", "energy", "dram_read", "l2_write", "flops_tensor", "exps_measured"):
            assert run.numbers[tag].reason == "not read on a CPU"


def test_the_profile_is_measured_and_says_so(backend: Any) -> None:
    profile = backend.profile
    assert (profile.name, profile.vendor, profile.derived) == ("cpu", "CPU", True)
    (peak,) = profile.peaks
    assert (peak.dtype, peak.pipe) == ("fp32", "vector")
    assert 1e8 < peak.flop_per_s < 1e15
    assert 1e8 < profile.level("dram").bandwidth() < 1e13
    assert profile.sources["matmul"].startswith("measured: torch matmul")


def test_it_can_be_placed_saved_and_read_again(record: Record, tmp_path: Any) -> None:
    path = tmp_path / "cpu.json"
    path.write_bytes(dump(record))
    again = load(path)
    assert again == record
    assert len(study(again).findings) == 2
    at = place(again, again.runs[0])
    assert at.roof is not None
    assert at.roof.exp_rate is None  # a CPU has no special function units
    assert at.bound is not None
    assert at.achieved is not None


def of(backend: Any, impl: str, w: AttentionWorkload = W) -> Run:
    rows = select(OP, impl, backend.hardware)
    return run_session(OP, [w], rows, backend, lambda _impl, _what: None).runs[0]


def test_a_gpu_kernel_is_refused_here(backend: Any) -> None:
    pytest.importorskip("triton")
    run = of(backend, "flash", AttentionWorkload(seq_q=64, seq_k=64, heads=1, kv_heads=1))
    assert run.status == "refused"
    assert run.reason


def test_what_does_not_fit_is_refused_with_its_size(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "_free_bytes", lambda: 1000)
    run = of(backend, "standard")
    # S and P: 2 x 2 heads x 128 x 128 x 4 B; Q, K, V, O and as much again: 4 x 2 x 2 x 128 x 64 x 4 B
    assert 2 * 2 * 128 * 128 * 4 + 4 * 2 * (2 * 128 * 64 * 4) == 786_432
    assert (run.status, run.reason) == ("refused", "needs 786 kB, and 1.00 kB of memory are free")


def test_a_wrong_result_has_no_time(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(q: Any, k: Any, v: Any, **_: Any) -> Any:  # noqa: ARG001
        return q

    monkeypatch.setattr(cpu_backend, "bound", lambda _: wrong)
    run = of(backend, "standard")
    assert run.status == "incorrect"
    assert run.reason is not None
    assert run.reason.startswith("largest error ")
    assert run.value("time") is None
    assert run.value("error") is not None


def test_nan_is_a_wrong_result(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(q: Any, k: Any, v: Any, **_: Any) -> Any:  # noqa: ARG001
        return q * float("nan")

    monkeypatch.setattr(cpu_backend, "bound", lambda _: nan)
    run = of(backend, "standard")
    assert run.status == "incorrect"
    assert run.numbers["error"].provenance == "unavailable"


def test_a_number_that_is_there_carries_no_reason_for_its_absence(record: Record) -> None:
    assert record.runs[0].value("time_low") is not None
    assert record.runs[0].numbers["time_low"].reason is None


def test_the_roof_is_the_best_of_several_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 256^3 in 4 s, transposed in 2 s, 16 of 64^3 in 1 s: 8.4, 16.8 and 8.4 MFLOP/s."""
    times = iter((4.0, 2.0, 1.0))
    monkeypatch.setattr(cpu_backend, "MATMUL", 256)
    monkeypatch.setattr(cpu_backend, "_best", lambda _: next(times))
    torch = pytest.importorskip("torch")
    rate = cpu_backend._matmul_rate(torch.float32)
    assert rate == max(2 * 256**3 / 4, 2 * 256**3 / 2, 16 * 2 * 64**3 / 1)
