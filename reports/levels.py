"""Bytes at each level of the memory hierarchy: by the model, counted, measured, and how far apart."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from rich.console import RenderableType

from perfkit.analysis.io_check import zeros_counted
from perfkit.analysis.io_model import Subject
from perfkit.model.units import show
from perfkit.ops.base import Level
from perfkit.record import Run
from perfkit.reports.grid import Column, Row, grid
from perfkit.reports.places import place

LEVELS: Final[tuple[tuple[Level, str], ...]] = (("L2", "SM<->L2"), ("DRAM", "DRAM"))
KINDS: Final[tuple[Literal["_modelled", "_counted", ""], ...]] = ("_modelled", "_counted", "")


def worth_showing(found: Sequence[Subject]) -> bool:
    """Whether there is more than the ledgers say: counters, or several workloads."""
    several = len({one.run.setting for one in found}) > 1
    return several or any(one.run.value("l2_read") is not None for one in found)


def table(found: Sequence[Subject], width: int) -> RenderableType:
    """Read and written together: modelled, counted, measured, and measured over what is expected less 1.

    Expected is what is modelled, and the zeros of TMA where the SM counted what it read.
    """
    names = ("impl", "where", "level", "modelled", "counted", "measured", "off")
    columns = [Column(name=name, justify="left" if name in names[:3] else "right") for name in names]
    kept = [at for at, name in enumerate(names) if name != "counted" or any(one.run.counted for one in found)]
    among = list(dict.fromkeys(one.run.setting for one in found))
    rows, last = [], ("", "")
    for one in found:
        head = (one.run.impl, place(one.run.setting, among))
        for cells in _rows(one.run):
            shown = ("" if head[0] == last[0] else head[0], "" if head == last else head[1], *cells)
            rows.append(Row(cells=tuple(shown[at] for at in kept)))
            last = head
    return grid([columns[at] for at in kept], rows, width)


def _rows(run: Run) -> Iterator[tuple[str, ...]]:
    for level, name in LEVELS:
        modelled, counted, measured = (run.moved(level, kind) for kind in KINDS)
        if modelled is None and measured is None:
            continue
        off = ""
        if modelled is not None and measured is not None:
            expected = modelled + (zeros_counted(run) if level == "L2" else 0)
            off = f"{measured / expected - 1:+.2%}"
        yield name, *(show(value, "bytes") if value else "-" for value in (modelled, counted, measured)), off
