"""The IO model of the backward of `flash-hopper`.

Source: Shah et al., arXiv 2407.08608, appendix B.1. Up to 128 columns one fused kernel gives dK, dV and dQ,
the last by atomic additions to a sum in float32, which the kernel before zeroes and the one after converts.
Up to 64 columns a warpgroup of its own computes dQ, above the two that have dK and dV. Beyond 128 there is no
sum but a pair: dK and dV of 64 keys a program, and dQ of 128 rows. Results are totals over batch and heads.
The additions are not in the ledger: on an H200 the counter of writes from SMs to L2 does not have them (it
shows all others, to the byte where no registers are spilled), and that of reductions has 1.5 sectors of 32
bytes for each 32 added.
"""

from typing import Final

from perfkit.kernels.attention import tiles
from perfkit.ops.attention_io import key_blocks, keys_read, queries_read, query_blocks, tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES, step
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Uses

#: The kernel of dK, dV and dQ, and the pair.
DKDV: Final = "flash_hopper_dkdv"
WIDE: Final = "flash_hopper_dkdv_wide"
DQ: Final = "flash_hopper_dq"
STATISTICS: Final = "flash_hopper_statistics"
FROM_SUM: Final = "flash_hopper_dq_from_sum"
ADDED: Final = "flash_hopper_sum_of_parts"
#: S, dP, dV, dK and dQ; of the pair S, dP, dV and dK, and S, dP and dQ.
PRODUCTS: Final = 5
PAIR_PRODUCTS: Final = (4, 3)


def table_tile(w: AttentionWorkload) -> tiles.HopperBackwardTile:
    """The tile of the table, which names its kernel."""
    return tiles.hopper_backward_tile(w.head_dim, w.causal)


def is_pair(w: AttentionWorkload) -> bool:
    """Whether dQ has a kernel of its own, and no sum."""
    return table_tile(w).wide


def backward_plan(w: AttentionWorkload) -> Uses:
    """The tiles of the table, of all kernels that loop over tiles."""
    tile = table_tile(w)
    named = {tile.kernel: tile.held, **({DQ: tile.held_dq} if is_pair(w) else {})}
    return tuple(KernelUse(kernel=name, **held._asdict()) for name, held in named.items())


def dkdv_use(w: AttentionWorkload, uses: Uses) -> KernelUse:
    """The tile of the kernel of dK and dV that ran; UsageError where it is missing."""
    return tile_of(uses, table_tile(w).kernel)


def dq_use(uses: Uses) -> KernelUse:
    """The tile of the pair's kernel of dQ that ran; UsageError where it is missing."""
    return tile_of(uses, DQ)


def width_of(w: AttentionWorkload) -> int:
    """Columns of a tile: the head dim padded to whole panels of 64."""
    return tiles.hopper_backward_width(w.head_dim)


