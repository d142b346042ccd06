"""Which row of one record belongs to which of another."""

from collections.abc import Iterator

from perfkit.analysis.study import Finding, Study
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run

#: A row of the baseline and its row now; None where there is none.
Pair = tuple[Finding | None, Finding | None]


def pairs(base: Study, current: Study) -> Iterator[Pair]:
    """Rows of the same implementation and workload, equal ones in their order; then the rows that are new."""
    rows: dict[tuple[str, AttentionWorkload], list[Finding]] = {}
    for finding in current.findings:
        rows.setdefault(key(finding.placement.run), []).append(finding)
    for finding in base.findings:
        left = rows.get(key(finding.placement.run))
        yield finding, (left.pop(0) if left else None)
    for finding in (finding for left in rows.values() for finding in left):
        yield None, finding


def key(run: Run) -> tuple[str, AttentionWorkload]:
    """What rows are paired by."""
    return run.impl, run.workload
