"""What `perfkit doctor` prints: findings, and what works here. Words carry the meaning, colour repeats it."""

from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from perfkit.measure.abilities import Ability
    from perfkit.measure.doctor import Finding

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red", "absent": "dim"}
_ANSWERS: Final = {True: ("yes", "green"), False: ("no", "yellow"), None: ("maybe", "yellow")}


def render(findings: "list[Finding]", abilities: "list[Ability]") -> RenderableType:
    """Both tables, for any width; 80 columns are enough."""
    return Group(
        Text("Findings", style="bold"),
        _findings(findings),
        Text(),
        Text("Works here", style="bold"),
        _able(abilities),
    )


def _findings(findings: "list[Finding]") -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=6)
    table.add_column(width=12, no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        table.add_row(Text(one.status, style=_STYLES[one.status]), one.subject, _with_fix(one.text, one.fix))
    return table


def _able(abilities: "list[Ability]") -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=6)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in abilities:
        word, style = _ANSWERS[one.able]
        because = f"because {one.because}" if one.because else ""
        table.add_row(Text(word, style=style), one.what, _with_fix(because, one.fix))
    return table


def _with_fix(text: str, fix: str) -> Text:
    """`text`, and what to do about it on its own line; never read as markup."""
    return Text(f"{text}\nfix: {fix}" if fix else text)
