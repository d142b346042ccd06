"""The IO model of `block-sparse1`: FlashAttention's Algorithm 5 as written, K and V in the outer loop.

Source: Dao et al., arXiv 2205.14135. Algorithm 1, with turns of the inner loop left out where the mask is 0:
2 N d + s T_c (3 N d + 4 N) + N d + 2 N elements forward, s the share of blocks that are visible, which is
Theta(N d + N^2 d^2 s / M) for B_c = M / 4d (Proposition 4). Results are totals over batch and heads.
"""

from typing import Final

from perfkit.kernels.attention import tiles
from perfkit.ops.attention_flash1 import FP32, flash1_workspace
from perfkit.ops.attention_io import tile_of
from perfkit.ops.attention_ledger import step
from perfkit.ops.attention_sparse import block_of, cut, edge_flops, product, sparse_refuses, visits
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Uses

FORWARD: Final = "sparse1_forward"
BACKWARD: Final = "sparse1_backward"


def sparse1_tiled(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """The kernels of the pass: both loop over tiles."""
    return {"fwd": (FORWARD,), "bwd": (BACKWARD,), "fwd-bwd": (FORWARD, BACKWARD)}[w.pass_]


def sparse1_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that would run on a device of this compute capability, or on the oldest known."""
    return cut(w, (FORWARD, BACKWARD), tiles.sparse1_tiles(w.head_dim, max(capability, (7, 5))))


def sparse1_refuses(w: AttentionWorkload) -> str | None:
    """Why it cannot serve the workload; None where it can: as `block-sparse`, and for blocks alone."""
    if (refused := sparse_refuses(w)) is None and block_of(w) is None:
        return "block-sparse1 takes block patterns, such as random:25%"
    return refused


def sparse1_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels of the pass move between SMs and L2, with the tiles that ran.

    As `flash1`, for the rows in visible blocks; a byte of the mask for each pair of tiles of a query head.
    """
    return tuple(entry for name in sparse1_tiled(w) for entry in kernel_ledger(w, tile_of(uses, name)))


def kernel_ledger(w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """What one of the two kernels moves, by the name of its tile."""
    return (_forward if tile.kernel == FORWARD else _backward)(w, tile)


def _mask(w: AttentionWorkload, tile: KernelUse) -> int:
    return w.batch * w.heads * -(-w.seq_q // tile.block_m) * -(-w.seq_k // tile.block_n)


def _forward(w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """O, l and m zeroed, then read and written for each visible block; the last writes O in its dtype."""
    heads = w.batch * w.heads
    rows, keys = heads * visits(w, tile).queries, heads * w.seq_k * w.head_dim * w.element_bytes
    partial, statistic, first = rows * w.head_dim * FP32, rows * FP32, w.rows * FP32
    read = {"K": keys, "V": keys, "mask": _mask(w, tile), "Q": rows * w.head_dim * w.element_bytes}
    return step(
        FORWARD,
        # Of O one write fewer than visits, and one to zero it.
        {**read, "O in fp32": partial, "l": statistic, "m": statistic},
        {"O in fp32": partial, "l": statistic + first, "m": statistic + first, "O": w.query_bytes},
    )


def _backward(w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """dQ as O forward. dK and dV stay on chip for a block of keys; Algorithm 4 zeroes them first."""
    rows, keys = w.batch * w.heads * visits(w, tile).queries, w.key_bytes
    row_bytes, partial, statistic = rows * w.head_dim * w.element_bytes, rows * w.head_dim * FP32, rows * FP32
    read = {"K": keys, "V": keys, "mask": _mask(w, tile), "Q": row_bytes, "O": row_bytes, "dO": row_bytes}
    return step(
        BACKWARD,
        {**read, "l": statistic, "m": statistic, "dQ in fp32": partial},
        {"dQ in fp32": partial, "dQ": w.query_bytes, "dK": 2 * keys, "dV": 2 * keys},
    )


def sparse1_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: 2 products a tile forward, 5 backward, the head dim a power of two."""
    products = {FORWARD: 2, BACKWARD: 5}
    return sum(products[name] * product(w, tile_of(uses, name)) for name in sparse1_tiled(w))


def sparse1_exps(w: AttentionWorkload, _: Uses) -> int:
    """One exp per visible score in each pass."""
    return len(sparse1_tiled(w)) * w.pairs


def sparse1_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why it executes more FLOPs than the convention counts: not by recomputing more than it."""
    causes = edge_flops(w)
    if w.head_dim & (w.head_dim - 1):
        causes += (f"head dim {w.head_dim} padded to a power of two",)
    return causes


def sparse1_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """One kernel a pass: it zeroes what it accumulates in. The mask is turned round before, once."""
    return len(sparse1_tiled(w))


def sparse1_workspace(w: AttentionWorkload) -> int:
    """l and m, O (backward: dQ) in fp32, and the mask, a byte a block."""
    blocks = -(-w.seq_q // (block_of(w) or w.seq_q))
    return flash1_workspace(w) + blocks**2