def shares_of(w: AttentionWorkload) -> int:
    """In how many shares the query heads of a K/V head are dealt out, each with its part of dK and dV."""
    programs = w.batch * w.kv_heads * -(-w.seq_k // table_tile(w).keys)
    return tiles.hopper_shares(programs, w.heads // w.kv_heads)


def backward_launches(w: AttentionWorkload) -> int:
    """Statistics, dK and dV, and dQ by itself or from its sum; one more where parts are added up."""
    return 3 if shares_of(w) == 1 else 4


def parts_bytes(w: AttentionWorkload) -> int:
    """Bytes of the parts of dK and dV, in the working dtype; 0 where there is one share."""
    shares = shares_of(w)
    return 2 * shares * w.key_bytes if shares > 1 else 0


def padded_bytes(w: AttentionWorkload) -> int:
    """Bytes of LSE in base 2, and of D: rows of each head padded to 128."""
    return STATISTIC_BYTES * w.batch * w.heads * tiles.padded_rows(w.seq_q)


def sum_bytes(w: AttentionWorkload) -> int:
    """Bytes of the sum of dQ: float32, whole tiles, whatever rows a step adds; 0 where there is none."""
    if is_pair(w):
        return 0
    rows = tiles.HOPPER_SUM_TILE // width_of(w)
    return 4 * tiles.HOPPER_SUM_TILE * w.batch * w.heads * -(-w.seq_q // rows)


def visits_of(w: AttentionWorkload, tile: KernelUse) -> int:
    """Blocks of rows that the blocks of keys visit together, over batch and query heads."""
    return w.batch * w.heads * sum(len(blocks) for blocks in query_blocks(w, tile))


def added_bytes(w: AttentionWorkload, tile: KernelUse) -> int:
    """Bytes that are added to the sum of dQ: float32, whole blocks of rows, padded columns."""
    return 0 if is_pair(w) else 4 * tile.block_m * width_of(w) * visits_of(w, tile)


def passed_over(w: AttentionWorkload, tile: KernelUse) -> int:
    """Of the fused kernel's visits those that the second warpgroup passes over: no row sees its 64 keys.

    Under a causal mask that is the first visit of each block of keys, unless row 0 sees two or more of them.
    """
    if not w.causal or tile.block_m != tiles.WARPGROUP_ROWS:
        return 0
    starts = range(0, w.seq_k, tile.block_n)
    visited = zip(starts, query_blocks(w, tile), strict=True)
    return w.batch * w.heads * sum(bool(rows) and start >= w.seq_k - w.seq_q for start, rows in visited)


def backward_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels move between SMs and L2, with the tiles that ran.

    What is added to dQ's sum, a whole block for each visit, is left out.
    """
    q, padded, whole = w.query_bytes, padded_bytes(w), sum_bytes(w)
    zeroed = {"dQ in fp32": whole} if whole else {}
    return (
        *step(
            STATISTICS,
            {"O": q, "dO": q, "LSE": STATISTIC_BYTES * w.rows},
            {"LSE in base 2": padded, "D": padded, **zeroed},
        ),
        *_dkdv_ledger(w, dkdv_use(w, uses)),
        *(_dq_ledger(w, dq_use(uses)) if is_pair(w) else step(FROM_SUM, {"dQ in fp32": whole}, {"dQ": q})),
    )


def _dkdv_ledger(w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """K and V once a share. TMA reads no row of Q and dO beyond N_q, but whole blocks of padded LSE and D."""
    kv, shares, parts = w.key_bytes, shares_of(w), parts_bytes(w)
    row_bytes = w.batch * w.heads * queries_read(w, tile) * w.head_dim * w.element_bytes
    statistics = visits_of(w, tile) * tile.block_m * STATISTIC_BYTES
    made = step(
        tile.kernel,
        {
            "K": shares * kv, "V": shares * kv, "Q": row_bytes, "dO": row_bytes,
            "LSE in base 2": statistics, "D": statistics,
        },
        {"parts of dK and dV": parts} if parts else {"dK": kv, "dV": kv},
    )  # fmt: skip
    return (*made, *step(ADDED, {"parts of dK and dV": parts}, {"dK": kv, "dV": kv})) if parts else made


def _dq_ledger(w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """Q and dO once, and LSE and D with all that they are padded to; K and V as far as a block's rows see."""
    q, padded = w.query_bytes, padded_bytes(w)
    visited = w.batch * w.heads * keys_read(w, tile) * w.head_dim * w.element_bytes
    read = {"Q": q, "dO": q, "LSE in base 2": padded, "D": padded, "K": visited, "V": visited}
    return step(tile.kernel, read, {"dQ": q})


def backward_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: whole tiles, padded columns.

    Fused five products a tile. A block that is passed over lacks half of four. Its dQ is whole where a
    warpgroup of its own multiplies the zeros that stand for dS; of two that share it, the one that passes
    over leaves them out, half of its half. The pair has four and three, and passes over none: both warpgroups
    of dQ go as far as the last of the program's 128 rows sees.
    """
    tile, width = dkdv_use(w, uses), width_of(w)
    product = 2 * tile.block_m * tile.block_n * width
    if is_pair(w):
        dq, (dkdv_products, dq_products) = dq_use(uses), PAIR_PRODUCTS
        blocks = w.batch * w.heads * sum(key_blocks(w, dq))
        dq_flops = dq_products * 2 * dq.block_m * dq.block_n * width * blocks
        return dkdv_products * product * visits_of(w, tile) + dq_flops
    lacking = 2 * product if width == tiles.HOPPER_WIDTH else 2 * product + product // 4
    return PRODUCTS * product * visits_of(w, tile) - lacking * passed_over(w, tile)


def backward_exps(w: AttentionWorkload) -> int:
    """One exp per visible score in each kernel that computes S."""
    return (2 if is_pair(w) else 1) * w.pairs


def backward_workspace(w: AttentionWorkload) -> int:
    """LSE, both padded statistics, the sum, and parts of dK and dV."""
    return STATISTIC_BYTES * w.rows + 2 * padded_bytes(w) + sum_bytes(w) + parts_bytes(w)
