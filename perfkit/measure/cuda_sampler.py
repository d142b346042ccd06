"""Samples of GPU work, one CUDA event pair each.

One sample is queued as  flush L2 | sleep | gate | stamp | start | work | end | stamp.  The sleep keeps the
stream busy until the host has queued everything; the gate is an event that must not have passed by then,
else the GPU waited for the host inside the timed region and the sample is dropped. Seconds throughout.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from perfkit.errors import PerfkitError
from perfkit.measure.clock import ClockProbe
from perfkit.measure.flush import L2Flush
from perfkit.measure.loop import Batch
from perfkit.measure.torch_cuda import cuda

WARM_UP_S: Final = 0.05
WARM_UP_CALLS: Final = 3
#: Tried in turn to find whether launches can be hidden at all; work that synchronises outlasts every one.
TRIAL_SLEEPS_S: Final = (0.002, 0.01, 0.05, 0.2)
LEAST_SLEEP_S: Final = 50e-6
#: Below this the stamps go round the sleep as well: %globaltimer is too coarse for the work alone.
SHORT_S: Final = 100e-6
_SLEEP_TRIAL_CYCLES: Final = 2_000_000


def warm_up(fn: Callable[[], object], least_s: float = WARM_UP_S) -> None:
    """Run `fn` until compilation, allocation and clocks have settled: 3 calls and `least_s` at least."""
    gpu = cuda()
    began, calls = time.perf_counter(), 0
    while calls < WARM_UP_CALLS or time.perf_counter() - began < least_s:
        fn()
        gpu.synchronize()
        calls += 1


def capture(fn: Callable[[], object]) -> Callable[[], object]:
    """One call of `fn` as a CUDA graph: replaying it costs one launch. Its tensors must stay put."""
    gpu = cuda()
    side = gpu.Stream()
    side.wait_stream(gpu.current_stream())
    with gpu.stream(side):
        fn()  # libraries allocate workspaces per stream, which is not allowed while capturing
    gpu.current_stream().wait_stream(side)
    graph = gpu.CUDAGraph()
    try:
        with gpu.graph(graph):
            fn()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PerfkitError(
            f"the work cannot be captured in a CUDA graph: {reason}", "time it without one"
        ) from error
    replay: Callable[[], object] = graph.replay
    replay()
    gpu.synchronize()
    return replay


class _Queued(msgspec.Struct, frozen=True, kw_only=True):
    """The events of one sample, and whether the GPU was still asleep when its last launch was queued."""

    start: Any
    end: Any
    hidden: bool


class CudaSampler:
    """Takes samples of `work` on the current stream (a `loop.Sampler`)."""

    def __init__(self, work: Callable[[], object], flush: L2Flush | None, clock: ClockProbe | None) -> None:
        self._gpu = cuda()
        self._work, self._flush, self._clock = work, flush, clock
        self._cycles_per_s = self._calibrate_sleep()
        self._short = False
        self._sleep_s = 0.0
        self.launch_hidden = True
        self._size_sleep()

    def _calibrate_sleep(self) -> float:
        """How many of `torch.cuda._sleep`'s cycles are a second now; the SM clock, measured."""
        start, end = (self._gpu.Event(enable_timing=True) for _ in range(2))
        self._gpu._sleep(1000)
        start.record()
        self._gpu._sleep(_SLEEP_TRIAL_CYCLES)
        end.record()
        self._gpu.synchronize()
        took_s: float = start.elapsed_time(end) / 1e3
        return _SLEEP_TRIAL_CYCLES / took_s

    def _size_sleep(self) -> None:
        """Find a sleep that covers what the host needs to queue one sample, or that none does."""
        self._queue(0)  # loads the kernels of flush and stamps, which would pass for a slow host
        self._gpu.synchronize()
        for trial in TRIAL_SLEEPS_S:
            self._sleep_s = trial
            at = time.perf_counter()
            queued = self._queue(0)
            host_s = time.perf_counter() - at
            self._gpu.synchronize()
            self._short = queued.start.elapsed_time(queued.end) / 1e3 < SHORT_S
            if queued.hidden:
                # Twice what it took once: the host's pace varies, and a faster clock shortens the sleep.
                self._sleep_s = max(LEAST_SLEEP_S, 2 * host_s)
                return
        self._give_up()

    def _give_up(self) -> None:
        self.launch_hidden, self._sleep_s = False, 0.0

    def _queue(self, slot: int) -> _Queued:
        start, end = (self._gpu.Event(enable_timing=True) for _ in range(2))
        gate = self._gpu.Event()
        if self._flush:
            self._flush()
        if self._clock and self._short:
            self._clock.before(slot)
        if self._sleep_s:
            self._gpu._sleep(int(self._sleep_s * self._cycles_per_s))
        gate.record()
        if self._clock and not self._short:
            self._clock.before(slot)
        start.record()
        self._work()
        end.record()
        hidden = not gate.query()
        if self._clock:
            self._clock.after(slot)
        return _Queued(start=start, end=end, hidden=hidden)

    def batch(self, count: int) -> Batch:
        """Queue `count` samples ahead, wait for them, and drop those in which the GPU waited for the host."""
        try:
            queued = [self._queue(slot) for slot in range(count)]
            if self._clock:
                self._clock.queued()
        finally:
            self._gpu.synchronize()  # also after Ctrl-C: leave no work behind
        clocks = self._clock.read(count) if self._clock else [None] * count
        kept = [slot for slot, one in enumerate(queued) if one.hidden or not self.launch_hidden]
        self._widen(count - len(kept), count)
        return Batch(
            samples_s=[queued[slot].start.elapsed_time(queued[slot].end) / 1e3 for slot in kept],
            clock_hz=[clocks[slot] for slot in kept],
            dropped=count - len(kept),
        )

    def _widen(self, dropped: int, count: int) -> None:
        """Sleep longer once more than a tenth was dropped: a single one is a hiccup of the host."""
        if dropped * 10 > count:
            self._sleep_s *= 2
            if self._sleep_s > TRIAL_SLEEPS_S[-1]:
                self._give_up()
