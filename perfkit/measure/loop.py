"""Sampling until there is enough: the part of timing that needs no GPU. Seconds throughout."""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from perfkit.measure.statistics import Stop, StoppingRule, relative_half_width
from perfkit.record import INTERRUPTED

#: Wall time of a batch: long enough to amortise the wait at its end, short enough for Ctrl-C.
BATCH_S: Final = 0.1
FIRST_BATCH: Final = 5
LARGEST_BATCH: Final = 1000


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Valid samples of one batch, the SM clock of each (Hz, None if unknown), and how many were dropped."""

    samples_s: list[float]
    clock_hz: list[float | None]
    dropped: int = 0


class Sampler(Protocol):
    """Whatever takes samples: a GPU, or a list of numbers in a test."""

    def batch(self, count: int) -> Batch:
        """Take `count` samples; those that were not valid are dropped and counted."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a measurement is; `half_width` is relative, None below 6 samples."""

    samples: int
    elapsed_s: float
    half_width: float | None


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of a whole measurement and why it ended there."""

    samples_s: list[float]
    clock_hz: list[float | None]
    dropped: int
    stop: Stop


def collect(
    sampler: Sampler,
    rule: StoppingRule,
    now: Callable[[], float],
    on_progress: Callable[[Progress], None] | None = None,
) -> Collected:
    """Take batches until `rule` is content.

    Ctrl-C ends it early and keeps the samples so far, with the stop reason `interrupted`; only when there are
    none does KeyboardInterrupt come through. Which one it was is for the caller to see and to act on.
    """
    samples: list[float] = []
    clocks: list[float | None] = []
    dropped, count, began = 0, FIRST_BATCH, now()
    stop: Stop | None = None
    try:
        while stop is None:
            asked = now()
            batch = sampler.batch(count)
            samples += batch.samples_s
            clocks += batch.clock_hz
            dropped += batch.dropped
            # Without a single sample there is nothing to report: the sampler gives in, not the clock.
            stop = rule.check(samples, now() - began) if samples else None
            count = next_count(count, now() - asked)
            if on_progress:
                width = relative_half_width(samples)
                on_progress(Progress(samples=len(samples), elapsed_s=now() - began, half_width=width))
    except KeyboardInterrupt:
        if not samples:
            raise
        stop = Stop(reason=INTERRUPTED, converged=False)
    return Collected(samples_s=samples, clock_hz=clocks, dropped=dropped, stop=stop)


def next_count(count: int, took_s: float) -> int:
    """How many samples fill BATCH_S when `count` of them took `took_s`."""
    fitting = int(BATCH_S * count / took_s) if took_s > 0 else LARGEST_BATCH
    return max(1, min(fitting, LARGEST_BATCH))
