"""Figure 2's middle and right panel as pictures of characters."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from perfkit.analysis.figure2 import BlockPoint, Line, SharePoint, fit_line
from perfkit.reports.figure2_rows import block_bytes, share_bytes
from perfkit.reports.sweep_plot import HEIGHT, Curve, Picture, draw, styled
from perfkit.reports.sweep_ticks import bytes_label, time_label

_GAP: Final = 2
LETTERS: Final = {"flash1": "A", "flash": "B"}
_MARK: Final = "C"
_MARGIN: Final = 0.04


def middle_plots(points: Sequence[BlockPoint], width: int) -> Iterator[RenderableType]:
    """SM<->L2 bytes against the block size, the paper's model dotted; time beside it where there is any."""
    source, moved = block_bytes(points)
    bytes_ = _curves(points, moved)
    if not bytes_:
        return
    paper = [(point.block, point.paper) for point in points if point.paper is not None]
    times = _curves(points, [point.time_s for point in points])
    legend = Text(", ".join(f"{letter} {impl}" for impl, letter in LETTERS.items() if impl in bytes_))
    legend.append("; dots: the paper's (2 + 3 T_c) u" if paper else "")
    half = (width - _GAP) // 2 if times else width
    parts = [(f"SM<->L2 bytes, {source}", _logs(bytes_, paper, bytes_label, half))]
    if times:
        parts.append(("time", _logs(times, [], time_label, half)))
    yield from (_beside(parts, half), legend)


def right_plot(points: Sequence[SharePoint], width: int) -> Iterator[RenderableType]:
    """Time against the share of blocks with the fitted line; SM<->L2 bytes where there is no time."""
    line = fit_line(points)
    source, moved = share_bytes(points)
    found = _known(points, [point.time_s for point in points])
    title, label = f"time of block-sparse ({_MARK}){', and the fitted line' if line else ''}", time_label
    if not found:
        found = _known(points, moved)
        title, label = f"SM<->L2 bytes of block-sparse ({_MARK}), {source}", bytes_label
    if found:
        yield _beside([(title, _linear(found, line, label, width))], width)


def _known(points: Sequence[SharePoint], values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(point.share, value) for point, value in zip(points, values, strict=True) if value is not None]


def _beside(parts: Sequence[tuple[str, Text]], width: int) -> RenderableType:
    """Pictures side by side, each below its title."""
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    for _ in parts:
        table.add_column(width=width, no_wrap=True)
    table.add_row(*(Text(title) for title, _ in parts))
    for _, picture in parts:
        picture.rstrip()
    table.add_row(*(picture for _, picture in parts))
    return table


def _curves(points: Sequence[BlockPoint], values: Sequence[float | None]) -> dict[str, Curve]:
    """Implementation -> its points by block size."""
    found: dict[str, list[tuple[int, float]]] = {}
    for point, value in zip(points, values, strict=True):
        if value:
            found.setdefault(point.impl, []).append((point.block, value))
    return {impl: sorted(curve) for impl, curve in found.items()}


def _logs(marks: dict[str, Curve], dotted: Curve, label: Callable[[float], str], width: int) -> Text:
    points = [point for curve in (*marks.values(), dotted) for point in curve]
    xs, ys = [math.log10(x) for x, _ in points], [math.log10(y) for _, y in points]
    margin = (max(xs) - min(xs)) / 16
    window = (min(xs) - margin, max(xs) + margin, min(ys) - 0.1, max(ys) + 0.1)
    lines = tuple(marks.values())
    picture = Picture(marks=marks, lines=lines, dotted=(dotted,) if dotted else (), label=label)
    return styled(draw(picture, LETTERS, window, width, sorted({x for x, _ in points})))


def _linear(
    points: Sequence[tuple[float, float]],
    line: Line | None,
    label: Callable[[float], str],
    width: int,
) -> Text:
    """Marks over a linear plane from 0 to 100 %, and the line."""
    import plotext

    top = max(y for _, y in points) * (1 + 2 * _MARGIN)
    figure: Any = plotext.figure
    figure.clear()
    figure.plot_size(width, HEIGHT)
    figure.theme("colorless")
    if line is not None:
        ends = figure.signal(
            [0.0, 1.0], [line.intercept_s, line.intercept_s + line.slope_s], marker="braille"
        )
        ends.lines()
        figure.draw(ends)
    figure.draw(figure.signal([x for x, _ in points], [y for _, y in points], marker=_MARK))
    x, y = figure.ruler("x"), figure.ruler("y")
    x.lim(-_MARGIN, 1 + _MARGIN)
    x.ticks([at / 5 for at in range(6)], [f"{at * 20} %" for at in range(6)])
    y.lim(0, top)
    ticks = linear_ticks(top)
    y.ticks(ticks, [label(at) if at else "0" for at in ticks])
    text: str = figure.build().string(colorless=True)
    figure.clear()
    return styled(text)


def linear_ticks(top: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to `top`, five at most."""
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [at * step for at in range(int(top / step) + 1)]
