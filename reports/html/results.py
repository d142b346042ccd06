"""The results of all records: time, rate, share of the roof, traffic and bound of every run."""

from collections.abc import Sequence
from typing import Final

import msgspec

from perfkit.analysis.comparison import workloads
from perfkit.analysis.placement import Placement, Point
from perfkit.analysis.report import Titled
from perfkit.analysis.study import Finding, Study
from perfkit.model.units import show
from perfkit.reports.html.cells import (
    MARKS,
    Cell,
    Looks,
    Row,
    Table,
    absent,
    columns,
    number_cell,
    shown,
    words,
)
from perfkit.reports.html.rows import by_workload, impl_cell
from perfkit.reports.places import common

_HEAD: Final = columns(
    "implementation", "time", "achieved", "of roof", "DRAM", "SM<->L2", "FLOP/B, DRAM", "bound",
    text=("bound",),
)  # fmt: skip


def all_results(parts: Sequence[Titled], looks: Looks) -> Table:
    """The results of all records in one table, below the name of each where there are several."""
    rows: list[Row] = []
    for part in parts:
        if len(parts) > 1:
            among = workloads(part.study)
            rows.append(Row(heading=f"{part.name}: {common(among) if among else 'no runs'}"))
        rows += results(part.study, looks).rows
    return Table(caption="Results", columns=_HEAD, rows=tuple(rows))


def results(study: Study, looks: Looks) -> Table:
    """Time, rate, share of the roof, traffic and bound of every run, or what became of it."""

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        p = finding.placement
        return [(
            impl_cell(finding, looks), _time(finding), _rate(finding), _share(finding),
            *(_bytes(p, level) for level in ("DRAM", "L2")), _intensity(p), _bound(p),
        )]  # fmt: skip

    return Table(caption="Results", columns=_HEAD, rows=by_workload(study, cells))


def _why(finding: Finding) -> str:
    run = finding.placement.run
    return run.reason or "no time was measured"


def _time(finding: Finding) -> Cell:
    p = finding.placement
    low, high = p.run.value("time_low"), p.run.value("time_high")
    if p.time_s is None and p.run.status == "modelled":
        return shown(p.least_s, "time", "modelled", "no floor is known", "modelled: the least time")
    if p.time_s is None:
        return Cell(text=p.run.status, kind="bad", note=_why(finding), number=True)
    spread = f" ±{(high - low) / 2 / p.time_s:.2%}" if low is not None and high is not None else ""
    interval = f"median, 95 % interval {show(low, 'time')} to {show(high, 'time')}" if spread else None
    return Cell(text=show(p.time_s, "time") + spread, kind="measured", note=interval, number=True)


def _rate(finding: Finding) -> Cell:
    p = finding.placement
    if p.invalid:
        return Cell(text="INVALID", kind="bad", note=p.invalid, number=True)
    if p.time_s is None and p.run.status == "modelled":
        return shown(p.best, "flop_rate", "modelled", "no floor is known", "modelled: at best")
    return number_cell(finding.metrics["achieved"], "flop_rate")


def _share(finding: Finding) -> Cell:
    p = finding.placement
    if p.invalid:
        return absent(p.invalid)
    cell = number_cell(finding.metrics["efficiency_clock"], "percent")
    if cell.kind == "unavailable" or p.roof is None:
        return cell
    clock = ", at the clock of the run" if p.roof.source == "run clock" else ""
    roof = show(finding.metrics["attainable_clock"].value, "flop_rate")
    return msgspec.structs.replace(cell, note=f"of {roof}, the roof at this intensity{clock}")


def _bytes(p: Placement, level: str) -> Cell:
    point = next((point for point in p.points if point.level == level), None)
    if point is None:
        return absent("its traffic is not known")
    return Cell(
        text=f"{'≥ ' if point.upper else ''}{show(point.bytes, 'bytes')}{MARKS[point.provenance]}",
        kind=point.provenance, note="compulsory traffic only" if point.upper else None, number=True,
    )  # fmt: skip


def _intensity(p: Placement) -> Cell:
    point: Point | None = p.point("DRAM")
    if point is None:
        return absent("its DRAM traffic is not known")
    text = f"{'≤ ' if point.upper else ''}{show(point.intensity, 'intensity').removesuffix(' FLOP/B')}"
    return Cell(text=text + MARKS[point.provenance], kind=point.provenance, number=True)


def _bound(p: Placement) -> Cell:
    floor = f"least time {show(p.least_s, 'time')}" if p.floors else "no floor is known"
    return words(p.bound or "-", note=floor)
