"""The median of samples and how well it is known. Any unit.

Times of a kernel are skewed and clustered (clock steps, power cap), so nothing here assumes a normal
distribution: the interval is the order-statistics one, which only assumes independent samples.
"""

import math
import statistics as _stdlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

CONFIDENCE: Final = 0.95
#: Beyond this many samples the binomial tail is replaced by its normal limit (ranks agree within one).
_EXACT_UP_TO: Final = 1000
_Z95: Final = 1.959964


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """The 95 % confidence interval of a median: both ends are samples."""

    low: float
    high: float


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two middle ones; ValueError for none."""
    if not samples:
        raise ValueError("the median of no samples does not exist")
    return _stdlib.median(samples)


@lru_cache(maxsize=4096)
def interval_rank(count: int) -> int:
    """The largest k such that [k-th smallest, k-th largest] of `count` samples covers the median with 95 %.

    P(the median lies outside) = 2 * P(Binomial(count, 1/2) <= k - 1). 0 where no pair of samples is enough
    (fewer than 6). David & Nagaraja, Order Statistics, section 7.1.
    """
    if count > _EXACT_UP_TO:
        return int((count - _Z95 * math.sqrt(count)) / 2)
    allowed = (1 - CONFIDENCE) / 2 * 2**count
    tail, rank = 0, 0
    while rank < count // 2:
        tail += math.comb(count, rank)
        if tail > allowed:
            break
        rank += 1
    return rank


def median_interval(samples: Sequence[float]) -> Interval | None:
    """The distribution-free 95 % confidence interval of the median; None below 6 samples."""
    return _interval_of_sorted(sorted(samples))


def _interval_of_sorted(ordered: Sequence[float]) -> Interval | None:
    rank = interval_rank(len(ordered))
    return Interval(low=ordered[rank - 1], high=ordered[-rank]) if rank else None


def relative_half_width(samples: Sequence[float]) -> float | None:
    """Half the interval's width over the median; None below 6 samples or for a median of zero."""
    ordered = sorted(samples)
    interval = _interval_of_sorted(ordered)
    middle = median(ordered) if ordered else 0.0
    return (interval.high - interval.low) / (2 * middle) if interval and middle > 0 else None


def dispersion(samples: Sequence[float]) -> float:
    """Interquartile range over the median: the noise of one sample, whatever their number."""
    ordered = sorted(samples)
    middle = median(ordered)
    quarter = len(ordered) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / middle if middle > 0 else 0.0
