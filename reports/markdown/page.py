"""The report as GitHub flavoured Markdown: a summary for a pull request, short enough for a comment."""

from collections.abc import Callable, Iterator
from typing import Final

from perfkit.analysis.comparison import Comparison
from perfkit.analysis.report import Report, Titled, changes, comparison_of
from perfkit.analysis.study import Study
from perfkit.reports.fastest_words import fastest_words
from perfkit.reports.markdown import parts as parts
from perfkit.reports.markdown.text import bullets, escape, folded
from perfkit.reports.studies import parted
from perfkit.reports.words import comparison_words, verdict_words

#: GitHub takes comments of 65,536 characters at most; this leaves room for what is put around the report.
LIMIT: Final = 60_000
#: From this many records on, each is folded.
MANY: Final = 4

_NO_DETAILS: Final = "To keep this short, comparisons, IO checks and environments are not shown.\n"


def as_markdown(report: Report) -> bytes:
    """The whole report in less than LIMIT bytes.

    Where everything is too long, the records are shown without comparisons and IO check, and where that is
    too long too, as many as fit. What was left out is said and counted.
    """
    against = changes(report)
    head = _head(report, against)
    sections = [_section(report, part, _whole(report)) for part in report.parts]
    whole = "\n".join([head, *sections])
    return (whole if _size(whole) < LIMIT else _short(report, against)).encode()


def _short(report: Report, against: tuple[tuple[Titled, Comparison], ...]) -> str:
    """The report without details, and with as many records as fit."""
    head = _head(report, against, brief=True)
    room = LIMIT - _size(head) - 2 * len(_NO_DETAILS) - 100  # for the sentences on what was left out
    shown: list[str] = []
    for part in report.parts:
        section = _section(report, part, parts.brief)
        room -= _size(section) + 1
        if room < 0:
            break
        shown.append(section)
    left = len(report.parts) - len(shown)
    rest = [f"{left} of {len(report.parts)} records are not shown: {LIMIT:,} bytes hold no more.\n"]
    return "\n".join([head, *shown, _NO_DETAILS, *(rest if left else [])])


def _size(text: str) -> int:
    return len(text.encode()) + 1


def _head(report: Report, against: tuple[tuple[Titled, Comparison], ...], brief: bool = False) -> str:
    """Title, verdict in words over several records, and the changes against the baseline."""
    lines = [f"# {escape(_title(report))}\n"]
    if len(report.parts) > 1:
        lines += ["## Verdict\n", bullets(_overall(report))]
    if report.baseline is not None:
        lines.append(f"## Changes against {escape(report.baseline.name)}\n")
        body = bullets(_certain(against)) if brief else "\n".join(_changes(report, against))
        lines.append(body)
    return "\n".join(lines)


def _title(report: Report) -> str:
    if len(report.parts) == 1:
        record = report.parts[0].study.record
        return f"perfkit: {record.op} on {record.device.model}"
    return f"perfkit: {len(report.parts)} records"


def _overall(report: Report) -> Iterator[str]:
    """Counts over all records, then what went wrong in any of them."""
    found = [(part.name, finding) for part in report.parts for finding in part.study.findings]
    checks = [verdict.status for _, finding in found for verdict in finding.verdicts]
    statuses = [finding.placement.run.status for _, finding in found]
    invalid = sum(finding.placement.invalid is not None for _, finding in found)
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    yield f"{len(found)} runs: {counts}; {invalid} INVALID."
    yield f"IO check: {checks.count('holds')} hold, {checks.count('violated')} VIOLATED."
    for part in report.parts:
        if part.study.record.backend in ("model", "fake"):
            yield f"{part.name}: {verdict_words(part.study)[0]}"
    for name, finding in found:
        run, impossible = finding.placement.run, finding.placement.invalid
        if impossible:
            yield f"INVALID: {name}, {run.impl}: {impossible}"
        for verdict in finding.verdicts:
            if verdict.status == "violated":
                yield f"VIOLATED: {name}, {run.impl}, {verdict.check}: {verdict.reason}"
        if run.status not in ("measured", "modelled"):
            yield f"{run.status}: {name}, {run.impl}: {run.reason or 'no reason given'}"


def _changes(report: Report, against: tuple[tuple[Titled, Comparison], ...]) -> Iterator[str]:
    """Every study beside the baseline, in words and as a table; folded where there are many."""
    for part, found in against:
        notes = f"\n{bullets(found.notes)}" if found.notes else ""
        body = f"{parts.comparison(found)}{notes}"
        yield folded(part.name, body) if len(report.parts) >= MANY else body


def _certain(against: tuple[tuple[Titled, Comparison], ...]) -> Iterator[str]:
    """How many runs are what beside the baseline; those that are certainly faster or slower in words."""
    contrasts = [contrast for _, found in against for group in found.groups for contrast in group.contrasts]
    statuses = [contrast.verdict.status for contrast in contrasts]
    yield ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    for word in ("slower", "faster"):
        for _, found in against:
            if any(c.verdict.status == word for group in found.groups for c in group.contrasts):
                yield from (text for text in comparison_words(found) if f"{word} than" in text)


def _whole(report: Report) -> Callable[[Study], str]:
    def text(study: Study) -> str:
        return f"{parts.brief(study)}\n{parts.details(study, report.threshold)}"

    return text


def _section(report: Report, part: Titled, body: Callable[[Study], str]) -> str:
    """One record under its name; folded where there are many, with what says most in sight."""
    text = body(part.study)
    if len(report.parts) >= MANY:
        return folded(f"{part.name}: {_line(part.study, report.threshold)}", text)
    title = "Results" if len(report.parts) == 1 else part.name
    return f"## {escape(title)}\n\n{text}"


def _line(study: Study, threshold: float) -> str:
    """The one sentence that says most: of a comparison its first, else the one on the fastest."""
    found = comparison_of(study, threshold)
    if found is not None:
        return comparison_words(found)[0]
    return (*fastest_words(parted(study)[0]), *verdict_words(study))[0]
