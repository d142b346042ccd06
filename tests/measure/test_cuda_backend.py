"""The CUDA backend's own flow, with the GPU's parts replaced: what it asks for, keeps, and gives up."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from perfkit.measure import correctness, counters, cuda_backend  # noqa: E402
from perfkit.measure.counter_errors import InsufficientPrivileges  # noqa: E402
from perfkit.measure.cuda_backend import CudaBackend  # noqa: E402
from perfkit.measure.nvml import GpuState  # noqa: E402
from perfkit.measure.options import Options  # noqa: E402
from perfkit.measure.session import run_session  # noqa: E402
from perfkit.model.catalogue import load  # noqa: E402
from perfkit.ops import find_op  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402
from perfkit.record import BY_TAG, INTERRUPTED, KernelCounts, Run, Timing  # noqa: E402

OP = find_op("attention")
W = AttentionWorkload(seq_q=64, seq_k=64, heads=2, kv_heads=2)


def timing(stop_reason: str = "enough") -> Timing:
    return Timing(
        samples_s=[2e-3, 1e-3, 3e-3], clock_hz=[1.5e9, None, 1.7e9], clock_source="probe", median_s=2e-3,
        ci_low_s=None, ci_high_s=None, stop_reason=stop_reason, converged=True, cold=True, graph=False,
        launch_hidden=True, dropped=0, warmup_s=0.0,
    )  # fmt: skip


READING = counters.CounterReading(
    kernels=(KernelCounts(name="k", values={"duration_ns": 5.0}),),
    totals={"dram_read_bytes": 7.0, "dram_write_bytes": 8.0, "l1_fill_bytes": 9.0, "l2_read_bytes": 4.0},
    raw_dram={}, settled=True, chip="GH100", method="cupti", passes=1,
)  # fmt: skip


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """One run of an implementation, on tensors in the CPU's memory."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(cuda_backend, "free_memory", lambda: 1 << 40)
    monkeypatch.setattr(cuda_backend, "L2Flush", lambda: None)
    monkeypatch.setattr(cuda_backend, "time_cuda", lambda works, **_: [timing() for _ in works])
    monkeypatch.setattr(cuda_backend, "peak_memory", lambda _: 123)
    monkeypatch.setattr(
        counters, "self_check", lambda: counters.CounterCheck(expected={}, measured={"x": 1.0}, ok=True)
    )
    monkeypatch.setattr(counters, "collect", lambda *_, **__: READING)

    def run(
        name: str = "standard",
        w: AttentionWorkload = W,
        monitor: Any = None,
        stage: Callable[[str, str], None] = lambda *_: None,
    ) -> Run:
        backend = CudaBackend(load("h200-141gb-sxm"), Options(energy=False))
        backend._bench = correctness.Bench("cpu")
        monkeypatch.setattr(type(backend), "monitor", monitor)
        monkeypatch.setattr(type(backend), "clock", None)
        row = OP.implementation(name)
        assert row is not None
        return run_session(OP, [w], [row], backend, stage).runs[0]

    return run


def test_everything_is_there_or_says_why(measure: Callable[..., Run]) -> None:
    run = measure()
    assert run.status == "measured"
    assert run.numbers.keys() == BY_TAG.keys()
    assert (run.value("time"), run.value("clock")) == (2e-3, 1.6e9)  # the median of the clocks that are known
    assert run.value("l2_read") == 9  # where L1 is filled, not where L2 is asked
    assert (run.value("dram_write"), run.numbers["dram_write"].reason) == (
        8, "cupti: dram_write_bytes, dirty lines settled",
    )  # fmt: skip
    assert run.numbers["energy"].reason == "not asked for (--no-energy)"
    assert run.numbers["time_low"].reason == "fewer than 6 samples"
    assert run.numbers["flops_tensor"].reason == "this chip has no such counter"
    assert (run.value("peak_memory"), run.value("launches")) == (123, 1)
    error, eager = run.value("error"), run.value("eager_error")
    assert error is not None
    assert eager is not None
    assert error <= 2 * eager


