"""Time and DRAM traffic against N as pictures of characters: log-log, one letter per implementation."""

import math
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
from rich.text import Text

from perfkit.analysis.comparison import total, workloads
from perfkit.analysis.placement import Placement
from perfkit.analysis.study import Study
from perfkit.model.units import short_count
from perfkit.reports.places import length, only_length
from perfkit.reports.sweep_ticks import bytes_label, time_label, x_ticks, y_ticks

HEIGHT: Final = 14

#: (N, value) of one implementation, by N.
Curve = Sequence[tuple[int, float]]


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn: marks by implementation, lines (solid or dotted), and the labels of y."""

    marks: Mapping[str, Curve]
    lines: tuple[Curve, ...]
    dotted: tuple[Curve, ...]
    label: Callable[[float], str]


def letters(study: Study) -> dict[str, str]:
    """Implementation -> its letter in both pictures, in the order of the record."""
    names = dict.fromkeys(run.impl for run in study.record.runs)
    return dict(zip(names, string.ascii_uppercase, strict=False))


def time_plot(study: Study, width: int = 80) -> Text | None:
    """Time against N, a letter for each implementation; the least time where nothing was measured.

    None where there are not two lengths, or no time.
    """
    curves = _curves(study, lambda p: p.time_s or (p.least_s if p.run.status == "modelled" else None))
    return _picture(
        study, Picture(marks=curves, lines=tuple(curves.values()), dotted=(), label=time_label), width
    )


def traffic_plot(study: Study, width: int = 80) -> Text | None:
    """DRAM bytes against N: measured as letters, modelled as dots; all modelled, a letter on its line.

    None where there are not two lengths, or no bytes. Compulsory bytes of unknown tiles are not drawn.
    """
    measured = _curves(study, lambda p: total(p.run, ("dram_read", "dram_write")))
    if not measured:
        marks = _curves(study, _modelled_bytes)
        picture = Picture(marks=marks, lines=tuple(marks.values()), dotted=(), label=bytes_label)
        return _picture(study, picture, width)
    # A formula holds for runs that did not end well, too: what standard would move where it has no memory.
    dotted = tuple(_curves(study, _modelled_bytes, ended_well=False).values())
    return _picture(study, Picture(marks=measured, lines=(), dotted=dotted, label=bytes_label), width)


def _modelled_bytes(placement: Placement) -> float | None:
    return total(placement.run, ("dram_read_modelled", "dram_write_modelled"))


def _curves(
    study: Study, value: Callable[[Placement], float | None], ended_well: bool = True
) -> dict[str, Curve]:
    """The values of each implementation by N, of runs that can be true and (if so asked) ended well."""
    among, found = workloads(study), dict[str, list[tuple[int, float]]]()
    for finding in study.findings:
        p = finding.placement
        y = value(p)
        useful = not ended_well or (p.run.status in ("measured", "modelled") and not p.invalid)
        if y and useful:
            found.setdefault(p.run.impl, []).append((length(p.run.setting, among), y))
    return {impl: sorted(points) for impl, points in found.items()}


def _picture(study: Study, picture: Picture, width: int) -> Text | None:
    among = workloads(study)
    points = [point for curve in (*picture.marks.values(), *picture.dotted) for point in curve]
    if not only_length(among) or len({x for x, _ in points}) < 2:
        return None
    xs, ys = [math.log10(x) for x, _ in points], [math.log10(y) for _, y in points]
    margin = (max(xs) - min(xs)) / 16
    window = (min(xs) - margin, max(xs) + margin, min(ys) - 0.15, max(ys) + 0.15)
    return styled(draw(picture, letters(study), window, width, sorted({x for x, _ in points})))


def draw(
    picture: Picture,
    names: Mapping[str, str],
    window: tuple[float, float, float, float],
    width: int,
    lengths: Sequence[int],
) -> str:
    import plotext

    figure: Any = plotext.figure
    figure.clear()
    figure.plot_size(width, HEIGHT)
    figure.theme("colorless")
    for curve in picture.lines:
        _line(figure, _logs(curve))
    for curve in picture.dotted:
        _dots(figure, _logs(curve), width)
    _rulers(figure, window, lengths, picture.label)
    text: str = figure.build().string(colorless=True)
    figure.clear()
    return _marked(text, picture.marks, names, window)


def _logs(curve: Curve) -> list[tuple[float, float]]:
    return [(math.log10(x), math.log10(y)) for x, y in curve]


def _line(figure: Any, points: Sequence[tuple[float, float]]) -> None:
    signal = figure.signal([x for x, _ in points], [y for _, y in points], marker="braille")
    if len(points) > 1:
        signal.lines()
    figure.draw(signal)


def _dots(figure: Any, points: Sequence[tuple[float, float]], width: int) -> None:
    """A dotted line: a braille dot every other column or so."""
    xs, ys = [], []
    for (x0, y0), (x1, y1) in pairwise(points):
        steps = max(width // (2 * (len(points) - 1)), 1)
        xs += [x0 + (x1 - x0) * i / steps for i in range(steps + 1)]
        ys += [y0 + (y1 - y0) * i / steps for i in range(steps + 1)]
    if xs:
        figure.draw(figure.signal(xs, ys, marker="braille"))


def _marked(
    drawn: str,
    marks: Mapping[str, Curve],
    names: Mapping[str, str],
    window: tuple[float, float, float, float],
) -> str:
    """The drawing with a letter at every mark; one that would hide another stands beside it.

    Letters are set into the text, not drawn: only so is it certain which cell each of them takes.
    """
    left, right, low, high = window
    lines = [list(line) for line in drawn.rstrip("\n").split("\n")]
    first, last = lines[0].index("┌") + 1, lines[0].index("┐") - 1
    bottom = next(row for row, line in enumerate(lines) if "└" in line) - 1
    taken: set[tuple[int, int]] = set()
    for impl, curve in marks.items():
        for x, y in _logs(curve) if impl in names else ():
            column = first + round((x - left) / (right - left) * (last - first))
            row = 1 + round((high - y) / (high - low) * (bottom - 1))
            free = (
                c for c in (*range(column, last + 1), *range(column, first - 1, -1)) if (c, row) not in taken
            )
            column = next(free)
            taken.add((column, row))
            lines[row][column] = names[impl]
    return "\n".join("".join(line) for line in lines)


def _rulers(
    figure: Any,
    window: tuple[float, float, float, float],
    lengths: Sequence[int],
    label: Callable[[float], str],
) -> None:
    left, right, low, high = window
    x, y = figure.ruler("x"), figure.ruler("y")
    x.lim(left, right)
    shown = x_ticks(lengths)
    x.ticks([math.log10(n) for n in shown], [short_count(n) for n in shown])
    y.lim(low, high)
    ticks = y_ticks(low, high)
    y.ticks([math.log10(value) for value in ticks], [label(value) for value in ticks])


def styled(plot: str) -> Text:
    """Dim the lines; the letters say everything without colour."""
    text = Text(no_wrap=True, end="")
    for line in plot.rstrip("\n").split("\n"):
        for character in line.rstrip():
            text.append(character, "dim" if "\u2800" <= character <= "\u28ff" else "")
        text.append("\n")
    return text
