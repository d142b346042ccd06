"""The tables of a comparison in the terminal: speed, and what it costs in bytes, FLOPs, memory and energy."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
from rich.console import Group as Stack
from rich.console import RenderableType

from perfkit.analysis.comparison import Comparison, Contrast, Group
from perfkit.analysis.placement import Placement
from perfkit.model.units import show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run
from perfkit.reports import cells
from perfkit.reports.grid import Column, Row, grid

VERDICT_STYLE: Final = {
    "faster": "green", "slower": "red", "same": "", "undecided": "yellow", "unmeasured": "dim",
}  # fmt: skip

#: The numbers that stand in the tables of cost: column -> the tags that it is made from.
COST_TAGS: Final = {
    "DRAM": ("dram_read", "dram_write"),
    "SM<->L2": ("l2_read", "l2_write"),
    "tensor FLOPs": ("flops_tensor",),
    "peak memory": ("peak_memory",),
    "energy": ("energy",),
    "error": ("error",),
}


def among(comparison: Comparison) -> tuple[AttentionWorkload, ...]:
    """The workloads of a comparison, each once."""
    return tuple(dict.fromkeys(group.workload for group in comparison.groups))


def speed(comparison: Comparison, width: int) -> RenderableType:
    """Time, speed-up, verdict and bound of every run; of one that failed, how and why."""
    everywhere = among(comparison)
    measured = any(group.baseline.placement.run.status != "modelled" for group in comparison.groups)
    columns = (
        *_lead(everywhere), Column(name="time" if measured else "least time"), Column(name="speed-up"),
        Column(name="verdict", justify="left"), Column(name="bound", justify="left"),
    )  # fmt: skip
    rows = []
    for workload, label, group, contrast in _runs(comparison):
        where = cells.place_text(workload, everywhere)
        placement = (group.baseline if contrast is None else contrast.candidate).placement
        if cells.ended_well(placement.run):
            verdict, style = _verdict(placement, contrast)
            speedup = "" if contrast is None else cells.speedup_text(contrast)
            found = (where, label, cells.time_text(placement), speedup, verdict, placement.bound or "-")
            rows.append(Row(cells=found, styles=("", "", "", "", style)))
        else:
            rows.append(Row(cells=(where, label), rest=_failure(placement.run)))
    return grid(columns, _once(rows), width)


def _verdict(placement: Placement, contrast: Contrast | None) -> tuple[str, str]:
    if placement.invalid:
        return "INVALID", "bold red"
    if contrast is None:
        return "baseline", "dim"
    return contrast.verdict.status, VERDICT_STYLE[contrast.verdict.status]


def _failure(run: Run) -> str:
    """How a run ended, why, and the bytes that it was predicted to move where they are known."""
    moved = [run.value(tag) for tag in ("dram_read_modelled", "dram_write_modelled")]
    known = [value for value in moved if value is not None]
    predicted = f"; DRAM bytes by the model {show(sum(known), 'bytes')}*" if len(known) == 2 else ""
    return f"{run.status}: {run.reason or 'no reason given'}{predicted}"


def cost(comparison: Comparison, width: int) -> RenderableType:
    """Two tables: bytes and FLOPs, then memory, energy and error, each beside the baseline's.

    The second is left out where nothing in it is known.
    """
    lead = _lead(among(comparison))
    ratio = Column(name="ratio")
    traffic = (*lead, Column(name="DRAM"), ratio, Column(name="SM<->L2"), ratio, Column(name="tensor FLOPs"))
    rest = (*lead, Column(name="peak memory"), ratio, Column(name="energy"), ratio, Column(name="error"))
    found = _once(_rows(comparison, _memory))
    tables: list[RenderableType] = [grid(traffic, _once(_rows(comparison, _traffic)), width)]
    if any(_known(row.cells[len(lead) :]) for row in found):
        tables += ["", grid(rest, found, width)]
    return Stack(*tables)


def _known(numbers: Iterable[str]) -> bool:
    return any(cell not in ("", "-") for cell in numbers)


def _rows(
    comparison: Comparison, numbers: Callable[[Placement, Group, Contrast | None], tuple[str, ...]]
) -> Iterator[Row]:
    """The rows of runs that have any number for the table."""
    everywhere = among(comparison)
    for workload, label, group, contrast in _runs(comparison):
        placement = (group.baseline if contrast is None else contrast.candidate).placement
        found = numbers(placement, group, contrast)
        if cells.ended_well(placement.run) or _known(found):
            yield Row(cells=(cells.place_text(workload, everywhere), label, *found))


def _once(rows: Iterable[Row]) -> list[Row]:
    """The rows with each place said once, at the first of its rows."""
    found, before = [], None
    for row in rows:
        place = row.cells[0]
        found.append(row if place != before else msgspec.structs.replace(row, cells=("", *row.cells[1:])))
        before = place
    return found


def _traffic(placement: Placement, group: Group, contrast: Contrast | None) -> tuple[str, ...]:
    return (
        cells.level_text(placement, "DRAM"),
        _beside(group, contrast, "dram", "fewer"),
        cells.level_text(placement, "L2"),
        _beside(group, contrast, "l2", "fewer"),
        _beside(group, contrast, "flops", "fewer"),
    )


def _memory(placement: Placement, group: Group, contrast: Contrast | None) -> tuple[str, ...]:
    run = placement.run
    return (
        cells.number_text(run, "peak_memory", "bytes"),
        _beside(group, contrast, "peak_memory", "less"),
        cells.number_text(run, "energy", "joule"),
        _beside(group, contrast, "energy", "less"),
        cells.number_text(run, "error", "error"),
    )


def _beside(group: Group, contrast: Contrast | None, name: str, less: str) -> str:
    return "" if contrast is None else cells.beside(group, contrast, name, less)


def _lead(everywhere: Sequence[AttentionWorkload]) -> tuple[Column, Column]:
    several = len(everywhere) > 1
    # A column without heading and text is left out: one workload needs no column to tell it from others.
    return (
        Column(name=cells.place_header(everywhere) if several else "", justify="left", wide=True),
        Column(name="impl", justify="left", wide=True),
    )


def _runs(comparison: Comparison) -> Iterator[tuple[AttentionWorkload, str, Group, Contrast | None]]:
    """Every row as (workload, label, group, contrast), the baseline before what is compared with it."""
    for group in comparison.groups:
        yield group.workload, group.label, group, None
        for contrast in group.contrasts:
            yield group.workload, contrast.label, group, contrast
