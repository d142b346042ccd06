"""What tables of runs have in common: the implementation with its symbol, rows below their workloads."""

from collections.abc import Callable, Sequence

from perfkit.analysis.comparison import workloads
from perfkit.analysis.study import Finding, Study
from perfkit.reports.html.cells import Cell, Looks, Row, once
from perfkit.reports.places import place

Cells = Callable[[Finding], Sequence[tuple[Cell, ...]]]


def impl_cell(finding: Finding, looks: Looks) -> Cell:
    """The implementation with its symbol."""
    run = finding.placement.run
    return Cell(text=run.impl, look=looks.get(run.impl), kind="impl")


def by_workload(study: Study, cells: Cells) -> tuple[Row, ...]:
    """Rows of every run, below a heading for each workload where there are several."""
    among = workloads(study)
    rows: list[Row] = []
    for workload in among:
        here = [f for f in study.findings if f.placement.run.workload == workload]
        found = [Row(cells=line) for finding in here for line in once(cells(finding), 0)]
        if found and len(among) > 1:
            rows.append(Row(heading=place(workload, among)))
        rows += found
    return tuple(rows)
