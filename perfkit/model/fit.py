"""A power law through points: y = c x^p by least squares of logarithms, with the 95 % interval of p."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

#: Student's t at 97.5 % by degrees of freedom, and its limit.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T_LIMIT: Final = 1.960


class PowerLaw(msgspec.Struct, frozen=True, kw_only=True):
    """The fitted exponent, the ends of its 95 % interval (None for two points), and the factor."""

    exponent: float
    low: float | None
    high: float | None
    factor: float


def fit_power(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """The power law through the points (xs, ys), all positive; ValueError for fewer than two different xs.

    The interval assumes that what is left over scatters; where it is curvature (a smaller term of the law),
    it says how far the exponent is from settled over this range.
    """
    if len(xs) != len(ys) or len(set(xs)) < 2 or min(*xs, *ys) <= 0:
        raise ValueError("a power law needs two different positive x, and a positive y for each")
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_u, mean_v = math.fsum(u) / len(u), math.fsum(v) / len(v)
    spread = math.fsum((one - mean_u) ** 2 for one in u)
    slope = math.fsum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / spread
    free = len(u) - 2
    factor = math.exp(mean_v - slope * mean_u)
    if free < 1:
        return PowerLaw(exponent=slope, low=None, high=None, factor=factor)
    left = math.fsum((b - mean_v - slope * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    half = (_T[free - 1] if free <= len(_T) else _T_LIMIT) * math.sqrt(left / free / spread)
    return PowerLaw(exponent=slope, low=slope - half, high=slope + half, factor=factor)
