"""The law in the HTML report: bytes against N, d and M, a chart for each."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from perfkit.analysis.law import VARIABLES, FittedLaw, memory_of
from perfkit.analysis.sweeps import Source, Trial, Variable
from perfkit.model.units import short_count, show
from perfkit.reports.html.cells import MARKS, Looks
from perfkit.reports.html.embed import plain
from perfkit.reports.html.figure import MARK_SIZE, Figure, Trace, axis, value_ticks
from perfkit.reports.law import exponent_text
from perfkit.reports.law_plot import LEVEL_WORDS, SOURCES, drawn, line
from perfkit.reports.sweep_ticks import x_ticks

_AXES: Final[dict[Variable, str]] = {"N": "N", "d": "d", "M": "M (elements)"}


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one record with the looks in them, where their numbers are from, and what a line means."""

    figures: tuple[Figure, ...]
    looks: Looks
    sources: tuple[Source, ...]
    line: str = "the slope of the law"


def law_chart(found: Sequence[FittedLaw], looks: Looks, name: str) -> Chart:
    """A figure for each variable that was swept: marks, and the law's slope through the last of each."""
    rows = drawn(found)
    figures = []
    for variable in VARIABLES:
        here = [one for one in rows if one.sweep.variable == variable]
        if here:
            figures.append(_figure(f"{name}-{variable}", variable, here, looks))
    return Chart(
        figures=tuple(figures),
        looks={impl: look for impl, look in looks.items() if any(one.sweep.impl == impl for one in rows)},
        sources=tuple(source for source in SOURCES if any(one.source == source for one in rows)),
    )


def _figure(name: str, variable: Variable, here: Sequence[FittedLaw], looks: Looks) -> Figure:
    data = [*(_slope(one, looks) for one in here), *(_marks(one, looks) for one in here)]
    xs = sorted({x for one in here for x in one.xs})
    ys = [y for trace in data for y in trace["y"]]
    return Figure(
        id=name,
        title=f"bytes against {variable}",
        data=data,
        layout={
            "xaxis": axis(
                _AXES[variable], math.log10(xs[0]) - 0.12, math.log10(xs[-1]) + 0.12,
                {float(x): short_count(x) for x in x_ticks([int(x) for x in xs])},
            ),
            "yaxis": axis("", math.log10(min(ys)) - 0.2, math.log10(max(ys)) + 0.2,
                          value_ticks(min(ys), max(ys), "bytes")),
        },
    )  # fmt: skip


def _slope(one: FittedLaw, looks: Looks) -> Trace:
    """What the law makes of the last point: a line of its slope over the values of the sweep."""
    look, ends = looks[one.sweep.impl], line(one)
    text = f"{plain(one.sweep.impl)}, {one.source}: the law's slope {one.law:g}, fitted {exponent_text(one)}"
    return {
        "type": "scatter", "mode": "lines", "name": f"{plain(one.sweep.impl)}, {one.source}, law",
        "x": [x for x, _ in ends], "y": [y for _, y in ends], "line": {"width": 1.2}, "text": [text, text],
        "meta": {"hue": look.hue, "look": look.index},
    }  # fmt: skip


def _marks(one: FittedLaw, looks: Looks) -> Trace:
    """Filled where measured, open where counted (a ring around the same measured), pale where modelled."""
    look, counted = looks[one.sweep.impl], one.source == "counted"
    return {
        "type": "scatter", "mode": "markers", "name": f"{plain(one.sweep.impl)}, {one.source}",
        "x": list(one.xs), "y": list(one.traffic),
        "marker": {
            "symbol": look.symbol + ("-open" if counted else ""),
            "size": MARK_SIZE + 1 if counted else MARK_SIZE - 2,
            "opacity": 0.5 if one.source == "modelled" else 1.0,
        },
        "text": [_words(one, at) for at in range(len(one.xs))],
        "meta": {"hue": look.hue, "look": look.index},
    }  # fmt: skip


def _words(one: FittedLaw, at: int) -> str:
    trial = one.sweep.trials[at]
    tile = f", tile {tile_text(trial)}" if trial.tile else ""
    memory = memory_text(one.sweep.impl, trial)
    held = f", M {memory}" if memory else ""
    return (
        f"<b>{plain(one.sweep.impl)}</b>, {one.source} at {plain(LEVEL_WORDS[one.level])}<br>"
        f"N {short_count(trial.workload.seq_q)}, d {trial.workload.head_dim}{tile}{held}<br>"
        f"{show(one.traffic[at], 'bytes')}{MARKS[one.source]}"
    )


def tile_text(trial: Trial) -> str:
    """`64 x 128`."""
    return " x ".join(map(str, trial.tile)) if trial.tile else "-"


def memory_text(impl: str, trial: Trial) -> str | None:
    """M in elements, as people write it; None where nothing stays on chip."""
    memory = memory_of(impl, trial.uses[0], trial.workload.head_dim) if trial.uses else None
    return None if memory is None else short_count(memory)
