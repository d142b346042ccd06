"""Figure 2 of FlashAttention in Markdown: a short table for each of its panels."""

from collections.abc import Sequence

from perfkit.analysis.figure2 import BlockPoint, Figure2, Left, SharePoint
from perfkit.model.units import show
from perfkit.reports.figure2_rows import HERE, LeftRow, left_rows, printed_text
from perfkit.reports.figure2_words import figure_words
from perfkit.reports.markdown.text import bullets, table


def figure2_text(figure: Figure2 | None) -> str:
    """Sentences and tables of the panels that there are; empty without a figure."""
    if figure is None:
        return ""
    title = f"**Figure 2 of FlashAttention**\n\n{bullets(figure_words(figure))}"
    left = _left(figure.left) if figure.left is not None else ""
    middle = _middle(figure.middle) if figure.middle else ""
    right = _right(figure.right) if figure.right else ""
    return "\n".join(text for text in (title, left, middle, right) if text)


def _left(left: Left) -> str:
    columns = ("number", "source", "paper, standard", "paper, flash", "formula, standard", "formula, flash")
    return table((*columns, *(f"{impl}, here" for impl in HERE)), [_row(row) for row in left_rows(left)])


def _row(row: LeftRow) -> tuple[str, ...]:
    paper = ("" if value is None else printed_text(value, row.hint) for value in row.paper)
    rest = ("" if value is None else show(value, row.hint) for value in (*row.formula, *row.here))
    return (row.label, row.source, *paper, *rest)


def _middle(points: Sequence[BlockPoint]) -> str:
    columns = (
        "impl", "block", "(2 + 3 T_c) u", "SM<->L2 modelled", "counted", "measured", "DRAM modelled",
        "measured", "time",
    )  # fmt: skip
    rows = []
    for point in points:
        moved = (
            point.paper, point.l2_modelled, point.l2_counted, point.l2_measured, point.dram_modelled,
            point.dram_measured,
        )  # fmt: skip
        time = show(point.time_s, "time")
        rows.append((point.impl, str(point.block), *(show(value, "bytes") for value in moved), time))
    return table(columns, rows)


def _right(points: Sequence[SharePoint]) -> str:
    columns = ("share of blocks", "SM<->L2 modelled", "measured", "time", "over all blocks")
    rows = [
        (
            show(point.share, "percent"),
            show(point.l2_modelled, "bytes"),
            show(point.l2_measured, "bytes"),
            show(point.time_s, "time"),
            show(point.relative, "percent"),
        )
        for point in points
    ]
    return table(columns, rows)
