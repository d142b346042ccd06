"""Figure 2 of the FlashAttention paper from a record: its three panels, paper beside model beside device.

FA1 = Dao et al., arXiv 2205.14135, section 3.2. What is printed and how it is explained is in
`ops.attention_figure2`.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from perfkit.analysis.steps import Step, Steps, steps
from perfkit.model.traffic import Traffic
from perfkit.ops import patterns
from perfkit.ops.attention_figure2 import (
    LEFT,
    MIDDLE_BLOCKS,
    RIGHT_SEQ,
    Entry,
    LeftFigure,
    appendix_e,
    middle_bytes,
    reconciliation,
)
from perfkit.ops.attention_gpt2 import gpt2_ledger
from perfkit.ops.attention_published import GPT2_MEDIUM, GPT2_PIPELINE
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import total
from perfkit.record import Record, Run

#: The workload of the middle panel, and of the right one without its pattern.
MIDDLE: Final = msgspec.structs.replace(GPT2_MEDIUM, pass_="fwd")
RIGHT: Final = msgspec.structs.replace(appendix_e(RIGHT_SEQ), dropout=0.0, padding=0)

#: What runs in the left table: GPT-2's pipeline with dropout and padding, the others without.
LEFT_RUNS: Final = (("gpt2", GPT2_PIPELINE), ("standard", GPT2_MEDIUM), ("flash", GPT2_MEDIUM))
#: Tiles of the middle panel: block_n is varied for `flash1`, whose rows are so few that S fits the registers,
#: block_m for `flash`.
FLASH1_TILES: Final = ((64, 64), (64, 128), (32, 256), (16, 512))
FLASH_TILES: Final = ((32, 64), (64, 64), (128, 64), (256, 64))
#: Shares of visible blocks in the right panel, in per cent, and the rows of a block.
SHARES: Final = (5, 10, 20, 25, 30, 40, 50, 60, 80, 100)
RIGHT_BLOCK: Final = 128


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """The left table: the printed figures, the runs beside them, GPT-2's pipeline by steps, and the sums."""

    printed: tuple[LeftFigure, ...]
    runs: tuple[Run, ...]
    steps: Steps | None
    reconciled: tuple[Entry, ...]


class BlockPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One block size of the middle panel; bytes are read and written together, None where not obtained.

    `paper` is (2 + 3 T_c) u, for `flash1` only.
    """

    impl: str
    block: int
    block_m: int
    block_n: int
    paper: float | None
    l2_modelled: float | None
    l2_counted: float | None
    l2_measured: float | None
    dram_modelled: float | None
    dram_measured: float | None
    time_s: float | None
    reason: str | None


class SharePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One share of visible blocks of the right panel; `relative` is its time over that of all blocks."""

    share: float
    l2_modelled: float | None
    l2_measured: float | None
    time_s: float | None
    relative: float | None
    reason: str | None


class Figure2(msgspec.Struct, frozen=True, kw_only=True):
    """The panels of which the record has runs; None and empty for the others.

    `dense_s` is the time of `flash` on the workload of the right panel.
    """

    left: Left | None
    middle: tuple[BlockPoint, ...]
    right: tuple[SharePoint, ...]
    dense_s: float | None


def right_workload(share: int) -> AttentionWorkload:
    """The workload of the right panel with `share` per cent of its blocks visible."""
    return msgspec.structs.replace(RIGHT, pattern=patterns.canonical(f"random:{share}%@{RIGHT_BLOCK}"))


def figure2(record: Record) -> Figure2 | None:
    """The figure from a record; None for one without GPT-2's pipeline and two points of another panel."""
    left, middle, right = _left(record), tuple(_middle(record)), tuple(_right(record))
    if left is None and len(middle) < 2 and len(right) < 2:
        return None
    dense = next((run for run in record.runs if run.impl == "flash" and run.workload == RIGHT), None)
    return Figure2(left=left, middle=middle, right=right, dense_s=dense.value("time") if dense else None)


def _left(record: Record) -> Left | None:
    runs = tuple(run for impl, w in LEFT_RUNS for run in record.runs if (run.impl, run.workload) == (impl, w))
    pipeline = next((run for run in runs if run.impl == "gpt2"), None)
    if pipeline is None:
        return None
    return Left(printed=LEFT, runs=runs, steps=steps(pipeline), reconciled=reconciliation())


def pipeline(left: Left) -> tuple[Step, ...]:
    """The steps of GPT-2's pipeline: with their kernels where these were counted, else the ledger's alone."""
    if left.steps is not None and left.steps.steps is not None:
        return left.steps.steps
    ledger = gpt2_ledger(GPT2_PIPELINE)
    names = dict.fromkeys(entry.kernel for entry in ledger)
    return tuple(_modelled(name, total(entry for entry in ledger if entry.kernel == name)) for name in names)


