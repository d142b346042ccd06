"""Interactive rooflines: one for each device and op, with the marks of all its runs."""

import math
from collections.abc import Sequence
from typing import Final

from perfkit.analysis.placement import Placement
from perfkit.analysis.report import Report
from perfkit.analysis.study import Study
from perfkit.model.units import power_of_ten
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
)  # fmt: skip
from perfkit.reports.html.hover import point_text, run_text
from perfkit.reports.html.roofs import Roofs, roof_labels, roof_traces, roofs_of
from perfkit.reports.plot import drawn, height_of

#: From so many runs on marks are smaller.
MANY: Final = 30


def rooflines(report: Report, looks: dict[str, Look]) -> tuple[Figure, ...]:
    """One figure for each device and op that has something to place, in the report's order."""
    places: dict[tuple[str, str, str], list[Shown]] = {}
    drawable = {id(placement) for part in _studies(report) for placement in drawn(part)}
    for one in everything(report):
        if id(one.placement) in drawable and height_of(one.placement):
            device = one.record.device
            places.setdefault((one.record.op, device.model, device.name), []).append(one)
    return tuple(
        _figure(f"roofline-{i}", f"{op} on {model}", found, looks)
        for i, ((op, model, _), found) in enumerate(places.items())
    )


def _studies(report: Report) -> list[Study]:
    return [*report.studies, *([report.baseline.study] if report.baseline else [])]


def _figure(name: str, title: str, found: Sequence[Shown], looks: dict[str, Look]) -> Figure:
    roofs = roofs_of(found)
    x, y = _window(found, roofs)
    texts = [run_text(s.finding, s.source, s.record.backend in ("model", "fake")) for s in found]
    groups: dict[tuple[bool, str], list[int]] = {}
    for at, one in enumerate(found):
        groups.setdefault((one.baseline, one.placement.run.impl), []).append(at)
    marks = [_marks(found, members, looks[impl], baseline) for (baseline, impl), members in groups.items()]
    layout = {
        "xaxis": axis("arithmetic intensity (FLOP/byte)", *x, ticks=_ticks(*x)),
        "yaxis": axis("FLOP/s", *y, ticks=_ticks(*y)),
        "annotations": roof_labels(roofs, x, y),
    }
    return Figure(id=name, title=title, data=[*roof_traces(roofs, x, y), *marks], layout=layout, texts=texts)


def _ticks(low: float, high: float) -> dict[float, str]:
    """A tick a decade; with 2 and 5 between them where there are few."""
    steps = (1, 2, 5) if high - low < 2.6 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = [step * 10.0**power for power in powers for step in steps]
    return {value: power_of_ten(value) for value in values if low <= math.log10(value) <= high}


def _window(found: Sequence[Shown], roofs: Roofs) -> tuple[tuple[float, float], tuple[float, float]]:
    """What is seen, in powers of ten: all marks and ridges, room for the roofs' names above."""
    ridges = [roof.compute / rate for roof in roofs.sheets for rate in roof.bandwidth.values()]
    xs = [point.intensity for s in found for point in s.placement.points] + ridges
    ys = [height for s in found if (height := height_of(s.placement))]
    lowest = min(roof.compute for roof in roofs.sheets) / 8
    top = max(roof.compute for roof in (*roofs.sheets, *roofs.clocked))
    return (
        (math.log10(min(xs)) - 0.45, math.log10(max(xs)) + 0.35),
        (math.log10(min(*ys, lowest)) - 0.25, math.log10(max(*ys, top)) + 0.35),
    )


def _ends(placement: Placement) -> tuple[float | None, float | None, float | None]:
    """FLOP/s with the ends that the interval of the time gives: the longest time is the lowest rate."""
    flops, low, high = (placement.run.value(tag) for tag in ("flops_convention", "time_low", "time_high"))
    rate = height_of(placement)
    if placement.time_s is None or not flops:
        return rate, None, None
    return rate, flops / high if high else None, flops / low if low else None


def _marks(found: Sequence[Shown], members: Sequence[int], look: Look, baseline: bool) -> Trace:
    """One implementation: its marks at DRAM and SM<->L2, joined by a thin line, run after run."""
    many = len(found) > MANY
    rows = [(at, point) for at in members for point in (*found[at].placement.points, None)]
    ends = [_ends(found[at].placement) if point else (None, None, None) for at, point in rows]
    impl = found[members[0]].placement.run.impl
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(impl) + (", baseline" if baseline else ""),
        "x": [point.intensity if point else None for _, point in rows],
        "y": [value for value, _, _ in ends],
        "error_y": error_bars(ends),
        "marker": {
            "symbol": [symbol(look, baseline, bool(point and point.level == "L2")) for _, point in rows],
            "size": MARK_SIZE - 3 if many else MARK_SIZE,
            "opacity": [0.65 if point and point.provenance != "measured" else 1.0 for _, point in rows],
        },
        "line": {"width": 0.6 if many else 1},
        "text": [point_text(point) if point else "" for _, point in rows],
        "meta": {"hue": look.hue, "look": look.index, "texts": [at if point else None for at, point in rows]},
    }  # fmt: skip
