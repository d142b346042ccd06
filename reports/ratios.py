"""Ratios as text: how many digits, and when `fewer` is said."""

from typing import Final

from perfkit.analysis.speed import Ratio
from perfkit.model.units import significant

#: Ratios from this to its inverse are shown with three decimals: 1.00 says nothing about a percent.
_CLOSE: Final = 1.1
#: At this ratio and below, `2.00x fewer` is said instead of `0.500x`.
FEWER: Final = 2 / 3


def ratio_text(ratio: float, less: str = "fewer") -> str:
    """A ratio to the baseline as people say it: `256x fewer`, `0.900x`, `1.02x`."""
    if 0 < ratio <= FEWER:
        return f"{significant(1 / ratio)}x {less}"
    return f"{significant(ratio)}x"


def inverse(ratio: Ratio) -> Ratio:
    """The ratio the other way round, its interval too."""
    return Ratio(
        value=1 / ratio.value,
        low=None if ratio.high is None else 1 / ratio.high,
        high=None if ratio.low is None else 1 / ratio.low,
    )


def numbers_text(ratio: Ratio) -> tuple[str, str, str]:
    """A ratio and the ends of its interval with as many decimals as tell the ends apart, one more at most."""
    value, ends = ratio.value, (ratio.low, ratio.high)
    least = len(significant(value).partition(".")[2])
    least = max(least, 3) if 1 / _CLOSE < value < _CLOSE else least
    for decimals in (least, least + 1):
        low, high = ("-" if end is None else f"{end:.{decimals}f}" for end in ends)
        if low != high:
            return f"{value:.{decimals}f}", low, high
    return tuple("-" if n is None else f"{n:.{least}f}" for n in (value, *ends))  # type: ignore[return-value]