def _modelled(name: str, moved: Traffic) -> Step:
    return Step(
        name=name, kernels=(), time_s=None, share=None, read_measured=None, write_measured=None,
        read_modelled=moved.read_bytes, write_modelled=moved.write_bytes,
    )  # fmt: skip


def _middle(record: Record) -> Iterator[BlockPoint]:
    for impl, kernel, tiles in (
        ("flash1", "flash1_forward", FLASH1_TILES),
        ("flash", "flash_forward", FLASH_TILES),
    ):
        for tile in tiles:
            run = _tiled(record.runs, impl, kernel, tile)
            if run is None:
                continue
            block = tile[1] if impl == "flash1" else tile[0]
            yield BlockPoint(
                impl=impl,
                block=block,
                block_m=tile[0],
                block_n=tile[1],
                paper=middle_bytes(block) if impl == "flash1" and block in MIDDLE_BLOCKS else None,
                l2_modelled=run.moved("L2", "_modelled"),
                l2_counted=run.moved("L2", "_counted"),
                l2_measured=run.moved("L2"),
                dram_modelled=run.moved("DRAM", "_modelled"),
                dram_measured=run.moved("DRAM"),
                time_s=run.value("time"),
                reason=run.reason,
            )


def _tiled(runs: Sequence[Run], impl: str, kernel: str, tile: tuple[int, int]) -> Run | None:
    for run in runs:
        ran = {(use.block_m, use.block_n) for use in run.uses if use.kernel == kernel}
        if run.impl == impl and run.workload == MIDDLE and tile in ran:
            return run
    return None


def _right(record: Record) -> Iterator[SharePoint]:
    found = {}
    for share in SHARES:
        w = right_workload(share)
        run = next((run for run in record.runs if run.impl == "block-sparse" and run.workload == w), None)
        if run is not None:
            found[share] = run
    whole = found[100].value("time") if 100 in found else None
    for run in found.values():
        time_s = run.value("time")
        yield SharePoint(
            share=patterns.share(str(run.workload.pattern), RIGHT_SEQ),
            l2_modelled=run.moved("L2", "_modelled"),
            l2_measured=run.moved("L2"),
            time_s=time_s,
            relative=time_s / whole if time_s is not None and whole else None,
            reason=run.reason,
        )


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """time = `intercept_s` + `slope_s` x share of visible blocks.

    `deviation` is the largest |measured - line| over measured, and `at` the share where it is.
    """

    intercept_s: float
    slope_s: float
    deviation: float
    at: float


def fit_line(points: Sequence[SharePoint]) -> Line | None:
    """The line through the times by least squares; None below three shares, through which any line may go."""
    timed = [(point.share, point.time_s) for point in points if point.time_s is not None]
    if len({share for share, _ in timed}) < 3:
        return None
    mean_x = math.fsum(x for x, _ in timed) / len(timed)
    mean_y = math.fsum(y for _, y in timed) / len(timed)
    spread = math.fsum((x - mean_x) ** 2 for x, _ in timed)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in timed) / spread
    intercept = mean_y - slope * mean_x
    off, at = max((abs(y - intercept - slope * x) / y, x) for x, y in timed)
    return Line(intercept_s=intercept, slope_s=slope, deviation=off, at=at)


#: Beyond a block size the time no longer follows the bytes where these fall by more than the first share,
#: and time by less than the second.
BYTES_FALL: Final = 0.10
TIME_STAYS: Final = 0.03


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """From `block` on the time of `impl` no longer follows its bytes at SM<->L2.

    `bytes_ratio` and `time_ratio` are those of the largest block, `last`, over those of `block`.
    """

    impl: str
    block: int
    last: int
    bytes_ratio: float
    time_ratio: float


def stalls(points: Sequence[BlockPoint]) -> tuple[Stall, ...]:
    """For each implementation the least block from which bytes still fall and time does not.

    At every step from there on bytes are fewer by more than `BYTES_FALL`, and time nowhere lower by
    `TIME_STAYS` than at that block. Bytes are measured where all are, else modelled.
    """
    found = (_stall(impl, points) for impl in dict.fromkeys(point.impl for point in points))
    return tuple(one for one in found if one is not None)


def _stall(impl: str, points: Sequence[BlockPoint]) -> Stall | None:
    timed = [point for point in points if point.impl == impl and point.time_s]
    measured = all(point.l2_measured is not None for point in timed)
    rows = [
        (point.block, moved, point.time_s)
        for point in sorted(timed, key=lambda point: point.block)
        if (moved := point.l2_measured if measured else point.l2_modelled) and point.time_s
    ]
    for at, (block, moved, time_s) in enumerate(rows[:-1]):
        rest = rows[at:]
        falling = all(after < (1 - BYTES_FALL) * before for (_, before, _), (_, after, _) in pairwise(rest))
        if falling and all(later > (1 - TIME_STAYS) * time_s for _, _, later in rest):
            last, least, final = rows[-1]
            return Stall(
                impl=impl, block=block, last=last, bytes_ratio=least / moved, time_ratio=final / time_s
            )
    return None
