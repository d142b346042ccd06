"""The roofs of a roofline chart: data sheet, run clock or measured, their lines and their names."""

import math
from collections.abc import Iterator, Sequence

import msgspec

from perfkit.analysis.placement import Roof
from perfkit.model.units import show
from perfkit.ops.base import Level
from perfkit.reports.html.embed import plain
from perfkit.reports.html.figure import Layout, Shown, Trace

Range = tuple[float, float]


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """One roof and the dtypes that share it."""

    dtypes: tuple[str, ...]
    source: str
    compute: float
    clock_hz: float
    bandwidth: dict[Level, float]


class Roofs(msgspec.Struct, frozen=True, kw_only=True):
    """All roofs of one chart: as printed or measured, and at the lowest and the highest clock of any run."""

    sheets: tuple[Ceiling, ...]
    clocked: tuple[Ceiling, ...]


def roofs_of(found: Sequence[Shown]) -> Roofs:
    """The roofs of all runs; of several that differ, as measured ones do, the highest: the best seen."""
    sheets: dict[str, list[tuple[Roof, str]]] = {}
    clocked: dict[str, list[Roof]] = {}
    for one in found:
        placement, dtype = one.placement, one.placement.run.workload.dtype
        if placement.datasheet is not None:
            measured = one.record.backend == "cpu"
            sheets.setdefault(dtype, []).append(
                (placement.datasheet, "measured" if measured else "data sheet")
            )
        if placement.roof is not None and placement.roof.source == "run clock":
            clocked.setdefault(dtype, []).append(placement.roof)
    tops = [_ceiling(dtype, *max(rows, key=lambda row: row[0].compute)) for dtype, rows in sheets.items()]
    ends = [
        _ceiling(dtype, roof, "run clock")
        for dtype, rows in clocked.items()
        for roof in {roof.clock_hz: roof for roof in _extremes(rows)}.values()
    ]
    return Roofs(sheets=_merged(tops), clocked=_merged(ends))


def _extremes(roofs: Sequence[Roof]) -> tuple[Roof, Roof]:
    return min(roofs, key=lambda r: r.clock_hz), max(roofs, key=lambda r: r.clock_hz)


def _ceiling(dtype: str, roof: Roof, source: str) -> Ceiling:
    return Ceiling(
        dtypes=(dtype,), source=source, compute=roof.compute, clock_hz=roof.clock_hz, bandwidth=roof.bandwidth
    )


def _merged(ceilings: Sequence[Ceiling]) -> tuple[Ceiling, ...]:
    """Equal roofs of several dtypes as one."""
    found: dict[tuple[float, float], Ceiling] = {}
    for one in ceilings:
        key = (one.compute, one.clock_hz)
        known = found.get(key)
        found[key] = msgspec.structs.replace(known, dtypes=(*known.dtypes, *one.dtypes)) if known else one
    return tuple(found.values())


def _name(level: Level) -> str:
    return "SM<->L2" if level == "L2" else level


def roof_traces(roofs: Roofs, x: Range, y: Range) -> list[Trace]:
    """Lines: each diagonal up to the highest roof that it meets, each roof from its first ridge on."""
    found = []
    for level, rate, source in _diagonals(roofs):
        top = max(roof.compute for roof in roofs.sheets if level in roof.bandwidth)
        start = max(10.0 ** x[0], 10.0 ** y[0] / rate)
        if start < top / rate:
            words = plain(f"{_name(level)}, {source}: {show(rate, 'byte_rate')}")
            found.append(_line([start, top / rate], [start * rate, top], words, source))
    for roof in (*roofs.sheets, *roofs.clocked):
        ridge = min((roof.compute / rate for rate in roof.bandwidth.values()), default=10.0 ** x[0])
        words = f"{', '.join(roof.dtypes)}, {roof.source}: {show(roof.compute, 'flop_rate')}"
        if roof.source != "measured":
            words += f" at {show(roof.clock_hz, 'hertz')}"
        found.append(_line([ridge, 10.0 ** x[1]], [roof.compute] * 2, words, roof.source))
    return found


def _diagonals(roofs: Roofs) -> Iterator[tuple[Level, float, str]]:
    """Each bandwidth once: those of the data sheet, and those that the run's clock changed."""
    seen: set[tuple[Level, float]] = set()
    for roof in (*roofs.sheets, *roofs.clocked):
        for level, rate in roof.bandwidth.items():
            if (level, rate) not in seen:
                seen.add((level, rate))
                yield level, rate, roof.source


def _line(xs: list[float], ys: list[float], words: str, source: str) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": words,
        "x": xs,
        "y": ys,
        "line": {
            "width": 1.6 if source != "run clock" else 1.4,
            "dash": "dot" if source == "run clock" else "solid",
        },
        "text": [words, words],
        "meta": {"roof": source},
    }


def roof_labels(roofs: Roofs, x: Range, y: Range) -> list[Layout]:
    """Names on the lines. The page turns those of diagonals (`name` is slope) as the axes lie."""
    labels = []
    for level, rate, source in _diagonals(roofs):
        top = max(roof.compute for roof in roofs.sheets if level in roof.bandwidth)
        start, end = max(x[0], y[0] - math.log10(rate)), math.log10(top / rate)
        if source != "run clock" and start < end:
            at = start + (end - start) * 0.45
            text = plain(f"{_name(level)} {show(rate, 'byte_rate')}")
            labels.append(_label(at, at + math.log10(rate), text, "slope", "center", "middle"))
    for roof in roofs.sheets:
        same = [one for one in roofs.clocked if set(one.dtypes) & set(roof.dtypes)]
        height = math.log10(max(one.compute for one in (roof, *same)))
        lines = [f"{', '.join(roof.dtypes)}, {roof.source} {show(roof.compute, 'flop_rate')}"]
        for at, line in enumerate([*([_clocks(same)] if same else []), *lines]):
            label = _label(x[1], height, line, "roof", "right", "bottom")
            labels.append({**label, "yshift": 3 + 14 * at})
    return labels


def _clocks(roofs: Sequence[Ceiling]) -> str:
    """The roofs at the run's clocks in one phrase."""
    ends = sorted({roof.compute for roof in roofs})
    first, last = show(ends[0], "flop_rate"), show(ends[-1], "flop_rate")
    return f"run clock {first}" if first == last else f"run clocks {first} to {last}"


def _label(x: float, y: float, text: str, name: str, xanchor: str, yanchor: str) -> Layout:
    place = {"x": x, "y": y, "xanchor": xanchor, "yanchor": yanchor}
    return {**place, "text": text, "name": name, "showarrow": False}
