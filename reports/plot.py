"""The roofline as a picture of characters: log-log, one roof per clock, one diagonal per memory level."""

import math
import string
from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.text import Text

from perfkit.analysis.placement import Placement, Roof
from perfkit.analysis.study import Study
from perfkit.model.units import power_of_ten, show

HEIGHT: Final = 20
DOT: Final = "."


def letters(study: Study) -> dict[str, str]:
    """Implementation -> its letter: upper case at DRAM, lower case at SM<->L2."""
    names = dict.fromkeys(placement.run.impl for placement in drawn(study))
    return dict(zip(names, string.ascii_uppercase, strict=False))


def drawn(study: Study) -> list[Placement]:
    """What has a place: runs that were measured, or modelled on purpose, and that can be true."""
    placements = [finding.placement for finding in study.findings]
    return [
        p
        for p in placements
        if p.points and p.datasheet and not p.invalid and (p.time_s or p.run.status == "modelled")
    ]


def height_of(placement: Placement) -> float | None:
    """Where a mark stands: what was achieved, or what could be where nothing was measured."""
    return placement.achieved or placement.best


class Window:
    """The part of the log-log plane that is shown, in powers of ten."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], top: float) -> None:
        self.left = math.floor(math.log10(min(xs)) * 2 - 1.0) / 2
        self.right = math.ceil(math.log10(max(xs)) * 2 + 0.5) / 2
        self.low = math.floor(math.log10(min(ys)) * 2 - 0.5) / 2
        self.high = math.log10(top) + 0.2


def roofline(study: Study, width: int) -> Text | None:
    """The plot, `width` columns wide; None where there is nothing to place."""
    placed = drawn(study)
    if not placed:
        return None
    sheet = placed[0].datasheet
    assert sheet is not None
    clocked = [p.roof for p in placed if p.roof and p.roof.source == "run clock"]
    lowest = min(clocked, key=lambda roof: roof.clock_hz, default=None)
    roofs = [sheet, *([lowest] if lowest else [])]
    ridges = [roof.compute / rate for roof in roofs for rate in roof.bandwidth.values()]
    heights = [height for p in placed if (height := height_of(p))]
    window = Window(
        [*(point.intensity for p in placed for point in p.points), *ridges],
        [*heights, sheet.compute / 8],
        max(roof.compute for roof in roofs),
    )
    return _styled(_draw(study, placed, sheet, lowest, window, width))


def _draw(
    study: Study, placed: Sequence[Placement], sheet: Roof, run: Roof | None, window: Window, width: int
) -> str:
    import plotext

    figure: Any = plotext.figure
    figure.clear()
    figure.plot_size(width, HEIGHT)
    figure.theme("colorless")
    for level, rate in sheet.bandwidth.items():
        _line(figure, window, rate, sheet.compute)
        _label_slope(figure, window, level, rate, sheet.compute)
    if run is not None:
        _dotted(figure, window, run)
    for x, y, symbol in _marks(study, placed, window, width):
        figure.draw(figure.signal([x], [y], marker=symbol))
    _rulers(figure, window)
    text: str = figure.build().string(colorless=True)
    figure.clear()
    return text


def _marks(
    study: Study, placed: Sequence[Placement], window: Window, width: int
) -> Iterator[tuple[float, float, str]]:
    """Every mark as (x, y, letter) in powers of ten; one that would hide another moves right beside it."""
    cell_x = (window.right - window.left) / (width - 8)
    cell_y = (window.high - window.low) / (HEIGHT - 4)
    taken: set[tuple[int, int]] = set()
    mark = letters(study)
    for placement in placed:
        height = height_of(placement)
        for point in placement.points if height else ():
            assert height is not None
            name = mark[placement.run.impl]
            x, y = math.log10(point.intensity), math.log10(height)
            column, row = round((x - window.left) / cell_x), round((y - window.low) / cell_y)
            while (column, row) in taken:
                x, column = x + cell_x, column + 1
            taken.add((column, row))
            yield x, y, name if point.level == "DRAM" else name.lower()


def _line(figure: Any, window: Window, rate: float, compute: float) -> None:
    """One roof: the diagonal of a memory level up to the ridge, then flat."""
    ridge, top = math.log10(compute / rate), math.log10(compute)
    start = max(window.left, window.low - math.log10(rate))
    xs = [start, ridge, window.right] if start < ridge else [window.left, window.right]
    ys = [start + math.log10(rate), top, top] if start < ridge else [top, top]
    signal = figure.signal(xs, ys, marker="braille")
    signal.lines()
    figure.draw(signal)


def _dotted(figure: Any, window: Window, roof: Roof) -> None:
    ridge = min((roof.compute / rate for rate in roof.bandwidth.values()), default=1.0)
    start = max(window.left, math.log10(ridge))
    count = 40
    xs = [start + (window.right - start) * i / count for i in range(count + 1)]
    figure.draw(figure.signal(xs, [math.log10(roof.compute)] * len(xs), marker=DOT))


def _label_slope(figure: Any, window: Window, level: str, rate: float, compute: float) -> None:
    """The name of a diagonal, right of its middle, where the diagonal is inside the window."""
    ridge = math.log10(compute / rate)
    start = max(window.left, window.low - math.log10(rate))
    if start >= ridge:
        return
    name = "L2" if level == "L2" else level
    # L2 stands left of its line and DRAM right of it, so that neighbours do not collide.
    at = start + (ridge - start) * (0.75 if level == "L2" else 0.25)
    label = f"{name} {show(rate, 'byte_rate')}"
    side = "right" if level == "L2" else "left"
    shift = -0.08 if level == "L2" else 0.12
    figure.draw(figure.text(at + shift, at + math.log10(rate), label, alignment=side))


def _rulers(figure: Any, window: Window) -> None:
    x = figure.ruler("x")
    x.lim(window.left, window.right)
    xs = range(math.ceil(window.left), math.floor(window.right) + 1)
    x.ticks(list(xs), [_plain(10.0**power) for power in xs])
    y = figure.ruler("y")
    y.lim(window.low, window.high)
    ys = range(math.ceil(window.low), math.floor(window.high) + 1)
    y.ticks(list(ys), [power_of_ten(10.0**power) for power in ys])


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _styled(plot: str) -> Text:
    """Dim the roofs; the marks say everything without colour."""
    text = Text(no_wrap=True, end="")
    for line in plot.rstrip("\n").split("\n"):
        for character in line.rstrip():
            text.append(character, "dim" if "\u2800" <= character <= "\u28ff" else "")
        text.append("\n")
    return text
