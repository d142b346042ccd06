"""Sampling until there is enough: the part of timing that needs no GPU. Seconds throughout."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from perfkit.measure.stopping import Stop, StoppingRule
from perfkit.model.median import relative_half_width
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
    """Whatever takes samples of one piece of work or several: a GPU, or a list of numbers in a test."""

    @property
    def works(self) -> int:
        """How many pieces of work there are."""

    def batch(self, count: int) -> list[Batch]:
        """Take `count` rounds, a sample of every work in each, and give a batch a work.

        A round with a sample that is not valid is dropped for all, and counted: sample i of every batch is of
        one round.
        """


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
) -> list[Collected]:
    """Take batches until `rule` is content with every work.

    Ctrl-C ends it early and keeps the samples so far, with the stop reason `interrupted`; only when there are
    none does KeyboardInterrupt come through. Which one it was is for the caller to see and to act on.
    """
    taken = [_Taken() for _ in range(sampler.works)]
    count, began = FIRST_BATCH, now()
    stops: list[Stop | None] = [None]
    try:
        while None in stops:
            asked = now()
            for one, batch in zip(taken, sampler.batch(count), strict=True):
                one.add(batch)
            elapsed = now() - began
            # Without a single sample there is nothing to report: the sampler gives in, not the clock.
            stops = [_check(rule, one.samples_s, elapsed, taken) for one in taken]
            count = next_count(count, now() - asked)
            if on_progress:
                samples = taken[0].samples_s
                width = relative_half_width(samples)
                on_progress(Progress(samples=len(samples), elapsed_s=now() - began, half_width=width))
    except KeyboardInterrupt:
        if not all(one.samples_s for one in taken):
            raise
        stops = [Stop(reason=INTERRUPTED, converged=False) for _ in taken]
    return [one.collected(stop) for one, stop in zip(taken, stops, strict=True) if stop is not None]


def _check(
    rule: StoppingRule, samples: Sequence[float], elapsed_s: float, taken: "Sequence[_Taken]"
) -> Stop | None:
    """What the rule says of one work. The time limit is a work's: several share the sum of theirs.

    So is the least time: a short work that is timed together with a long one gets its samples, not its time.
    """
    if not samples:
        return None
    mean_s = sum(sum(one.samples_s) for one in taken) / len(taken)
    return rule.check(samples, elapsed_s / len(taken), mean_s)


@dataclass(slots=True)
class _Taken:
    """What was taken of one work so far."""

    samples_s: list[float] = field(default_factory=list)
    clock_hz: list[float | None] = field(default_factory=list)
    dropped: int = 0

    def add(self, batch: Batch) -> None:
        self.samples_s += batch.samples_s
        self.clock_hz += batch.clock_hz
        self.dropped += batch.dropped

    def collected(self, stop: Stop) -> Collected:
        return Collected(samples_s=self.samples_s, clock_hz=self.clock_hz, dropped=self.dropped, stop=stop)


def next_count(count: int, took_s: float) -> int:
    """How many samples fill BATCH_S when `count` of them took `took_s`."""
    fitting = int(BATCH_S * count / took_s) if took_s > 0 else LARGEST_BATCH
    return max(1, min(fitting, LARGEST_BATCH))


def slots_in_turn(rounds: int, works: int, draw: random.Random) -> list[int]:
    """The order in which samples are taken: slot = round * works + work; A B B A, or B A A B, for two works.

    Every second round goes backwards, so that a drift of the clock that is even over two rounds meets every
    work alike. The order itself is drawn anew for every two: what ran before leaves caches and power behind,
    and in a fixed order of three the same work would always profit.
    """
    order: list[int] = []
    turn = list(range(works))
    for at in range(rounds):
        if at % 2:
            turn.reverse()
        else:
            draw.shuffle(turn)
        order += (at * works + work for work in turn)
    return order
