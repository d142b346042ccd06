"""The tables of Figure 2 in the terminal."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from perfkit.analysis.figure2 import BlockPoint, Figure2, Left, SharePoint, pipeline
from perfkit.analysis.steps import Step
from perfkit.model.units import short_count, show
from perfkit.ops.attention_figure2 import APPENDIX_E, RIGHT_SEQ, Entry
from perfkit.reports.figure2_rows import HERE, exact_text, left_rows, number_text, printed_text
from perfkit.reports.grid import Column, Row, grid


def left_table(left: Left) -> RenderableType:
    """FLOPs, HBM bytes and runtime: the paper, the formulas, and the runs here; a line for each source."""
    table = _table(
        ("", "left"), ("", "left"), ("paper\nstandard", "right"), ("paper\nflash", "right"),
        ("formula\nstandard", "right"), ("formula\nflash", "right"),
        *((f"here\n{impl}", "right") for impl in HERE),
    )  # fmt: skip
    last = ""
    for row in left_rows(left):
        paper = ("" if value is None else printed_text(value, row.hint) for value in row.paper)
        rest = (number_text(value, row.hint) for value in (*row.formula, *row.here))
        cells = (*(text.removesuffix("FLOP") for text in paper), *rest)
        table.add_row("" if row.label == last else row.label, row.source, *cells)
        last = row.label
    return table


def steps_table(left: Left, width: int) -> RenderableType:
    """GPT-2's pipeline: kernels, share of the time, and DRAM bytes of each step, and their sum."""
    found = pipeline(left)
    counted = any(step.kernels for step in found)
    names = (
        "step",
        *(("kernels", "share", "time") if counted else ()),
        "modelled",
        *(("measured",) * counted),
    )
    columns = [Column(name=name, justify="left" if name == "step" else "right") for name in names]
    return grid(columns, [*(_step(step, counted) for step in found), _whole(found, counted)], width)


def _step(step: Step, counted: bool) -> Row:
    modelled = show(step.read_modelled + step.write_modelled, "bytes")
    if not counted:
        return Row(cells=(step.name, modelled))
    times = show(step.share, "percent"), show(step.time_s, "time")
    measured = show(_sum([step.read_measured, step.write_measured]), "bytes")
    return Row(cells=(step.name, str(len(step.kernels)), *times, modelled, measured))


def _whole(found: Sequence[Step], counted: bool) -> Row:
    modelled = show(sum(step.read_modelled + step.write_modelled for step in found), "bytes")
    if not counted:
        return Row(cells=("in all", modelled))
    kernels, time_s = sum(len(step.kernels) for step in found), _sum([step.time_s for step in found])
    measured = _sum([value for step in found for value in (step.read_measured, step.write_measured)])
    return Row(
        cells=("in all", str(kernels), "", show(time_s, "time"), modelled, show(measured, "bytes")),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(value for value in values if value is not None)


def entries_table(entries: Sequence[Entry], width: int) -> RenderableType:
    """How each printed figure may have come about, and whether the sum fits it."""
    columns = (
        Column(name="printed, and how it may come about", justify="left"),
        Column(name="formula", justify="left", wide=True), Column(name="value"),
        Column(name="fits", justify="left"),
    )  # fmt: skip
    rows: list[Row] = []
    last = ("", 0.0)
    for one in entries:
        if (one.impl, one.printed) != last:
            rows.append(Row(cells=(), rest=f"{printed_text(one.printed, one.hint)}, {one.impl}"))
        value, fits = exact_text(one.value, one.hint), "yes" if one.fits else "no"
        rows.append(Row(cells=(f"  {one.label}", one.formula, value, fits)))
        last = (one.impl, one.printed)
    return grid(columns, rows, width)


def middle_table(points: Sequence[BlockPoint]) -> RenderableType:
    """Bytes by the paper's model, by the kernels' own, counted and measured, and time, by block size."""
    counted = any(point.l2_counted is not None for point in points)
    measured = any(point.l2_measured is not None for point in points)
    timed = any(point.time_s is not None for point in points)
    table = _table(
        ("impl", "left"), ("block", "right"), ("tile", "right"), ("paper", "right"),
        ("SM<->L2\nmodelled", "right"), *((("SM<->L2\ncounted", "right"),) * counted),
        *((("SM<->L2\nmeasured", "right"),) * measured), ("DRAM\nmodelled", "right"),
        *((("DRAM\nmeasured", "right"),) * measured), *((("time", "right"),) * timed),
    )  # fmt: skip
    last = ""
    for point in points:
        moved = [point.paper, point.l2_modelled]
        moved += [point.l2_counted] * counted + [point.l2_measured] * measured
        moved += [point.dram_modelled] + [point.dram_measured] * measured
        table.add_row(
            "" if point.impl == last else point.impl,
            str(point.block),
            f"{point.block_m}x{point.block_n}",
            *(show(value, "bytes") for value in moved),
            *((show(point.time_s, "time"),) * timed),
        )
        last = point.impl
    return table


def right_table(points: Sequence[SharePoint]) -> RenderableType:
    """Bytes and time by the share of blocks that are seen, and time over that of all blocks."""
    measured = any(point.l2_measured is not None for point in points)
    timed = any(point.time_s is not None for point in points)
    table = _table(
        ("share of\nblocks", "right"), ("SM<->L2\nmodelled", "right"),
        *((("SM<->L2\nmeasured", "right"),) * measured), *((("time", "right"),) * timed),
        *((("time over\nall blocks", "right"),) * timed),
    )  # fmt: skip
    for point in points:
        cells = [show(point.share, "percent"), show(point.l2_modelled, "bytes")]
        cells += [show(point.l2_measured, "bytes")] * measured
        cells += [show(point.time_s, "time"), show(point.relative, "percent")] * timed
        table.add_row(*cells)
    return table


def appendix_table(figure: Figure2, width: int) -> RenderableType:
    """The paper's times of dense and block-sparse attention, and dense attention here."""
    labels = tuple(dict.fromkeys(point.label for point in APPENDIX_E))
    columns = [Column(name=name, justify="left" if not name else "right") for name in ("", "N", *labels)]
    rows = []
    for seq in dict.fromkeys(point.seq for point in APPENDIX_E):
        times = {point.label: point.time_s for point in APPENDIX_E if point.seq == seq}
        rows.append(Row(cells=("paper", short_count(seq), *(show(times[name], "time") for name in labels))))
    if figure.dense_s is not None:
        rows.append(Row(cells=("here", short_count(RIGHT_SEQ), "-", show(figure.dense_s, "time"), "-")))
    return grid(columns, rows, width)


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", expand=False)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table
