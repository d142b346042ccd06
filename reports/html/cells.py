"""Tables of the HTML report as plain data: cells that carry their provenance, rows, columns."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from perfkit.model.units import Hint, show
from perfkit.record import Number, Provenance, Run

#: What stands behind a number of this provenance. Measured is the rule and has no mark.
MARKS: Final[dict[Provenance, str]] = {
    "measured": "", "modelled": "*", "counted": "#", "datasheet": "§", "unavailable": "",
}  # fmt: skip


#: The class of a number of this provenance. A letter: with 50 records there are 35 000 of them.
CLASSES: Final[dict[Provenance, str]] = {
    "measured": "m", "modelled": "f", "counted": "c", "datasheet": "d", "unavailable": "u",
}  # fmt: skip


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """How an implementation is drawn everywhere: a hue of the style sheet and a symbol."""

    index: int
    hue: int
    symbol: str


Looks = dict[str, Look]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell: its text, the class that styles it (a provenance or a status), and its title."""

    text: str
    kind: str = ""
    note: str | None = None
    number: bool = False
    look: Look | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row; `heading` makes it the title of the rows below, `kind` styles it."""

    cells: tuple[Cell, ...] = ()
    heading: str | None = None
    kind: str = ""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column: its name, whether it holds numbers, and what it means."""

    name: str
    number: bool = False
    note: str | None = None


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table with what it is called by those who do not see it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def columns(*names: str, text: Iterable[str] = ()) -> tuple[Column, ...]:
    """Columns of numbers but for the first one and those in `text`."""
    left = {names[0], *text}
    return tuple(Column(name=name, number=name not in left) for name in names)


def words(text: str, kind: str = "", note: str | None = None) -> Cell:
    """A cell of text."""
    return Cell(text=text, kind=kind, note=note)


def absent(reason: str | None) -> Cell:
    """A number that is not there, and why; None where a footnote of the table says it."""
    return Cell(text="-", kind="unavailable", note=reason, number=True)


def shown(
    value: float | None, hint: Hint, provenance: Provenance, reason: str | None, note: str | None = None
) -> Cell:
    """A number with its provenance; absent for `reason` where it is None."""
    if value is None or provenance == "unavailable":
        return absent(reason)
    return Cell(text=show(value, hint) + MARKS[provenance], kind=provenance, note=note, number=True)


def number_cell(number: Number | None, hint: Hint) -> Cell:
    """A recorded or derived number, its remark in the title."""
    if number is None:
        return absent("not recorded")
    return shown(
        number.value, hint, number.provenance, number.reason or "no reason was recorded", number.reason
    )


def tag_cell(run: Run, tag: str, hint: Hint) -> Cell:
    """The number `tag` of a run."""
    return number_cell(run.numbers.get(tag), hint)


def once(rows: Sequence[tuple[Cell, ...]], column: int) -> list[tuple[Cell, ...]]:
    """`rows` with the cells of a column empty where they repeat the one above."""
    found = []
    for at, row in enumerate(rows):
        repeated = at > 0 and rows[at - 1][column] == row[column]
        found.append((*row[:column], words(""), *row[column + 1 :]) if repeated else row)
    return found
