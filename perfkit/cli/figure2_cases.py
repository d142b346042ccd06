"""What runs for Figure 2 of the FlashAttention paper, panel by panel."""

from collections.abc import Iterator, Sequence
from typing import Final

from perfkit.analysis.figure2 import (
    FLASH1_TILES,
    FLASH_TILES,
    LEFT_RUNS,
    MIDDLE,
    RIGHT,
    SHARES,
    right_workload,
)
from perfkit.cli.io_cases import Case, with_tile
from perfkit.errors import UsageError
from perfkit.model.device import DeviceProfile
from perfkit.ops.base import Implementation, Op

PANELS: Final = ("left", "middle", "right")


def cases(op: Op, panels: Sequence[str], device: DeviceProfile) -> list[Case]:
    """Every run of the panels; UsageError names those there are.

    The right panel is not counted: thousands of blocks are too many for an interpreter.
    """
    unknown = [name for name in panels if name not in PANELS]
    if unknown:
        raise UsageError(f"unknown panel '{unknown[0]}'", f"allowed: {', '.join(PANELS)}")
    found = {"left": _left(op), "middle": _middle(op, device), "right": _right(op)}
    return [case for name in PANELS if name in panels for case in found[name]]


def _row(op: Op, name: str) -> Implementation:
    row = op.implementation(name)
    assert row is not None
    return row


def _left(op: Op) -> Iterator[Case]:
    for impl, w in LEFT_RUNS:
        yield Case(row=_row(op, impl), workload=w, trial=False, counted=True)


def _middle(op: Op, device: DeviceProfile) -> Iterator[Case]:
    for impl, tiles in (("flash1", FLASH1_TILES), ("flash", FLASH_TILES)):
        for tile in tiles:
            row = with_tile(_row(op, impl), MIDDLE, device, tile)
            yield Case(row=row, workload=MIDDLE, trial=True, counted=True)


def _right(op: Op) -> Iterator[Case]:
    for share in SHARES:
        w = right_workload(share)
        yield Case(row=_row(op, "block-sparse"), workload=w, trial=True, counted=False)
    yield Case(row=_row(op, "flash"), workload=RIGHT, trial=True, counted=False)
