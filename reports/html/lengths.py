"""Time and traffic against N, measured marks beside the model's dashed curve."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from perfkit.analysis.comparison import total
from perfkit.analysis.report import Report
from perfkit.model.units import Hint, short_count, show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run
from perfkit.reports.html.cells import Look
from perfkit.reports.html.embed import plain
from perfkit.reports.html.figure import (
    MARK_SIZE,
    Figure,
    Shown,
    Trace,
    axis,
    error_bars,
    everything,
    symbol,
    value_ticks,
)
from perfkit.reports.places import common


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One chart: its title, and of a run what was measured and what the model says."""

    name: str
    title: str
    hint: Hint
    measured: Callable[[Shown], float | None]
    modelled: Callable[[Shown], float | None]
    curve: str = "modelled"
    interval: bool = False


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """The charts of all runs whose workloads differ in N alone."""

    title: str
    figures: tuple[Figure, ...]


def _sum(*tags: str) -> Callable[[Shown], float | None]:
    return lambda one: total(one.placement.run, tags)


SERIES: Final = (
    Series(
        name="time", title="time, the least time dashed", hint="time", curve="least time", interval=True,
        measured=lambda one: one.placement.time_s, modelled=lambda one: one.placement.least_s,
    ),
    Series(
        name="l2", title="SM<->L2 bytes, read + write", hint="bytes",
        measured=_sum("l2_read", "l2_write"), modelled=_sum("l2_read_modelled", "l2_write_modelled"),
    ),
    Series(
        name="dram", title="DRAM bytes, read + write", hint="bytes",
        measured=_sum("dram_read", "dram_write"), modelled=_sum("dram_read_modelled", "dram_write_modelled"),
    ),
)  # fmt: skip


def length_charts(report: Report, looks: dict[str, Look]) -> tuple[Lengths, ...]:
    """Charts for each set of workloads that differ in N alone and have at least two N."""
    sets: dict[tuple[Any, ...], list[Shown]] = {}
    for one in everything(report):
        if not one.placement.invalid:
            sets.setdefault((one.record.op, one.record.device.model, *_rest(one.placement.run)), []).append(
                one
            )
    found: list[Lengths] = []
    for (op, model, *_), members in sets.items():
        workloads = list(dict.fromkeys(one.placement.run.setting for one in members))
        if len({w.seq_k for w in workloads}) < 2:
            continue
        number = len(found)
        figures = [_figure(f"length-{number}-{s.name}", s, members, looks) for s in SERIES]
        title = f"{op} on {model}: {_shared(workloads)}"
        found.append(Lengths(title=title, figures=tuple(f for f in figures if f is not None)))
    return tuple(one for one in found if one.figures)


def _shared(workloads: Sequence[AttentionWorkload]) -> str:
    """What the workloads have in common; the queries too, where only the keys vary."""
    queries = {w.seq_q for w in workloads}
    fixed = f", N_q {short_count(queries.pop())}" if len(queries) == 1 else ""
    return common(workloads) + fixed


def _rest(run: Run) -> tuple[Any, ...]:
    """The workload without N. Where queries and keys differ in number, only the keys may vary."""
    w = run.setting
    fields = {name: getattr(w, name) for name in w.__struct_fields__ if name not in ("seq_q", "seq_k")}
    return (*fields.values(), None if w.seq_q == w.seq_k else w.seq_q)


def _figure(name: str, series: Series, members: Sequence[Shown], looks: dict[str, Look]) -> Figure | None:
    data: list[Trace] = []
    groups: dict[tuple[bool, str], list[Shown]] = {}
    for one in sorted(members, key=lambda one: one.placement.run.setting.seq_k):
        groups.setdefault((one.baseline, one.placement.run.impl), []).append(one)
    for (baseline, impl), rows in groups.items():
        data += [] if baseline else _model(series, impl, rows, looks[impl])
        data += _measured(series, impl, rows, looks[impl], baseline)
    values = [y for trace in data for y in trace["y"]]
    if not values:
        return None
    lengths = sorted({one.placement.run.setting.seq_k for one in members})
    return Figure(
        id=name,
        title=series.title,
        data=data,
        layout={
            "xaxis": axis(
                "N", math.log10(lengths[0]) - 0.12, math.log10(lengths[-1]) + 0.12,
                {float(n): short_count(n) for n in lengths},
            ),
            "yaxis": axis("", math.log10(min(values)) - 0.2, math.log10(max(values)) + 0.2,
                          value_ticks(min(values), max(values), series.hint)),
        },
    )  # fmt: skip


def _model(series: Series, impl: str, rows: Sequence[Shown], look: Look) -> list[Trace]:
    """The model's curve, one value for each N."""
    points = {one.placement.run.setting.seq_k: y for one in rows if (y := series.modelled(one))}
    if not points:
        return []
    return [{
        "type": "scatter", "mode": "lines", "name": f"{plain(impl)}, {series.curve}",
        "x": list(points), "y": list(points.values()), "line": {"dash": "dash", "width": 1.5},
        "text": [
            f"{plain(impl)}, N {short_count(n)}<br>{series.curve} {show(y, series.hint)}*"
            for n, y in points.items()
        ],
        "meta": {"hue": look.hue, "look": look.index},
    }]  # fmt: skip


def _measured(series: Series, impl: str, rows: Sequence[Shown], look: Look, baseline: bool) -> list[Trace]:
    found = [(one, y) for one in rows if (y := series.measured(one))]
    if not found:
        return []
    trace: Trace = {
        "type": "scatter", "mode": "markers", "name": plain(impl) + (", baseline" if baseline else ""),
        "x": [one.placement.run.setting.seq_k for one, _ in found], "y": [y for _, y in found],
        "marker": {"symbol": symbol(look, baseline), "size": MARK_SIZE - 2},
        "text": [_words(series, one, y) for one, y in found],
        "meta": {"hue": look.hue, "look": look.index},
    }  # fmt: skip
    if series.interval:
        trace["error_y"] = error_bars(
            (y, one.placement.run.value("time_low"), one.placement.run.value("time_high")) for one, y in found
        )
    return [trace]


def _words(series: Series, one: Shown, y: float) -> str:
    run = one.placement.run
    return (
        f"<b>{plain(run.impl)}</b>, N {short_count(run.setting.seq_k)}<br>"
        f"measured {show(y, series.hint)}<br>{plain(one.source)}"
    )
