"""Figure 2 in words: how its runs differ from the paper's, where time leaves bytes, and the fitted line."""

from collections.abc import Iterator
from typing import Final

from perfkit.analysis.figure2 import (
    RIGHT,
    RIGHT_BLOCK,
    Figure2,
    Left,
    Line,
    Stall,
    fit_line,
    right_workload,
    stalls,
)
from perfkit.analysis.held import held
from perfkit.model.units import show
from perfkit.ops import find_op
from perfkit.ops.attention_figure2 import BLOCK_KEYS, DEVICE, SOURCE
from perfkit.ops.attention_published import GPT2_PIPELINE
from perfkit.ops.base import total
from perfkit.record import Run
from perfkit.reports.figure2_rows import missing
from perfkit.reports.places import common

LEFT_TITLE: Final = "Figure 2, left: GPT-2 medium, forward + backward"
STEPS_TITLE: Final = "GPT-2's pipeline, step by step"
ENTRIES_TITLE: Final = "What explains the printed numbers"
MIDDLE_TITLE: Final = "Figure 2, middle: traffic and time against the block size, forward"
RIGHT_TITLE: Final = "Figure 2, right: time against the share of blocks, forward + backward"
APPENDIX_TITLE: Final = "Dense attention, and what appendix E of the paper says"

PRINTED: Final = f"paper: {SOURCE}, on {DEVICE}; its middle and right panel have no printed values"
FORMULA: Final = (
    "formula: bytes of GPT-2's pipeline as published and of FlashAttention's loops, and the products of all "
    "heads as FLOPs"
)
UNLIKE: Final = (
    f"gpt2 runs with dropout {GPT2_PIPELINE.dropout:g} and a padding mask, as the paper's script did; "
    "standard and flash run without: only gpt2 is like for like"
)
SYMBOLS: Final = (
    "N^2: one pass over an N x N matrix of all heads; u: one N x d tensor of all heads; "
    f"T_c: blocks of {BLOCK_KEYS} keys; h heads, B sequences"
)
BLOCKS: Final = (
    "block: keys for flash1 (B_c), rows of queries for flash (B_r); paper: (2 + 3 T_c) u with O in fp16, "
    "while flash1 keeps partial O in fp32, as the code of 2022 did"
)
APPENDIX: Final = f"paper: on {DEVICE}, with dropout and a padding mask; here neither"

#: Times that differ by less are said to be the same.
_SAME: Final = 0.0005
#: What a count differs by in less than this share of its bytes is not explained here, but in `perfkit io`.
_WORTH_SAYING: Final = 0.01


def left_notes(left: Left) -> Iterator[str]:
    """Where the columns of the left table are from, what does not compare, and why numbers are absent."""
    yield from (PRINTED, FORMULA, UNLIKE)
    rows = [(run, find_op("attention").implementation(run.impl)) for run in left.runs]
    causes = {run.impl: row.io.extra_flops(run.workload, run.uses) for run, row in rows if row and row.io}
    said = "; ".join(f"{impl}: {', '.join(why)}" for impl, why in causes.items() if why)
    if said:
        yield f"FLOPs here: {said}"
    yield from dict.fromkeys(f"counted: {reason}" for run in left.runs for reason in _off(run))
    yield from (f"not measured: {reason}" for reason in missing(left))


def _off(run: Run) -> Iterator[str]:
    """Why the count of a run is more than `_WORTH_SAYING` of it away from its ledger."""
    off: dict[str, int] = {}
    for one in held("attention", run) or ():
        reason = one.reason or f"{run.impl} differs from its ledger in {one.kernel}, and nothing explains it"
        off[reason] = off.get(reason, 0) + one.counted.total_bytes - one.expected.total_bytes
    whole = total(run.counted).total_bytes
    yield from (reason for reason, net in off.items() if abs(net) > _WORTH_SAYING * whole)


def steps_note(left: Left) -> str:
    """How to read the steps; why they have no time where they have none."""
    if left.steps is None or left.steps.steps is None:
        reason = "it was not run" if left.steps is None else left.steps.reason
        return f"the ledger of gpt2 alone: {reason}"
    return (
        "time under the profiler, so that its share is what compares; bytes that a step leaves dirty in L2 "
        "are written during the next"
    )


def stall_words(figure: Figure2) -> Iterator[str]:
    """From which block on runtime no longer follows traffic; nothing where it always does."""
    yield from map(_stall_words, stalls(figure.middle))


def _stall_words(one: Stall) -> str:
    off = one.time_ratio - 1
    time = f"time {'grows' if off > 0 else 'falls'} by {show(abs(off), 'percent')}"
    return (
        f"{one.impl}: beyond block {one.block} runtime no longer follows traffic: up to block {one.last} "
        f"SM<->L2 bytes fall by {show(1 - one.bytes_ratio, 'percent')}, and "
        f"{'time stays' if abs(off) < _SAME else time}."
    )


def figure_words(figure: Figure2) -> Iterator[str]:
    """The figure in whole sentences, for reports in which charts and tables stand below one paragraph."""
    yield f"The paper's figure ({SOURCE}, on {DEVICE}) beside formulas and the runs of this record."
    if figure.left is not None:
        yield f"{UNLIKE}."
    yield from stall_words(figure)
    yield from right_words(figure)


def right_place() -> str:
    """What all workloads of the right panel have in common, and what their patterns are."""
    return f"{common([RIGHT, right_workload(50)])}, random blocks of {RIGHT_BLOCK}"


def right_words(figure: Figure2) -> Iterator[str]:
    """The fitted line, and the time of dense attention beside that of all blocks."""
    line = fit_line(figure.right)
    if line is not None:
        yield line_words(line)
    whole = next((point.time_s for point in figure.right if point.share == 1), None)
    if figure.dense_s is not None:
        beside = f", block-sparse with all blocks {show(whole, 'time')}" if whole is not None else ""
        yield f"Dense flash takes {show(figure.dense_s, 'time')}{beside}."


def line_words(line: Line) -> str:
    """`time = a + b x share by least squares: a = 12.0 us, b = 3.80 ms; the largest deviation is ...`."""
    a = f"{'-' if line.intercept_s < 0 else ''}{show(abs(line.intercept_s), 'time')}"
    return (
        f"time = a + b x share by least squares: a = {a}, b = {show(line.slope_s, 'time')}; the largest "
        f"deviation is {show(line.deviation, 'percent')}, at a share of {show(line.at, 'percent')}."
    )
