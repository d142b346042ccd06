"""M of the law beside what a thread block of the compiled kernel holds on chip, as a table."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from perfkit.analysis.onchip import OnChip
from perfkit.model.units import show, significant
from perfkit.reports.grid import Column, Row, grid


def memory_table(found: Sequence[OnChip], width: int) -> RenderableType:
    """A row a kernel, tile and head dim; `*` marks shared memory by the model."""
    names = ("kernel", "d", "tile", "M by law", "shared", "accum.", "registers", "constant")
    columns = [Column(name=name, justify="left" if name in ("kernel", "tile") else "right") for name in names]
    rows, last = [], ""
    for one in found:
        rows.append(Row(cells=_cells(one, last)))
        last = one.kernel
    notes = [
        "accum.: accumulators, a part of the registers; constant: in front of the law if M is both and shared"
    ]
    if any(one.shared_source == "modelled" for one in found):
        notes.append("* shared memory by the model: nothing was compiled here")
    return Group(grid(columns, rows, width), *(Padding(Text(note, "dim"), (0, 0, 0, 2)) for note in notes))


def _cells(one: OnChip, last: str) -> tuple[str, ...]:
    mark = "*" if one.shared_source == "modelled" else ""
    return (
        "" if one.kernel == last else one.kernel,
        str(one.head_dim),
        f"{one.block_m}x{one.block_n}",
        "-" if one.law_bytes is None else show(one.law_bytes, "bytes"),
        f"{show(one.shared_bytes, 'bytes')}{mark}",
        show(one.accumulator_bytes, "bytes"),
        "-" if one.register_bytes is None else show(one.register_bytes, "bytes"),
        "-" if one.constant is None else significant(one.constant),
    )
