"""The gate as Markdown, for a comment on a pull request or the summary of a CI step."""

from collections.abc import Iterator, Sequence

from perfkit.analysis.gate.check import Check
from perfkit.analysis.gate.judge import GateResult
from perfkit.reports.cells import place_header
from perfkit.reports.gate import words
from perfkit.reports.markdown.text import bullets, escape, folded, table


def as_markdown(result: GateResult) -> bytes:
    """The verdict, what failed, warned and improved, and the rest folded away."""
    return "\n".join(_parts(result)).encode()


def _parts(result: GateResult) -> Iterator[str]:
    yield f"### perfkit gate: {escape(words.verdict_line(result))}\n"
    yield "  \n".join(escape(line) for line in words.subject_lines(result)) + "\n"
    for status, title, rest in words.SECTIONS:
        if checks := result.of(status):
            yield f"**{title}**: {rest}\n"
            yield _table(checks, result)
    yield f"{escape(words.passed_line(result))}\n"
    notes = (*words.noted_lines(result), words.limits_line(result), *result.notes)
    yield folded("Limits and notes", bullets(notes))


def _table(checks: Sequence[Check], result: GateResult) -> str:
    among = result.workloads
    head = (place_header(among),) if len(among) > 1 else ()
    columns = ("impl", *head, "check", "baseline", "now", "change", "verdict")
    rows = []
    for check in checks:
        where = (words.where_text(check, result),) if head else ()
        rows.append((_impl(check, bool(head)), *where, check.what, *words.value_texts(check), check.reason))
    return table(columns, rows)


def _impl(check: Check, placed: bool) -> str:
    """The implementation; which of several equal runs it is where no other column says so."""
    return check.impl if placed or not check.repeat else f"{check.impl} #{check.repeat + 1}"
