"""The IO model of `flash-decode`: a few query tokens over a long K/V cache, split over the keys.

Source: Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023, in the tiles of
FlashAttention-2 (arXiv 2307.08691, Algorithm 1). The rows of a tile are the query heads that share a K/V head
(g = heads / kv_heads of them), times the query tokens. Results are totals over batch and heads.
"""

from typing import Final

from perfkit.kernels.attention import tiles
from perfkit.model.cache import IN_PART, STAYS, missed_share, shared_passes
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.model.units import show
from perfkit.ops.attention_cache import resident
from perfkit.ops.attention_io import compulsory, tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES, step
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Ledger, Uses, total

SPLIT: Final = "decode_split"
COMBINE: Final = "decode_combine"
#: Query tokens that the kernels serve.
MOST_TOKENS: Final = 64
FP32: Final = 4
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


def decode_tiled(_: AttentionWorkload) -> tuple[str, ...]:
    """The kernel that loops over tiles of keys."""
    return (SPLIT,)


def decode_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tile of `decode_split`, and as block_m of `decode_combine` the number of shares of the keys.

    A tile of `decode_combine` is the partial results of one row, one for each share; with a single share the
    kernel does not run.
    """
    sm_count = SM_COUNTS[max(known for known in SM_COUNTS if known <= max(capability, (0, 0)))]
    tile = tiles.decode_tile(w.head_dim, _rows(w), max(capability, (7, 5)))
    blocks = w.batch * w.kv_heads * -(-_rows(w) // tile.block_m)
    splits = tiles.decode_splits(blocks, -(-w.seq_k // tile.block_n), sm_count)
    return (
        KernelUse(kernel=SPLIT, **tile._asdict()),
        KernelUse(kernel=COMBINE, **tiles.combine_tile(splits)._asdict()),
    )


def decode_refuses(w: AttentionWorkload) -> str | None:
    """Why the kernels cannot serve the workload; None where they can."""
    if w.pass_ != "fwd":
        return f"pass {w.pass_}: flash-decode has a forward pass only"
    if w.seq_q > MOST_TOKENS:
        return f"{w.seq_q} query tokens: flash-decode takes up to {MOST_TOKENS}"
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: flash-decode takes multiples of 8 from 16 to 256"
    return None


def splits_of(uses: Uses) -> int:
    """Shares of the keys; 1 where no kernel merges."""
    return next((use.block_m for use in uses if use.kernel == COMBINE), 1)


def decode_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels move between SMs and L2, with the tile and the number of shares S that ran.

    Every share reads Q. K and V are read once for each row tile, whatever S, up to the block of keys that the
    tile's last token sees. With S > 1 both kernels move S h N_q (4 d + 4) bytes of partial results.
    """
    tile, splits = tile_of(uses, SPLIT), splits_of(uses)
    q, keys = w.query_bytes, _keys_read(w, tile) * w.head_dim * w.element_bytes
    read = {"Q": splits * q, "K": keys, "V": keys}
    if splits == 1:
        return step(SPLIT, read, {"O": q})
    partial = {"O in fp32": splits * w.rows * w.head_dim * FP32, "LSE": splits * w.rows * STATISTIC_BYTES}
    return (*step(SPLIT, read, partial), *step(COMBINE, partial, {"O": q}))


def _rows(w: AttentionWorkload) -> int:
    """Query rows of one K/V head: the query heads that share it, times the tokens."""
    return w.heads // w.kv_heads * w.seq_q


def _key_blocks(w: AttentionWorkload, tile: KernelUse) -> list[int]:
    """Blocks of keys that each row tile of one K/V head visits; its rows go token by token."""
    rows, group = _rows(w), w.heads // w.kv_heads
    seen = []
    for start in range(0, rows, tile.block_m):
        last = (min(start + tile.block_m, rows) - 1) // group
        keys = max(0, last + 1 + w.seq_k - w.seq_q) if w.causal else w.seq_k
        seen.append(-(-min(keys, w.seq_k) // tile.block_n))
    return seen


def _keys_read(w: AttentionWorkload, tile: KernelUse) -> int:
    """Rows of K that all row tiles read together; loads stop at N_k."""
    one = sum(min(w.seq_k, blocks * tile.block_n) for blocks in _key_blocks(w, tile))
    return w.batch * w.kv_heads * one


def decode_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: two products a tile, rows and head dim padded."""
    tile = tile_of(uses, SPLIT)
    depth = 1 << max(4, (w.head_dim - 1).bit_length())
    visited = w.batch * w.kv_heads * sum(_key_blocks(w, tile))
    return 4 * tile.block_m * tile.block_n * depth * visited


def decode_exps(w: AttentionWorkload, uses: Uses) -> int:
    """One exp per visible score, and one per partial result where they are merged."""
    splits = splits_of(uses)
    return w.pairs + (splits * w.rows if splits > 1 else 0)


def decode_extra_flops(w: AttentionWorkload) -> tuple[str, ...]:
    """Why more FLOPs are executed than the convention counts."""
    causes = []
    if _rows(w) % 16:
        causes.append(f"{_rows(w)} query rows of a K/V head in tiles of at least 16")
    if w.causal and w.seq_q > 1:
        causes.append("masked part of diagonal tiles")
    if w.head_dim & (w.head_dim - 1):
        causes.append(f"head dim {w.head_dim} padded to a power of two")
    return tuple(causes)


def _reference_splits(w: AttentionWorkload) -> int:
    """Shares on 132 multiprocessors, for what is asked without a device."""
    return splits_of(decode_plan(w, (9, 0)))


def decode_launches(w: AttentionWorkload) -> int:
    """Two kernels, or one where the keys are not split (as on an H100; devices of other sizes may differ)."""
    return 2 if _reference_splits(w) > 1 else 1


def decode_workspace(w: AttentionWorkload) -> int:
    """Partial O and LSE of every share, where there are several (as on an H100)."""
    splits = _reference_splits(w)
    return splits * w.rows * (w.head_dim * FP32 + STATISTIC_BYTES) if splits > 1 else 0


def decode_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """Compulsory traffic, the partial results as they are written, and what of them L2 no longer has.

    Partial results are megabytes at most beside a cache of gigabytes: they are read again from L2. Row tiles
    of a K/V head run side by side and share their pass over a share of its keys, as blocks of `flash` do.
    """
    tile, splits, l2 = tile_of(uses, SPLIT), splits_of(uses), device.level("l2").capacity_bytes
    asked = total(decode_ledger(w, uses))
    blocks = -(-_rows(w) // tile.block_m)
    partial = asked.write_bytes - w.query_bytes
    found = shared_passes(
        blocks_per_head=blocks,
        heads=w.batch * w.kv_heads * splits,
        head_bytes=-(-2 * w.seq_k * w.head_dim * w.element_bytes // splits),
        resident_blocks=resident(tile, device),
        l2_bytes=l2,
    )
    seen = _keys_read(w, tile) / (blocks * w.batch * w.kv_heads * w.seq_k)
    least, missed = compulsory(w).read_bytes, missed_share(partial, l2)
    reads = least + round(2 * w.key_bytes * max(0.0, found.passes * seen - 1.0) + missed * partial)
    traffic = Traffic(read_bytes=min(reads, asked.read_bytes), write_bytes=asked.write_bytes)
    reasons = ["K and V once" if blocks == 1 else f"K and V of {found.reason}"]
    if splits > 1:
        case = f"{IN_PART}: {missed:.0%} of its re-reads miss" if missed else STAYS
        reasons.append(f"what {splits} shares leave, {show(partial, 'bytes')}, {case}")
    return Cached(traffic=traffic, reason="; ".join(reasons))
