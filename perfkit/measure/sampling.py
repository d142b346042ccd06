"""What a GPU did while something ran: looks at NVML from a thread, and their summary.

A look costs well under a millisecond of host time and holds the interpreter lock only between NVML's calls;
a sample whose launches it delays is found out and dropped by `perfkit.measure.timing`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from perfkit.measure.nvml import GpuMonitor, GpuState
from perfkit.model.median import median


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Least, median and greatest of what was seen."""

    least: float
    median: float
    greatest: float


class GpuSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a GPU did during a stretch of time: None where it was never readable.

    `clock_reasons` gives for each reason the share of looks at which it was active, most frequent first.
    """

    looks: int
    seconds: float
    sm_clock_hz: Spread | None
    power_w: Spread | None
    temperature_c: Spread | None
    clock_reasons: dict[str, float]


_WATCHED: Final = ("sm_clock_hz", "power_w", "temperature_c", "clock_reasons")


def summarise(looks: list[GpuState], seconds: float) -> GpuSummary:
    """`looks`, `seconds` apart in total, in one line."""
    shares: dict[str, float] = {}
    for look in looks:
        for reason in look.clock_reasons or ():
            shares[reason] = shares.get(reason, 0.0) + 1 / len(looks)
    return GpuSummary(
        looks=len(looks),
        seconds=seconds,
        sm_clock_hz=_spread([look.sm_clock_hz for look in looks]),
        power_w=_spread([look.power_w for look in looks]),
        temperature_c=_spread([look.temperature_c for look in looks]),
        clock_reasons=dict(sorted(shares.items(), key=lambda item: -item[1])),
    )


def _spread(values: list[float | None]) -> Spread | None:
    seen = [value for value in values if value is not None]
    return Spread(least=min(seen), median=median(seen), greatest=max(seen)) if seen else None


class Sampling:
    """Looks at the GPU from a daemon thread; `summary` once it was stopped (or so far)."""

    def __init__(self, monitor: GpuMonitor, interval_s: float) -> None:
        self._monitor, self._interval_s = monitor, interval_s
        self._looks: list[GpuState] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="perfkit-nvml", daemon=True)
        self._began = self._end = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._began = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """Look no more, and wait for the look that is under way."""
        self._ended.set()
        self._thread.join()
        self._end = time.perf_counter()

    def _watch(self) -> None:
        while True:
            self._looks.append(self._monitor.state(*_WATCHED))
            if self._ended.wait(self._interval_s):
                return

    @property
    def summary(self) -> GpuSummary:
        """Everything seen so far."""
        return summarise(list(self._looks), (self._end or time.perf_counter()) - self._began)


@contextmanager
def sampling(monitor: GpuMonitor, interval_s: float = 0.02) -> Iterator[Sampling]:
    """Look at clock, power, temperature and reasons every `interval_s` from a thread, in the block."""
    looks = Sampling(monitor, interval_s)
    looks.start()
    try:
        yield looks
    finally:
        looks.stop()
