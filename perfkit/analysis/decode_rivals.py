"""Several implementations of a decode step on one grid: which is the fastest at each batch and context."""

from collections.abc import Sequence

import msgspec

from perfkit.analysis.decode_map import DecodeCell, DecodeMap
from perfkit.analysis.speed import compare_times


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast a cell is as the one beside it, and whether the samples tell them apart."""

    ratio: float
    apart: bool


def pace(base: DecodeCell, other: DecodeCell) -> Pace | None:
    """`other` beside `base`; None where not both were measured, or not both modelled."""
    if base.placement is None or other.placement is None or base.provenance != other.provenance:
        return None
    if base.time_s is None or other.time_s is None:
        return None
    ratio = base.time_s / other.time_s
    if base.provenance == "modelled":
        return Pace(ratio=ratio, apart=ratio != 1)
    one, two = base.placement.run.timing, other.placement.run.timing
    if one is None or two is None:
        return Pace(ratio=ratio, apart=False)
    times, verdict = compare_times(one, two)
    return Pace(ratio=times.value, apart=verdict.status in ("faster", "slower"))


def winners(family: Sequence[DecodeMap]) -> dict[tuple[str, ...], int]:
    """Implementations -> the number of cells in which they are the fastest.

    Several stand together where none of them can be told from the fastest. Cells in which fewer than two have
    numbers are no contest.
    """
    found: dict[tuple[str, ...], int] = {}
    for cells in zip(*(one.cells for one in family), strict=True):
        known = [(one.impl, cell) for one, cell in zip(family, cells, strict=True) if cell.time_s is not None]
        if len(known) > 1:
            _, best = min(known, key=lambda pair: pair[1].time_s or 0.0)
            names = tuple(impl for impl, cell in known if cell is best or _level(best, cell))
            found[names] = found.get(names, 0) + 1
    return found


def _level(best: DecodeCell, other: DecodeCell) -> bool:
    between = pace(best, other)
    return between is not None and not between.apart
