"""Figure 2 of the FlashAttention paper (FA1, arXiv 2205.14135): what is printed, and what explains it.

u is one N x d tensor over batch and heads, N^2 one pass over an N x N matrix, T_c = N / B_c the blocks of
keys. Printed figures are those of the paper; values are computed from formulas and the workload.
"""

from typing import Final

import msgspec

from perfkit.model.units import Hint
from perfkit.ops.attention_gpt2 import published_ledger
from perfkit.ops.attention_io import compulsory, standard_flops
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_published import GPT2_PIPELINE
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import total

SOURCE: Final = "FlashAttention, arXiv 2205.14135"
DEVICE: Final = "A100 40 GB"
#: B_c of the kernels of 2022 at d = 64.
BLOCK_KEYS: Final = 256
#: Operations on a score that are no product: the number that makes the printed FLOPs add up.
SCORE_FLOPS: Final = 14


class LeftFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the left table, in base units: GPT-2's pipeline ("standard") beside FlashAttention."""

    label: str
    tag: str
    hint: Hint
    standard: float
    flash: float


#: Forward and backward of GPT2_PIPELINE.
LEFT: Final = (
    LeftFigure(label="FLOPs", tag="flops", hint="flop", standard=66.6e9, flash=75.2e9),
    LeftFigure(label="HBM reads and writes", tag="dram_bytes", hint="bytes", standard=40.3e9, flash=4.4e9),
    LeftFigure(label="runtime", tag="time", hint="time", standard=41.7e-3, flash=7.3e-3),
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One way to arrive at a printed figure: its formula, its value in a base unit, and whether it `fits`.

    `printed` is the figure that it is held against, of `impl` (standard or flash).
    A value fits that rounds to it.
    """

    impl: str
    label: str
    formula: str
    value: float
    printed: float
    hint: Hint

    @property
    def fits(self) -> bool:
        """Whether the value is the printed one, in the digits that are printed (a tenth of a GFLOP or GB)."""
        return round(self.value / 1e9, 1) == round(self.printed / 1e9, 1)


def reconciliation(w: AttentionWorkload = GPT2_PIPELINE) -> tuple[Entry, ...]:
    """The left table's FLOPs and bytes from formulas: those that fit, and those that one might expect to.

    The 66.6 and 75.2 GFLOPs fit no count of that workload: they fit products of one head of each sequence,
    and 14 operations a score of all heads. The products really are 824.6 and, recomputing S, 962.1 GFLOP.
    """
    return (*_standard_bytes(w), *_flash_bytes(w), *_flops(w))


def _entry(printed: LeftFigure, impl: str, label: str, formula: str, value: float) -> Entry:
    figure: float = getattr(printed, impl)
    return Entry(impl=impl, label=label, formula=formula, value=value, printed=figure, hint=printed.hint)


def _standard_bytes(w: AttentionWorkload) -> tuple[Entry, ...]:
    square, unit = w.scores_bytes, w.query_bytes

    def entry(label: str, formula: str, value: float) -> Entry:
        return _entry(LEFT[1], "standard", label, formula, value)

    return (
        entry("GPT-2 pipeline, additive mask", "18 N^2 + 12 u", total(published_ledger(w)).total_bytes),
        entry("Algorithms 0 and 3", "11 N^2 + 12 u", 11 * square + 12 * unit),
        entry("GPT-2 pipeline, masked_fill", "20 N^2 + 12 u", 20 * square + 12 * unit),
    )


def _flash_bytes(w: AttentionWorkload) -> tuple[Entry, ...]:
    """Forward and backward by the loops of Algorithms 1 and 4, in u.

    Literally, without the first fill of O, dQ, dK and dV: K and V 2; for each block of keys Q read, O read
    and written: 3; backward Q, O and dO read, dQ read and written: 5; dK and dV 2. The code of 2022 does not
    read partial O and dQ in the first block, and reads O once backward, for D: K and V 2, Q T_c, O 2 T_c - 1;
    backward K and V 2, Q and dO 2 T_c, O 1, dQ 2 T_c - 1, dK and dV 2. In fp32 partial O and dQ, all but what
    the last block writes, are twice as wide: 2 (T_c - 1) more each. Statistics: LSE written T_c times and
    read T_c - 1 times; backward LSE read T_c times, D written once and read T_c - 1
    times.
    """
    unit, t = w.query_bytes, -(-w.seq_k // BLOCK_KEYS)
    wider, statistics = 4 * (t - 1), (4 * t - 1) * STATISTIC_BYTES * w.rows
    spared = (1 + 3 * t) + (4 + 4 * t)

    def entry(label: str, formula: str, value: float) -> Entry:
        return _entry(LEFT[1], "flash", label, formula, value)

    once = compulsory(msgspec.structs.replace(w, padding=0))
    return (
        entry("fp16 partial O and dQ, first read spared", "(1 + 3 T_c) u + (4 + 4 T_c) u", spared * unit),
        entry("Algorithms 1 and 4, literally", "(2 + 3 T_c) u + (4 + 5 T_c) u", (6 + 8 * t) * unit),
        entry(
            "the code of 2022, partial O and dQ in fp32",
            "(5 T_c - 1) u + (2 + 6 T_c) u + (4 T_c - 1) statistics",
            (spared + wider) * unit + statistics,
        ),
        entry("each tensor once", "12 u and a statistic, written and read", once.total_bytes),
    )


def _flops(w: AttentionWorkload) -> tuple[Entry, ...]:
    one_head = 2 * w.seq_q * w.seq_k * w.head_dim * w.batch  # a product over one head of each sequence
    scores = SCORE_FLOPS * w.rows * w.seq_k
    return (
        _entry(LEFT[0], "standard", "products of one head, scores of all", "6 x 2 N^2 d B + 14 N^2 h B",
               6 * one_head + scores),
        _entry(LEFT[0], "standard", "products of all heads", "6 x 2 N^2 d h B", standard_flops(w)),
        _entry(LEFT[0], "flash", "products of one head, scores of all", "7 x 2 N^2 d B + 14 N^2 h B",
               7 * one_head + scores),
        _entry(LEFT[0], "flash", "products of all heads", "7 x 2 N^2 d h B", 7 * one_head * w.heads),
    )  # fmt: skip


#: Block sizes of the middle panel, whose values are not printed.
MIDDLE_BLOCKS: Final = (64, 128, 256, 512)


def middle_bytes(block: int, w: AttentionWorkload = GPT2_PIPELINE) -> int:
    """(2 + 3 T_c) u: K and V once, and for each block of keys Q and O read and O written (FA1 Algorithm 1).

    Forward; O is of the working dtype, statistics and the first fill of O are left out.
    """
    return (2 + 3 * -(-w.seq_k // block)) * w.query_bytes


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime of FA1's appendix E, forward and backward with dropout and mask, in seconds."""

    label: str
    seq: int
    time_s: float


#: The length of the right panel, and what appendix E says of it and of 1k. B 16, 8 heads, d 64, on DEVICE.
RIGHT_SEQ: Final = 4096
APPENDIX_E: Final = (
    Point(label="PyTorch", seq=1024, time_s=8.29e-3),
    Point(label="FlashAttention", seq=1024, time_s=2.55e-3),
    Point(label="block-sparse FlashAttention", seq=1024, time_s=0.89e-3),
    Point(label="PyTorch", seq=RIGHT_SEQ, time_s=124.19e-3),
    Point(label="FlashAttention", seq=RIGHT_SEQ, time_s=37.49e-3),
    Point(label="block-sparse FlashAttention", seq=RIGHT_SEQ, time_s=4.12e-3),
)


def appendix_e(seq: int = RIGHT_SEQ) -> AttentionWorkload:
    """The workload of appendix E at a length; dropout and padding are those of the left table."""
    return msgspec.structs.replace(GPT2_PIPELINE, batch=16, heads=8, kv_heads=8, seq_q=seq, seq_k=seq)
