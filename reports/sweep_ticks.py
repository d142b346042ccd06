"""Ticks of a picture against N: which lengths, times and bytes are labelled, and how."""

import math
from collections.abc import Sequence
from typing import Final

from perfkit.model.units import power_of_ten

#: A picture with more labels below it than this is no longer read.
_MOST_TICKS: Final = 10
_SECONDS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def x_ticks(lengths: Sequence[int]) -> list[int]:
    """Powers of two within the lengths; the lengths themselves where those are too few."""
    first, last = math.ceil(math.log2(lengths[0])), math.floor(math.log2(lengths[-1]))
    step = max(last - first, 0) // _MOST_TICKS + 1
    powers = [1 << power for power in range(first, last + 1, step)]
    if len(powers) >= 2:
        return powers
    return list(lengths[:: len(lengths) // _MOST_TICKS + 1])


def y_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the ends (in powers of ten); with their 2 and 5 fold where those are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    tens = [10.0**power for power in powers if low <= power <= high]
    if len(tens) > 2:
        return tens
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [value for value in fine if low <= math.log10(value) <= high]


def time_label(value: float) -> str:
    """`5 ms`."""
    scale, unit = next(((s, u) for s, u in _SECONDS if value >= s * 0.9995), _SECONDS[-1])
    return f"{value / scale:g} {unit}"


def bytes_label(value: float) -> str:
    """`10 GB`."""
    text = power_of_ten(value)
    return f"{text}B" if " " in text else f"{text} B"
