"""Figure 2 in the HTML report: the left table as bars, traffic and time by block size, time by share."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from perfkit.analysis.figure2 import BlockPoint, Figure2, Left, fit_line
from perfkit.analysis.sweeps import Source
from perfkit.model.units import Hint, show
from perfkit.ops.attention_figure2 import DEVICE
from perfkit.reports.figure2_plot import linear_ticks
from perfkit.reports.figure2_rows import (
    HERE,
    LeftRow,
    block_bytes,
    left_rows,
    printed_text,
    share_bytes,
)
from perfkit.reports.figure2_words import line_words
from perfkit.reports.html.cells import MARKS, Looks
from perfkit.reports.html.embed import plain
from perfkit.reports.html.figure import MARK_SIZE, Figure, Layout, Trace, axis, value_ticks
from perfkit.reports.html.law import Chart
from perfkit.reports.law_plot import SOURCES
from perfkit.reports.sweep_ticks import bytes_label, time_label

#: Room right of the longest bar for its number, and above the highest mark.
_ROOM: Final = 1.4
_ABOVE: Final = 1.08
#: How much of its colour a number has that was not measured.
_PALE: Final = 0.5
_SPARSE: Final = "block-sparse"


def figure2_chart(figure: Figure2, looks: Looks, name: str) -> Chart:
    """Bytes and runtime of the left table, bytes and time of the middle panel, and the right panel."""
    figures = [*_left(figure.left, looks, name)] if figure.left else []
    figures += [*_middle(figure.middle, looks, name)] if figure.middle else []
    figures += [*_right(figure, looks, name)] if figure.right else []
    shown = {trace["meta"]["look"] for one in figures for trace in one.data if "look" in trace["meta"]}
    used = {trace["meta"].get("source") for one in figures for trace in one.data}
    return Chart(
        figures=tuple(figures),
        looks={impl: look for impl, look in looks.items() if look.index in shown},
        sources=tuple(source for source in SOURCES if source in used),
        line=f"the paper on {DEVICE}, its formula, or the fitted line",
    )


def _left(left: Left, looks: Looks, name: str) -> Iterator[Figure]:
    for label, title, key in (("HBM bytes", "HBM bytes", "bytes"), ("runtime", "runtime", "time")):
        rows = [row for row in left_rows(left) if row.label == label]
        bars = [*_of_paper(rows, 0, "standard"), *_of_runs(rows, HERE[:2], looks)]
        bars += [*_of_paper(rows, 1, "flash"), *_of_runs(rows, HERE[2:], looks)]
        top = max(bar["x"][0] for bar in bars) * _ROOM
        ticks = linear_ticks(top)
        tick: Callable[[float], str] = bytes_label if key == "bytes" else time_label
        yield Figure(
            id=f"{name}-left-{key}",
            title=f"GPT-2 medium, forward + backward: {title}",
            data=bars,
            layout={
                "barmode": "overlay",
                "xaxis": _linear("", [0, top], ticks, [tick(at) if at else "0" for at in ticks]),
                "yaxis": {"title": {"text": ""}, "type": "category", "autorange": "reversed"},
            },
        )


def _of_paper(rows: Sequence[LeftRow], at: int, name: str) -> Iterator[Trace]:
    """What is printed of one column, and what its formula gives."""
    for row in rows:
        for value, label, pale in ((row.paper[at], "paper", 1.0), (row.formula[at], "formula", _PALE)):
            if value is not None:
                text = printed_text(value, row.hint) if label == "paper" else f"{show(value, row.hint)}*"
                yield _bar(f"{label}, {name}", value, text, pale, {})


def _of_runs(rows: Sequence[LeftRow], impls: Sequence[str], looks: Looks) -> Iterator[Trace]:
    for impl in impls:
        for row in rows:
            value = row.here[HERE.index(impl)]
            if value is not None and row.source != "printed":
                text = show(value, row.hint) + MARKS[row.source]
                pale = 1.0 if row.source == "measured" else _PALE
                meta: Layout = {"hue": looks[impl].hue, "look": looks[impl].index, "source": row.source}
                yield _bar(f"{impl}, {row.source}", value, text, pale, meta)


def _bar(label: str, value: float, text: str, opacity: float, meta: Layout) -> Trace:
    return {
        "type": "bar", "orientation": "h", "name": plain(label), "x": [value], "y": [plain(label)],
        "text": [text], "textposition": "outside", "cliponaxis": False,
        "hovertext": [f"<b>{plain(label)}</b><br>{text}"], "marker": {"opacity": opacity}, "meta": meta,
    }  # fmt: skip


def _middle(points: Sequence[BlockPoint], looks: Looks, name: str) -> Iterator[Figure]:
    source, moved = block_bytes(points)
    curves = [*_curves(points, moved, source, "bytes", looks)]
    if curves:
        title = f"SM<->L2 bytes, {source}, against the block size"
        yield _blocks(f"{name}-middle-bytes", title, [*_paper(points), *curves], "bytes")
    times = [*_curves(points, [point.time_s for point in points], "measured", "time", looks)]
    if times:
        yield _blocks(f"{name}-middle-time", "time against the block size", times, "time")


def _blocks(name: str, title: str, data: list[Trace], hint: Hint) -> Figure:
    xs = sorted({x for trace in data for x in trace["x"]})
    ys = [y for trace in data for y in trace["y"]]
    ticks = {float(x): str(x) for x in xs}
    return Figure(
        id=name,
        title=title,
        data=data,
        layout={
            "xaxis": axis("block size", math.log10(xs[0]) - 0.12, math.log10(xs[-1]) + 0.12, ticks),
            "yaxis": axis("", math.log10(min(ys)) - 0.15, math.log10(max(ys)) + 0.15,
                          value_ticks(min(ys), max(ys), hint)),
        },
    )  # fmt: skip


def _paper(points: Sequence[BlockPoint]) -> Iterator[Trace]:
    known = [(point.block, point.paper) for point in points if point.paper is not None]
    if known:
        yield {
            "type": "scatter", "mode": "lines", "name": "paper", "line": {"width": 1.2},
            "x": [x for x, _ in known], "y": [y for _, y in known],
            "text": [f"the paper's (2 + 3 T_c) u<br>block {x}: {show(y, 'bytes')}*" for x, y in known],
            "meta": {},
        }  # fmt: skip


def _curves(
    points: Sequence[BlockPoint], values: Sequence[float | None], source: Source, hint: Hint, looks: Looks
) -> Iterator[Trace]:
    """The marks of each implementation: filled where measured, open where counted, pale where modelled."""
    for impl in dict.fromkeys(point.impl for point in points):
        known = [(p, y) for p, y in zip(points, values, strict=True) if p.impl == impl and y]
        look = looks[impl]
        if known:
            texts = [
                f"<b>{plain(impl)}</b>, tile {p.block_m} x {p.block_n}, {source}<br>"
                f"block {p.block}: {show(y, hint)}{MARKS[source]}"
                for p, y in known
            ]
            yield {
                "type": "scatter", "mode": "lines+markers", "name": plain(impl),
                "x": [p.block for p, _ in known], "y": [y for _, y in known], "text": texts,
                "line": {"width": 1, "dash": "dot"}, "marker": _mark(look.symbol, source),
                "meta": {"hue": look.hue, "look": look.index, "source": source},
            }  # fmt: skip


def _mark(symbol: str, source: Source) -> Layout:
    opacity = _PALE if source == "modelled" else 1.0
    return {
        "symbol": symbol + "-open" * (source == "counted"), "size": MARK_SIZE - 2, "opacity": opacity
    }  # fmt: skip


def _right(figure: Figure2, looks: Looks, name: str) -> Iterator[Figure]:
    """Time against the share of blocks, the fitted line and dense attention; bytes where there is no time."""
    times = [(point.share, point.time_s) for point in figure.right if point.time_s is not None]
    source, moved = ("measured", []) if times else share_bytes(figure.right)
    hint: Hint = "time" if times else "bytes"
    shares = [point.share for point in figure.right]
    known = times or [(x, y) for x, y in zip(shares, moved, strict=True) if y is not None]
    if not known:
        return
    look = looks[_SPARSE]
    marks: Trace = {
        "type": "scatter", "mode": "markers", "name": _SPARSE, "marker": _mark(look.symbol, source),
        "x": [x for x, _ in known], "y": [y for _, y in known],
        "text": [f"<b>{_SPARSE}</b>, {source}<br>{show(x, 'percent')} of the blocks: "
                 f"{show(y, hint)}{MARKS[source]}" for x, y in known],
        "meta": {"hue": look.hue, "look": look.index, "source": source},
    }  # fmt: skip
    data = [*_lines(figure, looks), marks]
    top = max(y for trace in data for y in trace["y"]) * _ABOVE
    ticks = linear_ticks(top)
    label = time_label if times else bytes_label
    what = "time" if times else f"SM<->L2 bytes, {source},"
    percents = [at / 5 for at in range(6)]
    yield Figure(
        id=f"{name}-right",
        title=f"{what} against the share of blocks",
        data=data,
        layout={
            "xaxis": _linear("share of blocks", [-0.04, 1.04], percents, [f"{at:.0%}" for at in percents]),
            "yaxis": _linear("", [0, top], ticks, [label(at) if at else "0" for at in ticks]),
        },
    )


def _lines(figure: Figure2, looks: Looks) -> Iterator[Trace]:
    line = fit_line(figure.right)
    if line is not None:
        text = plain(line_words(line))
        yield _straight("fitted line", line.intercept_s, line.intercept_s + line.slope_s, text, {})
    if figure.dense_s is not None:
        look, text = looks["flash"], f"<b>flash</b>, dense: {show(figure.dense_s, 'time')}"
        meta: Layout = {"hue": look.hue, "look": look.index, "source": "measured"}
        yield _straight("flash, dense", figure.dense_s, figure.dense_s, text, meta)


def _straight(name: str, left: float, right: float, text: str, meta: Layout) -> Trace:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": [0, 1], "y": [left, right],
        "line": {"width": 1.2, "dash": "dash" if meta else "solid"}, "text": [text, text], "meta": meta,
    }  # fmt: skip


def _linear(title: str, ends: Sequence[float], ticks: Sequence[float], texts: Sequence[str]) -> Layout:
    return {
        "title": {"text": title}, "type": "linear", "range": list(ends), "tickvals": list(ticks),
        "ticktext": list(texts),
    }  # fmt: skip
