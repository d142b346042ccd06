"""The tables of Figure 2 in the HTML report."""

from collections.abc import Iterator, Sequence
from typing import Final

from perfkit.analysis.figure2 import BlockPoint, Figure2, Left, SharePoint, pipeline
from perfkit.analysis.steps import Step
from perfkit.model.units import Hint, short_count, show
from perfkit.ops.attention_figure2 import APPENDIX_E, DEVICE, RIGHT_SEQ, Entry
from perfkit.record import Provenance
from perfkit.reports.figure2_rows import HERE, LeftRow, exact_text, left_rows, printed_text
from perfkit.reports.figure2_words import APPENDIX, UNLIKE
from perfkit.reports.html.cells import Cell, Column, Looks, Row, Table, absent, columns, once, shown, words

_PRINTED: Final = f"printed, of {DEVICE}"
_NOT_HERE: Final = "not obtained in this record"


def figure2_tables(figure: Figure2, looks: Looks) -> tuple[Table, ...]:
    """The panels that the record has runs of, as tables."""
    left = figure.left
    of_left = (_left(left), _steps(left), _entries(left.reconciled)) if left is not None else ()
    middle = (_middle(figure.middle, looks),) if figure.middle else ()
    right = (_right(figure.right), _appendix(figure)) if figure.right else ()
    return (*of_left, *middle, *right)


def _table(caption: str, head: tuple[Column, ...], rows: Sequence[tuple[Cell, ...]]) -> Table:
    return Table(caption=caption, columns=head, rows=tuple(Row(cells=row) for row in rows))


def _left(left: Left) -> Table:
    head = columns(
        "number", "source", "paper, standard", "paper, flash", "formula, standard", "formula, flash",
        *(f"{impl}, here" for impl in HERE), text=("source",),
    )  # fmt: skip
    rows = once([tuple(_left_cells(row)) for row in left_rows(left)], 0)
    return _table("Left: GPT-2 medium, forward + backward", head, rows)


def _left_cells(row: LeftRow) -> Iterator[Cell]:
    yield words(row.label)
    yield words(row.source)
    for value in row.paper:
        yield _given(None if value is None else printed_text(value, row.hint), _PRINTED)
    for value in row.formula:
        yield shown(value, row.hint, "modelled", None) if value is not None else words("")
    for impl, value in zip(HERE, row.here, strict=True):
        if row.source == "printed":
            yield words("")
        else:
            yield shown(value, row.hint, row.source, _NOT_HERE, UNLIKE if impl != "gpt2" else None)


def _given(text: str | None, note: str | None = None) -> Cell:
    """A number that is nobody's measurement here."""
    return words("") if text is None else Cell(text=text, note=note, number=True)


def _steps(left: Left) -> Table:
    head = columns("step", "kernels", "share of time", "time", "DRAM, modelled", "DRAM, measured")
    reason = left.steps.reason if left.steps is not None else "it was not run"
    return _table("GPT-2's pipeline, step by step", head, [_step(step, reason) for step in pipeline(left)])


def _step(step: Step, reason: str | None) -> tuple[Cell, ...]:
    why = reason or "a kernel of this step was not counted"
    sides = (step.read_measured, step.write_measured)
    measured = None if None in sides else sum(side for side in sides if side is not None)
    kernels = Cell(text=str(len(step.kernels)), note="; ".join(step.kernels), number=True)
    return (
        words(step.name),
        kernels if step.kernels else absent(why),
        shown(step.share, "percent", "measured", why),
        shown(step.time_s, "time", "measured", why),
        shown(step.read_modelled + step.write_modelled, "bytes", "modelled", why),
        shown(measured, "bytes", "measured", why),
    )


def _entries(entries: Sequence[Entry]) -> Table:
    text = ("how it may come about", "formula", "fits")
    head = columns("printed", *text[:2], "value", "fits", text=text)
    rows = [
        (
            words(f"{printed_text(one.printed, one.hint)}, {one.impl}"),
            words(one.label),
            words(one.formula, "long"),
            Cell(text=f"{exact_text(one.value, one.hint)}*", kind="modelled", number=True),
            words("yes", "good") if one.fits else words("no"),
        )
        for one in entries
    ]
    return _table("What explains the printed numbers", head, once(rows, 0))


def _middle(points: Sequence[BlockPoint], looks: Looks) -> Table:
    head = columns(
        "implementation", "block size", "tile", "(2 + 3 T_c) u", "SM<->L2, modelled", "counted", "measured",
        "DRAM, modelled", "measured", "time",
    )  # fmt: skip
    rows = once([(_impl(point.impl, looks), *_block(point)) for point in points], 0)
    return _table("Middle: traffic and time against the block size", head, rows)


def _block(point: BlockPoint) -> Iterator[Cell]:
    yield _given(str(point.block), "keys" if point.impl == "flash1" else "rows of queries")
    yield _given(f"{point.block_m} x {point.block_n}")
    why = point.reason or _NOT_HERE
    numbers: tuple[tuple[float | None, Hint, Provenance], ...] = (
        (point.l2_modelled, "bytes", "modelled"), (point.l2_counted, "bytes", "counted"),
        (point.l2_measured, "bytes", "measured"), (point.dram_modelled, "bytes", "modelled"),
        (point.dram_measured, "bytes", "measured"), (point.time_s, "time", "measured"),
    )  # fmt: skip
    yield shown(point.paper, "bytes", "modelled", "the paper's formula is of Algorithm 1")
    for value, hint, provenance in numbers:
        yield shown(value, hint, provenance, why)


def _right(points: Sequence[SharePoint]) -> Table:
    head = columns("share of blocks", "SM<->L2, modelled", "measured", "time", "time over all blocks")
    rows = []
    for point in points:
        why = point.reason or _NOT_HERE
        rows.append(
            (
                words(show(point.share, "percent")),
                shown(point.l2_modelled, "bytes", "modelled", why),
                shown(point.l2_measured, "bytes", "measured", why),
                shown(point.time_s, "time", "measured", why),
                shown(point.relative, "percent", "measured", why),
            )
        )
    return _table("Right: block-sparse, by the share of blocks", head, rows)


def _appendix(figure: Figure2) -> Table:
    labels = tuple(dict.fromkeys(point.label for point in APPENDIX_E))
    rows = []
    for seq in dict.fromkeys(point.seq for point in APPENDIX_E):
        times = {point.label: point.time_s for point in APPENDIX_E if point.seq == seq}
        given = (_given(show(times[label], "time"), APPENDIX) for label in labels)
        rows.append((words(f"paper, {DEVICE}"), _given(short_count(seq)), *given))
    dense = shown(figure.dense_s, "time", "measured", _NOT_HERE)
    none = (absent("not part of this record"), dense, absent("see the table above"))
    rows.append((words("here"), _given(short_count(RIGHT_SEQ)), *none))
    return _table("Dense attention, and what appendix E says", columns("where", "N", *labels), rows)


def _impl(name: str, looks: Looks) -> Cell:
    return Cell(text=name, look=looks.get(name), kind="impl")
