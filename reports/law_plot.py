"""Bytes against N, d and M as pictures of characters: log-log, a letter for an implementation and source."""

import math
import string
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import RenderableType
from rich.text import Text

from perfkit.analysis.law import VARIABLES, FittedLaw
from perfkit.analysis.sweeps import Source, Variable
from perfkit.reports.sweep_plot import Curve, Picture, draw, styled
from perfkit.reports.sweep_ticks import bytes_label

LEVEL_WORDS: Final = {"L2": "SM<->L2", "DRAM": "DRAM"}
#: In the order of their letters: the best first.
SOURCES: Final[tuple[Source, ...]] = ("measured", "counted", "modelled")

_AXES: Final[dict[Variable, str]] = {
    "N": "N",
    "d": "d, on-chip bytes fixed",
    "M": "M in elements",
}


def drawn(found: Sequence[FittedLaw]) -> tuple[FittedLaw, ...]:
    """What has a place: bytes at the level of the law; modelled ones where the same was not measured."""
    measured = {(one.sweep.impl, one.sweep.variable) for one in found if one.source == "measured"}
    return tuple(
        one
        for one in found
        if one.law is not None
        and not (one.source == "modelled" and (one.sweep.impl, one.sweep.variable) in measured)
    )


def beneath(found: Sequence[FittedLaw]) -> tuple[FittedLaw, ...]:
    """What was measured at DRAM where the law is of SM<->L2: what L2 leaves of the bytes."""
    return tuple(one for one in found if one.law is None and one.source == "measured" and one.level == "DRAM")


def letters(found: Sequence[FittedLaw]) -> dict[tuple[Source, str], str]:
    """(source, implementation) -> its letter in all pictures."""
    names = dict.fromkeys(
        (source, one.sweep.impl) for source in SOURCES for one in drawn(found) if one.source == source
    )
    return dict(zip(names, string.ascii_uppercase, strict=False))


def line(one: FittedLaw) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends of the law's slope through the last point, over the values of the sweep."""
    assert one.law is not None
    x, y = one.xs[-1], one.traffic[-1]
    return (one.xs[0], y * (one.xs[0] / x) ** one.law), (x, y)


def law_plots(found: Sequence[FittedLaw], width: int) -> Iterator[RenderableType]:
    """A picture for each variable below its title, `width` columns wide, and what the letters mean.

    Where the law is of SM<->L2, what was measured at DRAM has pictures of its own, without a slope.
    """
    names, rows = letters(found), drawn(found)
    for variable in VARIABLES:
        here = [one for one in rows if one.sweep.variable == variable]
        if here:
            yield Text(f"bytes against {_AXES[variable]}")
            yield _panel(here, names, width)
    for variable in VARIABLES:
        here = [one for one in beneath(found) if one.sweep.variable == variable]
        if here:
            yield Text(f"DRAM bytes against {_AXES[variable]} (measured; the same letters)")
            yield _panel(here, names, width)
    if rows:
        yield from _legend(rows, names)


def _panel(here: Sequence[FittedLaw], names: dict[tuple[Source, str], str], width: int) -> Text:
    marks: dict[str, Curve] = {}
    for key, letter in names.items():
        for one in here:
            if (one.source, one.sweep.impl) == key:
                marks[letter] = [(int(x), y) for x, y in zip(one.xs, one.traffic, strict=True)]
    slopes: list[Curve] = [[(int(x), y) for x, y in line(one)] for one in here if one.law is not None]
    points = [point for curve in (*marks.values(), *slopes) for point in curve]
    xs, ys = [math.log10(x) for x, _ in points], [math.log10(y) for _, y in points]
    margin = (max(xs) - min(xs)) / 16
    window = (min(xs) - margin, max(xs) + margin, min(ys) - 0.15, max(ys) + 0.15)
    picture = Picture(marks=marks, lines=tuple(slopes), dotted=(), label=bytes_label)
    ticks = sorted({x for curve in marks.values() for x, _ in curve})
    return styled(draw(picture, {letter: letter for letter in marks}, window, width, ticks))


def _legend(rows: Sequence[FittedLaw], names: dict[tuple[Source, str], str]) -> Iterator[Text]:
    """A line for each source, its letters with the level that their bytes were seen at."""
    levels = {(one.source, one.sweep.impl): LEVEL_WORDS[one.level] for one in rows}
    for source in SOURCES:
        mine = [(letter, impl) for (of, impl), letter in names.items() if of == source]
        if mine:
            said = (f"{letter} {impl} ({levels[source, impl]})" for letter, impl in mine)
            yield Text(f"{source}: {', '.join(said)}")
    yield Text("lines: the slope of the law, through the last point of each")
