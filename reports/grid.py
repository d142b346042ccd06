"""A table for the terminal in which a row may end in text that runs over the columns that are left."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final, Literal

import msgspec
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_GAP: Final = 1
_LEAST: Final = 6


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A heading and the side that its cells stand at; a `wide` one is folded where the table is too wide."""

    name: str
    justify: Literal["left", "right"] = "right"
    wide: bool = False


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of one row and their styles; `rest` runs over the columns that have no cell."""

    cells: tuple[str, ...]
    styles: tuple[str, ...] = ()
    rest: str = ""

    def style(self, index: int) -> str:
        """The style of the cell `index`."""
        return self.styles[index] if index < len(self.styles) else ""


def grid(columns: Sequence[Column], rows: Sequence[Row], width: int) -> RenderableType:
    """The table in at most `width` columns; a column without a heading and without text is left out."""
    kept = [i for i, c in enumerate(columns) if c.name or any(i < len(r.cells) and r.cells[i] for r in rows)]
    shown = [columns[i] for i in kept]
    lines = [
        Row(
            cells=tuple(row.cells[i] for i in kept if i < len(row.cells)),
            styles=tuple(row.style(i) for i in kept if i < len(row.cells)),
            rest=row.rest,
        )
        for row in rows
    ]
    widths = _widths(shown, lines, width)
    parts = [_plain(shown, (), widths, header=True)]
    for spanning, group in groupby(lines, key=lambda row: bool(row.rest)):
        found = tuple(group)
        if spanning:
            parts += [_spanning(shown, row, widths, width) for row in found]
        else:
            parts.append(_plain(shown, found, widths, header=False))
    return Group(*parts)


def _widths(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[int]:
    """The width of each column; the wide ones share what is too much."""
    widths = [cell_len(column.name) for column in columns]
    for row in rows:
        for index, cell in enumerate(row.cells):
            widths[index] = max(widths[index], cell_len(cell))
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    for index, column in sorted(enumerate(columns), key=lambda pair: -widths[pair[0]]):
        if column.wide and excess > 0:
            cut = min(excess, max(widths[index] - _LEAST, 0))
            widths[index], excess = widths[index] - cut, excess - cut
    return widths


def _plain(columns: Sequence[Column], rows: Sequence[Row], widths: Sequence[int], header: bool) -> Table:
    table = _table()
    table.show_header = header
    for column, wide in zip(columns, widths, strict=True):
        table.add_column(column.name, justify=column.justify, width=wide, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, row.style(i)) for i, cell in enumerate(row.cells)))
    return table


def _spanning(columns: Sequence[Column], row: Row, widths: Sequence[int], width: int) -> Table:
    """The first cells in their columns, then the text, folded at the right edge."""
    first = len(row.cells)
    table = _table()
    table.show_header = False
    for column, wide in zip(columns[:first], widths, strict=False):
        table.add_column(justify=column.justify, width=wide, overflow="fold")
    table.add_column(width=max(width - sum(widths[:first]) - _GAP * first, _LEAST), overflow="fold")
    table.add_row(*(Text(cell, row.style(i)) for i, cell in enumerate(row.cells)), Text(row.rest))
    return table


def _table() -> Table:
    return Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold", expand=False)
