"""Timing on a real GPU: lengths that are known otherwise."""

from collections.abc import Callable
from typing import Any

import pytest

from perfkit.measure.clock import StampProbe, open_clock
from perfkit.measure.energy import energy_per_op
from perfkit.measure.flush import L2Flush
from perfkit.measure.memory import free_memory, peak_memory
from perfkit.measure.nvml import monitor_of_torch
from perfkit.measure.stopping import StoppingRule
from perfkit.measure.timing import Timing, time_cuda
from perfkit.model.median import median

pytestmark = pytest.mark.gpu

torch: Any = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU that torch sees", allow_module_level=True)

RULE = StoppingRule(min_time_s=0.05, limit_s=2.0)


def timed(fn: Callable[[], object], *, cold: bool = False, graph: bool = False) -> Timing:
    flush = L2Flush() if cold else None
    (timing,) = time_cuda([fn], flush=flush, rule=RULE, clock=StampProbe(), use_graph=graph)
    return timing


def clock_of(timing: Timing) -> float:
    known = sorted(hz for hz in timing.clock_hz if hz is not None)
    assert len(known) > len(timing.clock_hz) / 2
    return known[len(known) // 2]


def matmul(size: int) -> Callable[[], object]:
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.matmul(left, right, out=out)


def test_a_sleep_lasts_its_cycles_at_the_clock_that_was_read() -> None:
    timing = timed(lambda: torch.cuda._sleep(2_000_000))
    assert timing.launch_hidden
    assert timing.median_s * clock_of(timing) == pytest.approx(2_000_000, rel=0.03)


def test_events_and_graph_agree() -> None:
    """In cycles: the power cap may move the clock from one measurement to the next."""

    def cycles(timing: Timing) -> float:
        return timing.median_s * median([hz for hz in timing.clock_hz if hz])

    work = matmul(4096)
    assert cycles(timed(work)) == pytest.approx(cycles(timed(work, graph=True)), rel=0.03)


def test_launch_overhead_of_a_tiny_kernel_is_hidden() -> None:
    one = torch.zeros(1024, device="cuda")
    timing = timed(lambda: one.add_(1.0))
    assert timing.launch_hidden
    assert timing.median_s < 10e-6


def test_many_launches_from_a_slow_host_are_hidden() -> None:
    one = torch.zeros(1024, device="cuda")

    def work() -> None:
        for _ in range(20):
            one.add_(1.0)
            sum(range(2000))  # the host takes its time between launches

    timing = timed(work)
    assert timing.launch_hidden
    assert timing.median_s < 20 * 10e-6


def test_work_that_synchronises_is_found_out() -> None:
    work = matmul(1024)

    def synchronising() -> None:
        work()
        torch.cuda.synchronize()

    timing = timed(synchronising)
    assert not timing.launch_hidden
    assert timing.samples_s


def test_clock_is_one_that_the_gpu_has() -> None:
    most = monitor_of_torch().state().sm_clock_max_hz
    assert most
    timing = timed(matmul(4096))
    assert timing.clock_source == "probe"
    assert 200e6 < clock_of(timing) <= most * 1.01


def test_cold_is_not_faster_than_warm() -> None:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    source = torch.randn(l2 // 16, device="cuda")  # a quarter of L2
    out = torch.empty((), device="cuda")

    def read() -> object:
        return torch.sum(source, dim=0, out=out)

    assert timed(read, cold=True).median_s > timed(read).median_s


def test_energy_is_positive_and_below_the_power_limit() -> None:
    monitor = monitor_of_torch()
    energy = energy_per_op(matmul(4096), monitor, clock=open_clock(monitor))
    if energy.joules_per_op is None:
        pytest.skip(energy.reason)
    limit = monitor.state().power_limit_w
    assert energy.joules_per_op > 0
    assert energy.watts
    assert limit is None or energy.watts < 1.1 * limit


def test_peak_memory_of_a_known_allocation() -> None:
    assert peak_memory(lambda: torch.empty(1 << 26, dtype=torch.uint8, device="cuda")) == 1 << 26
    assert free_memory() > 0
