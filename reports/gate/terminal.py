"""The gate in the terminal: the verdict, then what failed, warned and improved; what passed is counted."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from perfkit.analysis.gate.check import Check, CheckStatus
from perfkit.analysis.gate.judge import GateResult
from perfkit.reports.cells import place_header
from perfkit.reports.gate import words
from perfkit.reports.grid import Column, Row, grid

_STYLE: Final[dict[CheckStatus, str]] = {"fail": "bold red", "warn": "yellow", "improved": "green"}


def render(result: GateResult, width: int = 80) -> RenderableType:
    """The whole report for a terminal of `width` columns."""
    verdict = words.verdict_line(result)
    parts: list[RenderableType] = [Text(verdict, "bold red" if result.exit_code else "bold green")]
    parts += [Text(line) for line in words.subject_lines(result)]
    for status, title, rest in words.SECTIONS:
        if checks := result.of(status):
            parts += [
                Text(),
                Text.assemble((title, _STYLE[status]), f"  {rest}"),
                _table(checks, result, width),
            ]
    notes = (*words.noted_lines(result), words.passed_line(result), words.limits_line(result), *result.notes)
    parts += [Text(), *(Padding(Text(note, "dim"), (0, 0, 0, 2), expand=False) for note in notes)]
    return Group(*parts)


def _table(checks: Sequence[Check], result: GateResult, width: int) -> RenderableType:
    where = place_header(result.workloads) if len(result.workloads) > 1 else ""
    columns = (
        Column(name="impl", justify="left", wide=True), Column(name=where, justify="left", wide=True),
        Column(name="check", justify="left", wide=True), Column(name="baseline"), Column(name="now"),
        Column(name="change"),
    )  # fmt: skip
    return grid(columns, list(_rows(checks, result)), width)


def _rows(checks: Sequence[Check], result: GateResult) -> Iterator[Row]:
    """A row for each check, and under the last one of several with the same reason the reason."""
    following: tuple[Check | None, ...] = (*checks[1:], None)
    for check, after in zip(checks, following, strict=True):
        where = words.where_text(check, result)
        yield Row(cells=(check.impl, where, check.what, *words.value_texts(check)))
        if after is None or after.reason != check.reason:
            yield Row(cells=("",), rest=check.reason)
