"""Samples of GPU work, one CUDA event pair each.

One sample is queued as  flush L2 | sleep | gate | stamp | start | work | end | stamp.  The sleep keeps the
stream busy until the host has queued everything; the gate is an event that must not have passed by then,
else the GPU waited for the host inside the timed region and the sample is dropped. Seconds throughout.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from perfkit.errors import PerfkitError
from perfkit.measure.clock import SLOTS, ClockProbe
from perfkit.measure.flush import L2Flush
from perfkit.measure.loop import Batch, slots_in_turn
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


@dataclass(slots=True)
class _Lane:
    """One work: how long to sleep before it, whether that hides its launches, whether it is short."""

    work: Callable[[], object]
    sleep_s: float = 0.0
    hidden: bool = True
    short: bool = False

    def give_up(self) -> None:
        """No sleep covers the host's part: launch overhead stays in the samples."""
        self.hidden, self.sleep_s = False, 0.0


class CudaSampler:
    """Takes samples of `works` on the current stream (a `loop.Sampler`), in rounds: A B, B A, A B, ..."""

    def __init__(
        self, works: Sequence[Callable[[], object]], flush: L2Flush | None, clock: ClockProbe | None
    ) -> None:
        self._gpu = cuda()
        self._flush, self._clock = flush, clock
        self._cycles_per_s = self._calibrate_sleep()
        self._draw = random.Random(0)
        self._lanes = [_Lane(work) for work in works]
        for lane in self._lanes:
            self._size_sleep(lane)

    @property
    def works(self) -> int:
        """How many pieces of work are sampled."""
        return len(self._lanes)

    @property
    def launch_hidden(self) -> list[bool]:
        """Whether launch overhead is off the clock, a work."""
        return [lane.hidden for lane in self._lanes]

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

    def _size_sleep(self, lane: _Lane) -> None:
        """Find a sleep that covers what the host needs to queue one sample, or that none does."""
        self._queue(lane, 0)  # loads the kernels of flush and stamps, which would pass for a slow host
        self._gpu.synchronize()
        for trial in TRIAL_SLEEPS_S:
            lane.sleep_s = trial
            at = time.perf_counter()
            queued = self._queue(lane, 0)
            host_s = time.perf_counter() - at
            self._gpu.synchronize()
            lane.short = queued.start.elapsed_time(queued.end) / 1e3 < SHORT_S
            if queued.hidden:
                # Twice what it took once: the host's pace varies, and a faster clock shortens the sleep.
                lane.sleep_s = max(LEAST_SLEEP_S, 2 * host_s)
                return
        lane.give_up()

    def _queue(self, lane: _Lane, slot: int) -> _Queued:
        start, end = (self._gpu.Event(enable_timing=True) for _ in range(2))
        gate = self._gpu.Event()
        if self._flush:
            self._flush()
        if self._clock and lane.short:
            self._clock.before(slot)
        if lane.sleep_s:
            self._gpu._sleep(int(lane.sleep_s * self._cycles_per_s))
        gate.record()
        if self._clock and not lane.short:
            self._clock.before(slot)
        start.record()
        lane.work()
        end.record()
        hidden = not gate.query()
        if self._clock:
            self._clock.after(slot)
        return _Queued(start=start, end=end, hidden=hidden)

    def batch(self, count: int) -> list[Batch]:
        """Queue `count` rounds ahead, wait, and drop those in which the GPU waited for the host."""
        lanes = self._lanes
        count = min(count, SLOTS // len(lanes))
        queued: dict[int, _Queued] = {}
        try:
            for slot in slots_in_turn(count, len(lanes), self._draw):
                queued[slot] = self._queue(lanes[slot % len(lanes)], slot)
            if self._clock:
                self._clock.queued()
        finally:
            self._gpu.synchronize()  # also after Ctrl-C: leave no work behind
        total = count * len(lanes)
        clocks = self._clock.read(total) if self._clock else [None] * total
        valid = [queued[slot].hidden or not lanes[slot % len(lanes)].hidden for slot in range(total)]
        for at, lane in enumerate(lanes):
            self._widen(lane, valid[at :: len(lanes)].count(False), count)
        rounds = (range(turn * len(lanes), (turn + 1) * len(lanes)) for turn in range(count))
        kept = [slots for slots in rounds if all(valid[slot] for slot in slots)]
        return [
            Batch(
                samples_s=[_seconds(queued[slots[at]]) for slots in kept],
                clock_hz=[clocks[slots[at]] for slots in kept],
                dropped=count - len(kept),
            )
            for at in range(len(lanes))
        ]

    def _widen(self, lane: _Lane, dropped: int, count: int) -> None:
        """Sleep longer once more than a tenth was dropped: a single one is a hiccup of the host."""
        if dropped * 10 > count:
            lane.sleep_s *= 2
            if lane.sleep_s > TRIAL_SLEEPS_S[-1]:
                lane.give_up()


def _seconds(queued: _Queued) -> float:
    took_ms: float = queued.start.elapsed_time(queued.end)
    return took_ms / 1e3
