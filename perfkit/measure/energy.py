"""Energy of one operation when it runs back to back: joule, watt, second, hertz.

The driver's energy counter moves only every 20 to 100 ms, so power is taken between two of its ticks while
the GPU is steadily busy, and the time of an operation from CUDA events over the same steady part; their
product is the energy of one operation. Idle power is not subtracted: it is what one costs on this GPU.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from perfkit.measure.clock import SLOTS, ClockProbe
from perfkit.measure.cuda_sampler import warm_up
from perfkit.measure.nvml import GpuMonitor
from perfkit.measure.torch_cuda import cuda
from perfkit.model.median import median

#: Left out at the start: the power cap needs about this long to bring the clock down.
SETTLE_S: Final = 0.1
#: Work queued at once, and how many such chunks may wait: short, so that ticks are seen when they happen.
CHUNK_S: Final = 0.005
AHEAD: Final = 2
LARGEST_CHUNK: Final = 1000

Tick = tuple[float, float]


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """What sustained running costs. None with a `reason` where it cannot be known.

    `joules_per_op` includes idle power. `seconds_per_op` is sustained, warm and back to back, launch gaps
    included; `clock_hz` the SM clock meanwhile (None without a probe).
    """

    joules_per_op: float | None
    watts: float | None
    seconds_per_op: float | None
    clock_hz: float | None
    ops: int
    seconds: float
    reason: str = ""


def mean_power(ticks: list[Tick], least_s: float) -> float | None:
    """Watts between the first and the last of (seconds, joule) ticks; None if they span under `least_s`.

    Both ends are moments at which the counter moved, so its update period cancels.
    """
    if len(ticks) < 2:
        return None
    seconds, joules = ticks[-1][0] - ticks[0][0], ticks[-1][1] - ticks[0][1]
    return joules / seconds if seconds >= least_s and joules > 0 else None


def energy_per_op(
    fn: Callable[[], object],
    monitor: GpuMonitor,
    seconds: float = 0.4,
    clock: ClockProbe | None = None,
) -> Energy:
    """Run `fn` back to back until `seconds` lie between two ticks of the energy counter (or 3x + 1 s)."""
    joules, reason = monitor.read("energy_j")
    if joules is None:
        return Energy(
            joules_per_op=None,
            watts=None,
            seconds_per_op=None,
            clock_hz=None,
            ops=0,
            seconds=0.0,
            reason=f"no energy counter: {reason}",
        )
    warm_up(fn)
    run = _Run(fn, monitor, clock)
    run.until(lambda: run.elapsed_s >= SETTLE_S, limit_s=SETTLE_S + 1)
    run.begin_steady()
    run.until(lambda: mean_power(run.ticks, seconds) is not None, limit_s=3 * seconds + 1)
    return run.finish(seconds)


class _Run:
    """Chunks of operations queued one after another, with the energy counter watched in between."""

    def __init__(self, fn: Callable[[], object], monitor: GpuMonitor, clock: ClockProbe | None) -> None:
        self._gpu = cuda()
        self._fn, self._monitor, self._clock = fn, monitor, clock
        self._chunk = self._size_chunk()
        self._waiting: deque[Any] = deque()
        self._first: Any = None
        self._last: Any = None
        self._slots = 0
        self.ops = 0
        self.ticks: list[Tick] = []
        self._joules = self._energy()
        self._began = time.perf_counter()

    def _size_chunk(self) -> int:
        calls = 10
        at = time.perf_counter()
        for _ in range(calls):
            self._fn()
        self._gpu.synchronize()
        each = (time.perf_counter() - at) / calls
        return max(1, min(LARGEST_CHUNK, int(CHUNK_S / each)))

    def _energy(self) -> float:
        value: float | None = self._monitor.read("energy_j")[0]
        return 0.0 if value is None else value

    @property
    def elapsed_s(self) -> float:
        """Wall time since the first chunk."""
        return time.perf_counter() - self._began

    def begin_steady(self) -> None:
        """Count from here: the settling part is over."""
        self.ticks.clear()
        self.ops = 0
        self._first = self._mark()

    def _mark(self) -> Any:
        event = self._gpu.Event(enable_timing=True)
        event.record()
        return event

    def until(self, enough: Callable[[], bool], limit_s: float) -> None:
        """Keep the GPU busy until `enough`, or for `limit_s`."""
        stop_at = time.perf_counter() + limit_s
        while not enough() and time.perf_counter() < stop_at:
            self._queue_chunk()
            while len(self._waiting) > AHEAD:
                self._watch()
                if self._waiting[0].query():
                    self._waiting.popleft()

    def _queue_chunk(self) -> None:
        stamped = self._clock is not None and self._first is not None and self._slots < SLOTS
        if self._clock and stamped:
            self._clock.before(self._slots)
        for _ in range(self._chunk):
            self._fn()
        if self._clock and stamped:
            self._clock.after(self._slots)
            self._slots += 1
        self.ops += self._chunk
        self._last = self._mark()
        self._waiting.append(self._last)

    def _watch(self) -> None:
        """Note a tick: the moment at which the counter is first seen at a new value."""
        joules = self._energy()
        if joules != self._joules:
            self._joules = joules
            self.ticks.append((time.perf_counter(), joules))

    def finish(self, least_s: float) -> Energy:
        """Wait for the GPU and put the two halves together."""
        if self._clock:
            self._clock.queued()
        self._gpu.synchronize()
        steady_s = self._first.elapsed_time(self._last) / 1e3
        watts = mean_power(self.ticks, least_s)
        each = steady_s / self.ops
        clocks = [hz for hz in self._clock.read(self._slots) if hz is not None] if self._clock else []
        return Energy(
            joules_per_op=None if watts is None else watts * each,
            watts=watts,
            seconds_per_op=each,
            clock_hz=median(clocks) if clocks else None,
            ops=self.ops,
            seconds=steady_s,
            reason="" if watts is not None else "the energy counter did not move often enough",
        )
