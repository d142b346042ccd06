"""The IO model of the fused backward of `flash-hopper`, of head dims up to 128.

Source: Shah et al., arXiv 2407.08608, appendix B.1: one kernel gives dK, dV and dQ, the last by atomic
additions to a sum in float32, which the kernel before zeroes and the one after converts. Up to 64 columns a
warpgroup of its own computes dQ, above the two that have dK and dV. Results are totals over batch and heads.
The additions are not in the ledger: on an H200 the counter of writes from SMs to L2 does not have them (it
shows dK and dV within 0.3 %), and that of reductions has 1.5 sectors of 32 bytes for each 32 added.
"""

from typing import Final

from perfkit.kernels.attention import tiles
from perfkit.ops.attention_io import query_blocks, tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES, step
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Uses

DKDV: Final = "flash_hopper_dkdv"
ADDED: Final = "flash_hopper_sum_of_parts"
#: S, dP, dV, dK and dQ.
PRODUCTS: Final = 5


def is_fused(w: AttentionWorkload) -> bool:
    """Whether the pass has a backward, and the fused kernel serves its head dim."""
    return w.pass_ != "fwd" and w.head_dim <= tiles.WIDEST_HOPPER_BACKWARD


def width_of(w: AttentionWorkload) -> int:
    """Columns of a tile: the head dim padded to 64 or 128."""
    return max(tiles.HOPPER_WIDTH, 1 << (w.head_dim - 1).bit_length())


def shares_of(w: AttentionWorkload) -> int:
    """In how many shares the query heads of a K/V head are dealt out, each with its part of dK and dV."""
    programs = w.batch * w.kv_heads * -(-w.seq_k // tiles.HOPPER_FIXED_ROWS)
    return tiles.hopper_shares(programs, w.heads // w.kv_heads)


def fused_launches(w: AttentionWorkload) -> int:
    """Statistics, products and the conversion; one more where parts of dK and dV are added up."""
    return 3 if shares_of(w) == 1 else 4


def parts_bytes(w: AttentionWorkload) -> int:
    """Bytes of the parts of dK and dV, in the working dtype; 0 where there is one share."""
    shares = shares_of(w)
    return 2 * shares * w.key_bytes if shares > 1 else 0


def padded_bytes(w: AttentionWorkload) -> int:
    """Bytes of LSE in base 2, and of D: rows of each head padded to 128."""
    rows = -(-w.seq_q // tiles.HOPPER_FIXED_ROWS) * tiles.HOPPER_FIXED_ROWS
    return STATISTIC_BYTES * w.batch * w.heads * rows


def sum_bytes(w: AttentionWorkload) -> int:
    """Bytes of the sum of dQ: float32, whole tiles, whatever rows a step adds."""
    rows = tiles.HOPPER_SUM_TILE // width_of(w)
    return 4 * tiles.HOPPER_SUM_TILE * w.batch * w.heads * -(-w.seq_q // rows)


def visits_of(w: AttentionWorkload, tile: KernelUse) -> int:
    """Blocks of rows that the blocks of keys visit together, over batch and query heads."""
    return w.batch * w.heads * sum(len(blocks) for blocks in query_blocks(w, tile))


def added_bytes(w: AttentionWorkload, tile: KernelUse) -> int:
    """Bytes that are added to the sum of dQ: float32, whole blocks of rows, padded columns."""
    return 4 * tile.block_m * width_of(w) * visits_of(w, tile)


def passed_over(w: AttentionWorkload, tile: KernelUse) -> int:
    """Of the visits those that the second warpgroup passes over: no row of the block sees its 64 keys.

    Under a causal mask that is the first visit of each block of keys, unless row 0 sees two or more of them.
    """
    if not w.causal or tile.block_m != tiles.WARPGROUP_ROWS:
        return 0
    starts = range(0, w.seq_k, tile.block_n)
    visited = zip(starts, query_blocks(w, tile), strict=True)
    return w.batch * w.heads * sum(bool(rows) and start >= w.seq_k - w.seq_q for start, rows in visited)


def fused_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels move between SMs and L2, with the tile that ran.

    TMA reads no row of Q and dO beyond N_q, but whole blocks of LSE and D, which are padded. What is added
    to dQ's sum, a whole block for each visit, is left out.
    """
    tile = tile_of(uses, DKDV)
    q, kv, padded, whole = w.query_bytes, w.key_bytes, padded_bytes(w), sum_bytes(w)
    visits = visits_of(w, tile)
    rows = sum(max(0, w.seq_q - blocks.start * tile.block_m) for blocks in query_blocks(w, tile))
    row_bytes = w.batch * w.heads * rows * w.head_dim * w.element_bytes
    statistics = visits * tile.block_m * STATISTIC_BYTES
    shares, parts = shares_of(w), parts_bytes(w)
    adding = step(ADDED, {"parts of dK and dV": parts}, {"dK": kv, "dV": kv}) if parts else ()
    return (
        *step(
            "flash_hopper_statistics",
            {"O": q, "dO": q, "LSE": STATISTIC_BYTES * w.rows},
            {"LSE in base 2": padded, "D": padded, "dQ in fp32": whole},
        ),
        *step(
            DKDV,
            {
                "K": shares * kv, "V": shares * kv, "Q": row_bytes, "dO": row_bytes,
                "LSE in base 2": statistics, "D": statistics,
            },
            {"parts of dK and dV": parts} if parts else {"dK": kv, "dV": kv},
        ),
        *adding,
        *step("flash_hopper_dq_from_sum", {"dQ in fp32": whole}, {"dQ": q}),
    )  # fmt: skip


def fused_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: five products a tile, whole tiles, padded columns.

    A block that is passed over lacks half of four products. Its dQ is whole where a warpgroup of its own
    multiplies the zeros that stand for dS; of two that share it, the one that passes over leaves them out,
    half of its half.
    """
    tile, width = tile_of(uses, DKDV), width_of(w)
    product = 2 * tile.block_m * tile.block_n * width
    lacking = 2 * product if width == tiles.HOPPER_WIDTH else 2 * product + product // 4
    return PRODUCTS * product * visits_of(w, tile) - lacking * passed_over(w, tile)


def fused_workspace(w: AttentionWorkload) -> int:
    """LSE, both padded statistics, the sum, and parts of dK and dV."""
    return STATISTIC_BYTES * w.rows + 2 * padded_bytes(w) + sum_bytes(w) + parts_bytes(w)
