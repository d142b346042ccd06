"""Which of two algorithms moves less for a given fast memory, as a table."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from perfkit.analysis.regimes import Regimes
from perfkit.reports.grid import Column, Row, grid


def regimes_table(found: Regimes, width: int) -> RenderableType:
    """A row for each M: the tiles that it allows, elements a head of both, and the bound."""
    names = ("M", "flash rows", "square side", "flash", "square", "least", "moves less")
    columns = [Column(name=name, justify="left" if name == names[-1] else "right") for name in names]
    rows = [
        Row(
            cells=(
                f"{one.memory:,}", f"{one.rows:g}", f"{one.side:.3g}", f"{one.flash:.3g}",
                f"{one.square:.3g}", f"{one.bounds.least:.3g}", one.lower,
            )
        )
        for one in found.table[::2]
    ]  # fmt: skip
    note = (
        f"least: Saha and Ye, Theorem 3.1, without its constant, in which both meet at M = d^2 = "
        f"{found.leading:,}; these two meet at {found.meet:,.0f}"
    )
    return Group(grid(columns, rows, width), Padding(Text(note, "dim"), (0, 0, 0, 2)))
