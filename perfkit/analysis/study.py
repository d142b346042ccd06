"""A record with everything that follows from it: the one thing that renderers take."""

from typing import Any

import msgspec

from perfkit.analysis.io_check import check
from perfkit.analysis.losses import Loss, losses
from perfkit.analysis.metrics import METRICS, metric_number
from perfkit.analysis.placement import Placement, place
from perfkit.analysis.verdict import Verdict
from perfkit.record import Number, Record
from perfkit.record import rows as record_rows


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One run with its placement, its derived numbers, where its time went, and the verdicts on it."""

    placement: Placement
    metrics: dict[str, Number]
    losses: tuple[Loss, ...]
    verdicts: tuple[Verdict, ...]


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """A record and the findings on its runs, in the record's order."""

    record: Record
    findings: tuple[Finding, ...]


def study(record: Record) -> Study:
    """Everything that follows from `record`."""
    findings = []
    for run in record.runs:
        placement = place(record, run)
        metrics = {metric.tag: metric_number(metric, placement) for metric in METRICS}
        findings.append(
            Finding(
                placement=placement,
                metrics=metrics,
                losses=losses(placement),
                verdicts=check(record.op, placement),
            )
        )
    return Study(record=record, findings=tuple(findings))


def exit_code(subject: Study) -> int:
    """130 interrupted, 4 a number that cannot be true, 1 a wrong result or nothing to show, else 0."""
    statuses = [finding.placement.run.status for finding in subject.findings]
    if "interrupted" in statuses:
        return 130
    if any(finding.placement.invalid for finding in subject.findings):
        return 4
    useful = [status for status in statuses if status in ("measured", "modelled")]
    return 1 if "incorrect" in statuses or not useful else 0


def rows(subject: Study) -> list[dict[str, Any]]:
    """One flat mapping per number, recorded and derived, for CSV and data frames."""
    table = record_rows(subject.record)
    for finding in subject.findings:
        run = finding.placement.run
        head = {
            "op": subject.record.op,
            "device": subject.record.device.name,
            "impl": run.impl,
            "status": run.status,
            **msgspec.to_builtins(run.workload),
        }
        for metric in METRICS:
            number = finding.metrics[metric.tag]
            table.append({**head, "tag": metric.tag, "label": metric.label, **msgspec.structs.asdict(number)})
    return table
