"""What tables of runs have in common: the implementation with its symbol, rows below their workloads."""

from collections.abc import Callable, Sequence

import msgspec

from perfkit.analysis.comparison import workloads
from perfkit.analysis.study import Finding, Study
from perfkit.record import Run
from perfkit.reports.html.cells import Cell, Looks, Row, once
from perfkit.reports.kernel_words import needed
from perfkit.reports.places import place

Cells = Callable[[Finding], Sequence[tuple[Cell, ...]]]


def impl_cell(finding: Finding, looks: Looks) -> Cell:
    """The implementation with its symbol."""
    run = finding.placement.run
    return Cell(text=run.impl, look=looks.get(run.impl), kind="impl")


def named(finding: Finding, study: Study) -> str:
    """The implementation, with its tiles where it ran with several on this workload."""
    run = finding.placement.run
    op = study.record.op
    alike = (one for one in study.record.runs if (one.impl, one.workload) == (run.impl, run.workload))
    return f"{run.impl}, {_tiles(op, run)}" if len({_tiles(op, one) for one in alike}) > 1 else run.impl


def _tiles(op: str, run: Run) -> str:
    """The tiles of the kernels of its pass."""
    return ", ".join(dict.fromkeys(f"{use.block_m} x {use.block_n}" for use in needed(op, run))) or "no tiles"


def by_workload(study: Study, cells: Cells) -> tuple[Row, ...]:
    """Rows of every run, below a heading for each workload where there are several.

    The first of the cells is the implementation; what tells its runs on one workload apart is added here.
    """
    among = workloads(study)
    rows: list[Row] = []
    for workload in among:
        here = [f for f in study.findings if f.placement.run.setting == workload]
        lines = (line for one in here for line in once(_named(cells(one), named(one, study)), 0))
        found = [Row(cells=line) for line in lines]
        if found and len(among) > 1:
            rows.append(Row(heading=place(workload, among)))
        rows += found
    return tuple(rows)


def _named(lines: Sequence[tuple[Cell, ...]], name: str) -> list[tuple[Cell, ...]]:
    return [(msgspec.structs.replace(first, text=name), *rest) for first, *rest in lines]
