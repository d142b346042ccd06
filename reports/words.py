"""What a report says in words: plain sentences from a study or a comparison, for every kind of report.

Sentences are plain text without markup. They hold strings from records (names, reasons), so whoever puts them
into HTML or Markdown escapes them.
"""

from collections.abc import Iterator, Sequence

from perfkit.analysis.comparison import Comparison, workloads
from perfkit.analysis.study import Finding, Study
from perfkit.analysis.verdict import Verdict
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.reports.contrast_words import missing_words, pair_words, pairs
from perfkit.reports.fastest_words import fastest_words
from perfkit.reports.kv_words import kv_words
from perfkit.reports.places import common, joined, place, places

#: More implementations than this are counted in a sentence, not named.
_NAMED = 5


def verdict_words(study: Study) -> tuple[str, ...]:
    """What a study says: what was measured on what, K/V cache, the fastest, IO check, what went wrong.

    A sentence each. The fastest implementation stands with its share of its roof; several are named where
    their times cannot be told apart. INVALID runs, failures and MODELLED or FAKE numbers are said to be so.
    """
    if not study.findings:
        return (f"There is no run in this record of {study.record.op} on {study.record.device.model}.",)
    said = (*_subject(study), f"{kv_words(study.record.runs)}.", *fastest_words(study), *io_check(study))
    return (*said, *invalid(study), *failures(study))


def comparison_words(comparison: Comparison) -> tuple[str, ...]:
    """What a comparison says: for each candidate how much faster or slower it is, how sure, at what cost.

    A candidate that was compared at several workloads has one sentence for the longest one with an answer,
    and one on all of them. Undecided, the same and only modelled are said to be so. What could not be
    compared comes last, with the reason.
    """
    among = tuple(dict.fromkeys(group.workload for group in comparison.groups))
    found = pairs(comparison)
    answers = (sentence for rows in found for sentence in pair_words(rows, among, comparison.threshold))
    return (*answers, *missing_words(found, among))


def _subject(study: Study) -> Iterator[str]:
    record, among = study.record, workloads(study)
    where = places(place(w, among) for w in among) if len(among) > 1 else ""
    what = f"{common(among)}{f', at {where}' if where else ''}"
    if record.backend == "model":
        yield f"MODELLED: nothing was measured: formulas for {record.op} on {record.device.model} ({what})."
        return
    if record.backend == "fake":
        yield "FAKE: no number here was measured."
    runs = [f.placement.run for f in study.findings]
    names = list(dict.fromkeys(run.impl for run in runs if run.status == "measured"))
    if not names:
        yield f"Nothing could be measured of {record.op} on {record.device.model} ({what})."
        return
    who = joined(names) if len(names) <= _NAMED else f"{len(names)} implementations"
    yield f"{who} {_were(names)} measured: {record.op} on {record.device.model} ({what})."


def _were(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def io_check(study: Study) -> Iterator[str]:
    judged = [(f, v) for f in study.findings for v in f.verdicts]
    counts = {
        word: sum(verdict.status == status for _, verdict in judged)
        for status, word in (
            ("holds", "hold"),
            ("violated", "VIOLATED"),
            ("undecided", "undecided"),
            ("unchecked", "unchecked"),
        )
    }
    if not any(counts.values()):
        return
    yield f"IO check: {', '.join(f'{count} {word}' for word, count in counts.items() if count)}."
    violated = [(finding, verdict) for finding, verdict in judged if verdict.status == "violated"]
    if violated:
        among = workloads(study)
        yield f"VIOLATED: {'; '.join(_check(f, v, among) for f, v in violated)}."


def _check(finding: Finding, verdict: Verdict, among: Sequence[AttentionWorkload]) -> str:
    run, off = finding.placement.run, verdict.deviation
    by = "" if off is None else f" (off by {off:+.1%})"
    return f"{run.impl}{_at(run.setting, among)}, {verdict.check}{by}"


def _at(workload: AttentionWorkload, among: Sequence[AttentionWorkload]) -> str:
    where = place(workload, among)
    return f" at {where}" if where else ""


def invalid(study: Study) -> Iterator[str]:
    among = workloads(study)
    for finding in study.findings:
        placement = finding.placement
        if placement.invalid:
            yield f"INVALID: {placement.run.impl}{_at(placement.run.setting, among)} is {placement.invalid}."


def failures(study: Study) -> Iterator[str]:
    """Runs without a result, those that ended alike in one sentence."""
    among = workloads(study)
    ends: dict[tuple[str, str, str], list[str]] = {}
    for finding in study.findings:
        run = finding.placement.run
        if run.status not in ("measured", "modelled"):
            ends.setdefault((run.impl, run.status, run.reason or "no reason given"), []).append(
                place(run.setting, among)
            )
    for (impl, status, reason), where in ends.items():
        at = f" at {places(where)}" if len(among) > 1 else ""
        yield f"{impl}{at}: {status}: {reason}."
