"""The IO model of `flash-decode`: a few query tokens over a long K/V cache, split over the keys.

Source: Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023, in the tiles of
FlashAttention-2 (arXiv 2307.08691, Algorithm 1); pages are those of Kwon et al., arXiv 2309.06180. The rows
of a tile are the query heads that share a K/V head (g = heads / kv_heads of them), times the query tokens.
Results are totals over batch and heads. The bytes are in `attention_decode_ledger`, and what of them reaches
DRAM in `attention_decode_cache`.
"""

from typing import Final

from perfkit.kernels.attention import tiles
from perfkit.ops.attention_decode_cache import decode_dram
from perfkit.ops.attention_decode_ledger import (
    APPEND,
    COMBINE,
    FP32,
    MERGE,
    SPLIT,
    decode_ledger,
    partial_rows,
    rows_of,
    splits_of,
    walks,
)
from perfkit.ops.attention_io import tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Uses

__all__ = [
    "decode_dram",
    "decode_exps",
    "decode_extra_flops",
    "decode_flops",
    "decode_launches",
    "decode_ledger",
    "decode_plan",
    "decode_refuses",
    "decode_tiled",
    "decode_workspace",
    "splits_of",
]

#: Query tokens that the kernels serve.
MOST_TOKENS: Final = 64
#: Oldest compute capability -> multiprocessors of a device of it, by which a plan splits. A run on a GPU says
#: its own. As in the profiles of V100, T4, A100, RTX 3090, RTX 4090, H100 SXM (and H200), B200 and RTX 5090,
#: which name their sources.
SM_COUNTS: Final = {
    (0, 0): 80,
    (7, 5): 40,
    (8, 0): 108,
    (8, 6): 82,
    (8, 9): 128,
    (9, 0): 132,
    (10, 0): 148,
    (12, 0): 170,
}


def decode_tiled(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """The kernel that loops over tiles of keys, and the one that appends where there is something to."""
    return (APPEND, SPLIT) if w.append else (SPLIT,)


def decode_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tile of `decode_split`, and as block_m of what merges the number of shares of the keys.

    A tile of `decode_combine` is the partial results of one row, one for each share; with a single share the
    kernel does not run.
    """
    sm_count = SM_COUNTS[max(known for known in SM_COUNTS if known <= max(capability, (0, 0)))]
    fp8 = w.cache_dtype == "fp8"
    tile = tiles.decode_tile(w.head_dim, rows_of(w), max(capability, (7, 5)), w.page, fp8)
    blocks = w.batch * w.kv_heads * -(-rows_of(w) // tile.block_m)
    key_blocks = tiles.decode_blocks(w.seq_k, w.page, tile.block_n)
    splits = tiles.decode_splits(blocks, key_blocks, sm_count, tiles.decode_resident(tile, fp8))
    merge = MERGE if tiles.DECODE_FUSED and splits > 1 else COMBINE
    named = {SPLIT: tile, merge: tiles.combine_tile(splits)}
    if w.append:
        named = {APPEND: tiles.decode_append_tile(w.seq_q), **named}
    return tuple(KernelUse(kernel=name, **found._asdict()) for name, found in named.items())


def decode_refuses(w: AttentionWorkload) -> str | None:
    """Why the kernels cannot serve the workload; None where they can."""
    if w.pass_ != "fwd":
        return f"pass {w.pass_}: flash-decode has a forward pass only"
    if w.seq_q > MOST_TOKENS:
        return f"{w.seq_q} query tokens: flash-decode takes up to {MOST_TOKENS}"
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: flash-decode takes multiples of 8 from 16 to 256"
    return None


def decode_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: two products a tile, rows and head dim padded."""
    tile = tile_of(uses, SPLIT)
    depth = 1 << max(4, (w.head_dim - 1).bit_length())
    visited = w.kv_heads * sum(walk.blocks for walk in walks(w, uses))
    return 4 * tile.block_m * tile.block_n * depth * visited


def decode_exps(w: AttentionWorkload, uses: Uses) -> int:
    """One exp per visible score, and one per partial result where they are merged."""
    return w.pairs + (partial_rows(w, uses) if splits_of(uses) > 1 else 0)


def decode_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why more FLOPs are executed than the convention counts."""
    causes = []
    if rows_of(w) % 16:
        causes.append(f"{rows_of(w)} query rows of a K/V head in tiles of at least 16")
    if w.causal and w.seq_q > 1:
        causes.append("masked part of diagonal tiles")
    if w.page & (w.page - 1):
        causes.append(f"pages of {w.page} tokens in tiles of powers of two")
    if w.head_dim & (w.head_dim - 1):
        causes.append(f"head dim {w.head_dim} padded to a power of two")
    return tuple(causes)


def decode_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """One kernel each for appending, attention and merging, where there is such work (as on an H100).

    Devices of other sizes may split the keys otherwise.
    """
    merged = splits_of(decode_plan(w, (9, 0))) > 1 and not tiles.DECODE_FUSED
    return 1 + w.append + merged


def decode_workspace(w: AttentionWorkload) -> int:
    """Partial O and LSE of every share, where there are several (as on an H100)."""
    splits = splits_of(decode_plan(w, (9, 0)))
    return splits * w.rows * (w.head_dim * FP32 + STATISTIC_BYTES) if splits > 1 else 0