def test_without_permission_the_rest_is_measured(
    measure: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InsufficientPrivileges("not for you")

    monkeypatch.setattr(counters, "collect", refuse)
    run = measure()
    assert (run.status, run.value("time")) == ("measured", 2e-3)
    assert run.numbers["dram_read"].reason == f"not for you (fix: {InsufficientPrivileges.default_fix})"


def test_counters_that_fail_their_check_are_not_believed(
    measure: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = counters.CounterCheck(
        expected={"x": 1.0}, measured={"x": 2.0}, ok=False, reason="twice too much"
    )
    monkeypatch.setattr(counters, "self_check", lambda: failed)
    run = measure()
    assert run.numbers["l2_read"].reason == "twice too much"


def test_a_wrong_result_has_no_time(measure: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_backend, "bound", lambda _: lambda q, *_, **__: q)
    run = measure()
    assert run.status == "incorrect"
    assert "time" not in run.numbers or run.value("time") is None
    assert run.value("error") is not None


def test_ctrl_c_in_the_timing_keeps_its_samples(
    measure: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_backend, "time_cuda", lambda works, **_: [timing(INTERRUPTED) for _ in works])
    run = measure()
    assert run.status == "interrupted"
    assert run.timing is not None
    assert run.timing.samples_s == [2e-3, 1e-3, 3e-3]


def test_out_of_memory_is_a_row_with_the_need(
    measure: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB. More text")

    monkeypatch.setattr(cuda_backend, "bound", lambda _: exhausted)
    run = measure()
    # S and P: 2 x 2 heads x 64 x 64 x 2 bytes
    assert (run.status, run.reason) == ("out-of-memory", "CUDA out of memory; predicted need 32.8 kB")


def test_what_does_not_fit_is_refused_before_it_runs(
    measure: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_backend, "free_memory", lambda: 1000)
    run = measure()
    assert run.status == "refused"
    assert run.reason is not None
    # S and P 32,768; Q, K, V and dO 4 x 16,384; O 16,384 bytes
    assert run.reason == "needs 115 kB, and 1.00 kB of device memory are free"


@pytest.mark.parametrize("pass_", ["bwd", "fwd-bwd"])
def test_backward_passes_are_checked_too(measure: Callable[..., Run], pass_: str) -> None:
    run = measure(w=AttentionWorkload(seq_q=64, seq_k=64, heads=2, kv_heads=2, pass_=pass_))  # type: ignore[arg-type]
    assert (run.status, run.numbers["peak_memory"].reason) == ("measured", "forward and backward together")


def test_the_driver_is_watched_while_it_is_timed(measure: Callable[..., Run]) -> None:
    class Monitor:
        def state(self, *fields: str) -> GpuState:
            assert "temperature_c" in fields
            return GpuState(temperature_c=51.0, clock_reasons=("software power cap",))

    run = measure(monitor=Monitor())
    assert run.value("temperature") == 51
    assert run.clock_reasons == ("software power cap (100%)",)


@pytest.mark.parametrize("pass_", ["fwd", "bwd"])
def test_the_kernel_that_compiles_is_shown_in_the_first_call_only(
    measure: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, pass_: str
) -> None:
    triton: Any = pytest.importorskip("triton")
    row = OP.implementation("standard")
    assert row is not None
    attention = cuda_backend.bound(row)
    calls: list[bool] = []

    def compiled_at_first(*tensors: Any, **options: Any) -> Any:
        hook, listener = triton.knobs.runtime.jit_cache_hook, triton.knobs.compilation.listener
        calls.append(hook is not None)
        if hook is not None:
            hook(fn=SimpleNamespace(name="flash_forward"))
            times = SimpleNamespace(total=2_500_000)  # microseconds
            listener(src=SimpleNamespace(name="flash_forward"), times=times, cache_hit=False)
        return attention(*tensors, **options)

    monkeypatch.setattr(cuda_backend, "bound", lambda _: compiled_at_first)
    seen: list[tuple[str, str]] = []
    w = AttentionWorkload(seq_q=64, seq_k=64, heads=2, kv_heads=2, pass_=pass_)  # type: ignore[arg-type]
    run = measure(w=w, stage=lambda *stage: seen.append(stage))
    assert [what for _, what in seen[:5]] == [
        "making inputs", "first call", "compiling flash_forward", "first call", "checking against the oracle"
    ]  # fmt: skip
    assert {name for name, _ in seen} == {"standard"}
    assert not any("compiling" in what for _, what in seen[5:])
    assert "compiled in 2.50 s: flash_forward 2.50 s" in run.notes
    # bwd: what is timed goes back from a forward pass of its own.
    assert calls == ([True] if pass_ == "fwd" else [True, False])
