"""The verdict at the top of the HTML report: banners, badges, and sentences on everything in it."""

from collections.abc import Iterator, Sequence

import msgspec

from perfkit.analysis.comparison import Comparison, workloads
from perfkit.analysis.report import Report, Titled, comparison_of
from perfkit.analysis.study import Study
from perfkit.reports.html.contrasts import tally
from perfkit.reports.law_words import sentences
from perfkit.reports.places import joined, place
from perfkit.reports.words import comparison_words

#: Up to so many records each says all that it has to say at the top.
_TOLD = 3
#: Violations, impossible times and failures that are named at the top, at most; the rest is counted.
_NAMED = 12


class Badge(msgspec.Struct, frozen=True, kw_only=True):
    """A count at a glance: its number, what it counts, and a class for its colour."""

    count: int
    text: str
    kind: str = ""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The sentences on one record, with its name where there are several."""

    name: str | None
    sentences: tuple[str, ...]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at the top of the report."""

    banner: str | None
    headline: str
    badges: tuple[Badge, ...]
    told: tuple[Told, ...]
    troubles: tuple[str, ...]
    more: int


def summary(report: Report, since: Sequence[tuple[Titled, Comparison]]) -> Summary:
    """The verdict on all records of the report, and on the changes since its baseline."""
    several = len(report.parts) > _TOLD
    troubles = list(_troubles(report)) if several else []
    told = () if several else tuple(_told(report, part, len(report.parts) > 1) for part in report.parts)
    return Summary(
        banner=_banner(report.studies),
        headline=headline(report),
        badges=(*badges(report.studies), *_change_badges([comparison for _, comparison in since])),
        told=(*told, *_changes_told(report, since)),
        troubles=tuple(troubles[:_NAMED]),
        more=max(0, len(troubles) - _NAMED),
    )


def _banner(studies: Sequence[Study]) -> str | None:
    """What must be said before all else: that nothing was measured, or not everything."""
    backends = [study.record.backend for study in studies]
    empty = [backend in ("model", "fake") for backend in backends]
    if not any(empty):
        return None
    word = "FAKE" if "fake" in backends else "MODELLED"
    if all(empty):
        return f"{word}: no number here was measured"
    return f"{word}: {sum(empty)} of {len(empty)} records hold no measured number"


def headline(report: Report) -> str:
    """Ops and devices: `attention on NVIDIA H200`."""
    pairs = dict.fromkeys((s.record.op, s.record.device.model) for s in report.studies)
    ops, models = dict.fromkeys(op for op, _ in pairs), dict.fromkeys(model for _, model in pairs)
    return f"{joined(ops)} on {joined(models)}" if pairs else "no records"


def badges(studies: Sequence[Study]) -> tuple[Badge, ...]:
    """Runs, checks and failures in numbers."""
    findings = [finding for study in studies for finding in study.findings]
    checks = [verdict.status for finding in findings for verdict in finding.verdicts]
    statuses = [finding.placement.run.status for finding in findings]
    invalid = sum(finding.placement.invalid is not None for finding in findings)
    failed = sum(status not in ("measured", "modelled") for status in statuses)
    rows = [
        Badge(count=len(studies), text="record" if len(studies) == 1 else "records"),
        Badge(count=statuses.count("measured"), text="measured runs"),
        Badge(count=statuses.count("modelled"), text="modelled runs", kind="undecided"),
        Badge(count=checks.count("holds"), text="IO checks hold", kind="good"),
        Badge(count=checks.count("violated"), text="IO checks violated", kind="bad"),
        Badge(count=checks.count("undecided"), text="undecided", kind="undecided"),
        Badge(count=checks.count("unchecked"), text="unchecked", kind="unchecked"),
        Badge(count=invalid, text="INVALID", kind="bad"),
        Badge(count=failed, text="without a result", kind="bad"),
    ]
    return tuple(row for row in rows if row.count)


def _change_badges(changes: Sequence[Comparison]) -> Iterator[Badge]:
    kinds = {"faster": "good", "slower": "bad", "undecided": "undecided", "unmeasured": "unchecked"}
    for status, count in tally(changes):
        yield Badge(count=count, text=f"{status} than the baseline" if status in ("faster", "slower")
                    else f"{status}, against the baseline", kind=kinds.get(status, ""))  # fmt: skip


def _told(report: Report, part: Titled, named: bool) -> Told:
    comparison = comparison_of(part.study, report.threshold)
    compared = comparison_words(comparison) if comparison else ()
    return Told(name=part.name if named else None, sentences=(*sentences(part.study), *compared))


def _changes_told(report: Report, since: Sequence[tuple[Titled, Comparison]]) -> Iterator[Told]:
    """The changes in sentences where they are few; their notes always."""
    if report.baseline is None:
        return
    for part, comparison in since:
        few = sum(len(group.contrasts) for group in comparison.groups) <= _NAMED and len(since) <= _TOLD
        sentences = (*(comparison_words(comparison) if few else ()), *comparison.notes)
        if sentences:
            yield Told(name=f"{part.name} against {report.baseline.name}", sentences=sentences)


def _troubles(report: Report) -> Iterator[str]:
    """Everything that went wrong or cannot be, in one line each, the worst first."""
    lines: list[tuple[int, str]] = []
    for part in report.parts:
        among = workloads(part.study)
        for finding in part.study.findings:
            p, run = finding.placement, finding.placement.run
            where = place(run.setting, among)
            who = f"{part.name}: {run.impl}{f' at {where}' if where else ''}"
            if p.invalid:
                lines.append((0, f"{who}: INVALID: {p.invalid}"))
            if run.status not in ("measured", "modelled"):
                lines.append((1, f"{who}: {run.status}: {run.reason or 'no reason given'}"))
            for verdict in finding.verdicts:
                if verdict.status == "violated":
                    off = f" (off by {verdict.deviation:+.1%})" if verdict.deviation is not None else ""
                    lines.append((2, f"{who}: VIOLATED: {verdict.check}{off}"))
    yield from (line for _, line in sorted(lines, key=lambda line: line[0]))
