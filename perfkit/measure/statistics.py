"""The median of timing samples, how well it is known, and when there are enough of them. Seconds throughout.

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


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Why sampling ended, in words, and whether the median had settled by then."""

    reason: str
    converged: bool


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


class StoppingRule(msgspec.Struct, frozen=True, kw_only=True):
    """When a measurement has enough samples (the scheme of nvbench, on the median instead of the mean).

    Enough is `min_samples` samples and `min_time_s` of sample time, and either a median known to
    `half_width` or noise that has reached its plateau: more samples would then only repeat it. After
    `limit_s` of wall time sampling ends anyway and the reason names what was not met.
    """

    min_samples: int = 10
    min_time_s: float = 0.5
    half_width: float = 0.005
    window: int = 32
    plateau: float = 0.05
    limit_s: float = 5.0

    def check(self, samples: Sequence[float], elapsed_s: float) -> Stop | None:
        """None to go on. `elapsed_s` is wall time since the first sample was asked for."""
        unmet = self._unmet_minimum(samples)
        if not unmet:
            width = relative_half_width(samples)
            if width is not None and width < self.half_width:
                return Stop(
                    reason=f"median known to {width:.2%} (below {self.half_width:.2%})", converged=True
                )
            if width is not None and self.on_plateau(samples):
                return Stop(reason=f"noise plateau: median known to {width:.2%}", converged=True)
            known = "unknown" if width is None else f"known to {width:.2%} only"
            unmet = f"median {known}, not {self.half_width:.2%}, and no noise plateau"
        if elapsed_s >= self.limit_s:
            return Stop(reason=f"time limit of {self.limit_s:g} s: {unmet}", converged=False)
        return None

    def _unmet_minimum(self, samples: Sequence[float]) -> str:
        if len(samples) < self.min_samples:
            return f"{len(samples)} of {self.min_samples} samples"
        total = math.fsum(samples)
        return f"{total:.3g} s of {self.min_time_s:g} s sample time" if total < self.min_time_s else ""

    def on_plateau(self, samples: Sequence[float]) -> bool:
        """Whether the noise of one sample stayed within `plateau` over the last window.

        The last window is the newer half, at least `window` samples: dispersion of all samples is held
        against dispersion of those before it. A falling one says that the chip still warms up, a rising
        one that clock or temperature drifts: neither is a plateau.
        """
        before = len(samples) - max(self.window, len(samples) // 2)
        if before < self.window:
            return False
        then, now = dispersion(samples[:before]), dispersion(samples)
        return abs(now - then) <= self.plateau * max(then, now)
