"""Which of two timings is shorter, by how much, and is that certain.

A difference counts only where the whole interval of the speed-up lies beyond a threshold, the intervals of
the two medians do not touch, and clock cycles say the same: a chip that clocked down is no slower kernel.
The idea of disjoint intervals confirmed in cycles is nvbench's (its robust comparison).
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from perfkit.model.median import median, median_interval
from perfkit.record import Timing

#: Differences up to this are not told apart: A/A comparisons scatter within it.
THRESHOLD: Final = 0.01
#: Samples below which a median has no interval.
LEAST: Final = 6

SpeedStatus = Literal["faster", "slower", "same", "undecided", "unmeasured"]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio and the ends of its 95 % interval, None where there are none."""

    value: float
    low: float | None = None
    high: float | None = None


class SpeedVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the candidate is beside the baseline, and why."""

    status: SpeedStatus
    reason: str


def compare_times(
    base: Timing, candidate: Timing, threshold: float = THRESHOLD, *, together: bool = True
) -> tuple[Ratio, SpeedVerdict]:
    """The speed-up of `candidate` over `base`, and the verdict on it.

    Timings that were taken `together`, interleaved in one session, are compared round by round, so that drift
    of the clock cancels; others by the ends of their intervals.
    """
    both = base.interleaved and candidate.interleaved
    paired = together and both and len(base.samples_s) == len(candidate.samples_s)
    times = speedup(base.samples_s, candidate.samples_s, paired)
    if times.low is None or times.high is None:
        return times, SpeedVerdict(status="undecided", reason=f"fewer than {LEAST} samples")
    cycles = _cycles(base, candidate, paired)
    return times, _verdict(times, cycles, _touch(base, candidate), threshold)


def speedup(base: Sequence[float], candidate: Sequence[float], paired: bool) -> Ratio:
    """Median of `base` over median of `candidate`, with its interval.

    Paired: the interval of the median of the rounds' ratios. Else: from the ends of both medians' intervals.
    """
    value = median(base) / median(candidate)
    if paired:
        rounds = [one / two for one, two in zip(base, candidate, strict=True)]
        interval = median_interval(rounds)
        return Ratio(
            value=median(rounds),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
        )
    one, two = median_interval(base), median_interval(candidate)
    if one is None or two is None:
        return Ratio(value=value)
    return Ratio(value=value, low=one.low / two.high, high=one.high / two.low)


def _cycles(base: Timing, candidate: Timing, paired: bool) -> Ratio | None:
    """The ratio of clock cycles; None where no stamp on the GPU gave the clock of the samples."""
    if base.clock_source != "probe" or candidate.clock_source != "probe":
        return None
    ones, twos = _cycles_of(base), _cycles_of(candidate)
    if paired:
        known = [at for at in range(len(ones)) if ones[at] is not None and twos[at] is not None]
        ones, twos = [ones[at] for at in known], [twos[at] for at in known]
    one, two = ([cycles for cycles in side if cycles is not None] for side in (ones, twos))
    return speedup(one, two, paired) if min(len(one), len(two)) >= LEAST else None


def _cycles_of(timing: Timing) -> list[float | None]:
    """Clock cycles of every sample; None where its clock is not known."""
    both = zip(timing.samples_s, timing.clock_hz, strict=True)
    return [None if hz is None else seconds * hz for seconds, hz in both]


def _touch(base: Timing, candidate: Timing) -> bool:
    """Whether the intervals of the two medians have a point in common."""
    one, two = median_interval(base.samples_s), median_interval(candidate.samples_s)
    return one is None or two is None or (one.low <= two.high and two.low <= one.high)


def direction(ratio: Ratio, threshold: float) -> SpeedStatus:
    """Where the whole interval lies: beyond the threshold, within it, or across its edge."""
    assert ratio.low is not None
    assert ratio.high is not None
    if ratio.low > 1 + threshold:
        return "faster"
    if ratio.high < 1 / (1 + threshold):
        return "slower"
    within = ratio.low >= 1 / (1 + threshold) and ratio.high <= 1 + threshold
    return "same" if within else "undecided"


def _verdict(times: Ratio, cycles: Ratio | None, touching: bool, threshold: float) -> SpeedVerdict:
    status = direction(times, threshold)
    if status == "undecided":
        reason = f"the interval {times.low:.3f} to {times.high:.3f} reaches across {threshold:.1%}"
        return SpeedVerdict(status="undecided", reason=reason)
    if status == "same":
        reason = f"the interval {times.low:.3f} to {times.high:.3f} is within {threshold:.1%}"
        if cycles is not None and direction(cycles, threshold) in ("faster", "slower"):
            reason += f"; in cycles {cycles.value:.3f}, so the clocks differed"
        return SpeedVerdict(status="same", reason=reason)
    if touching:
        return SpeedVerdict(status="undecided", reason="the intervals of the two medians overlap")
    if cycles is None:
        return SpeedVerdict(status=status, reason="intervals apart; the clock of the samples is not known")
    if direction(cycles, threshold) != status:
        reason = f"{times.value:.3f} in time but {cycles.value:.3f} in cycles: the clocks differed"
        return SpeedVerdict(status="undecided", reason=reason)
    return SpeedVerdict(status=status, reason="intervals apart, in time and in cycles")
