"""What of the traffic of `flash-decode` reaches DRAM: the cache once, what L2 keeps of the rest."""

from perfkit.model.cache import IN_PART, STAYS, lost_share, missed_share, shared_passes
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.model.units import show
from perfkit.ops.attention_cache import resident
from perfkit.ops.attention_decode_ledger import (
    FP32,
    SPLIT,
    WORD,
    decode_ledger,
    partial_rows,
    rows_of,
    splits_of,
    walks,
)
from perfkit.ops.attention_io import compulsory, tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, Uses, total


def decode_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """Compulsory traffic, the partial results as they are written, and what of them L2 no longer has.

    Partial results are megabytes at most beside a cache of gigabytes: they are read again from L2, as are
    slots that were just appended to. Row tiles of a K/V head run side by side and share their pass over a
    share of its keys, as blocks of `flash` do; so do sequences over a prefix that they share, as many of them
    as the device holds at a time.
    """
    tile, splits, l2 = tile_of(uses, SPLIT), splits_of(uses), device.level("l2").capacity_bytes
    asked = total(decode_ledger(w, uses))
    blocks = -(-rows_of(w) // tile.block_m)
    row_bytes = 2 * w.head_dim * w.cache_element_bytes
    found = shared_passes(
        blocks_per_head=blocks,
        heads=w.batch * w.kv_heads * splits,
        head_bytes=-(-w.seq_k * row_bytes // splits),
        resident_blocks=resident(tile, device),
        l2_bytes=l2,
    )
    pass_bytes = w.kv_heads * sum(walk.keys for walk in walks(w, uses)) * row_bytes / blocks
    again = max(0.0, found.passes * pass_bytes - w.kv_heads * sum(w.lengths) * row_bytes)
    partial = partial_rows(w, uses) * (w.head_dim * FP32 + STATISTIC_BYTES) if splits > 1 else 0
    missed = missed_share(partial, l2)
    repeated, prefix = _prefix_again(w, uses, device)
    least = compulsory(w).read_bytes + _words(w)
    reads = least + round(again + missed * partial + repeated)
    traffic = Traffic(read_bytes=min(reads, asked.read_bytes), write_bytes=asked.write_bytes)
    reasons = ["K and V once" if blocks == 1 else f"K and V of {found.reason}"]
    if splits > 1:
        case = f"{IN_PART}: {missed:.0%} of its re-reads miss" if missed else STAYS
        reasons.append(f"what {splits} shares leave, {show(partial, 'bytes')}, {case}")
    return Cached(traffic=traffic, reason="; ".join([*reasons, *prefix]))


def _words(w: AttentionWorkload) -> int:
    """Bytes of the block table, scales and lengths, once."""
    pages = sum(-(-length // w.page) for length in w.lengths) if w.page else 0
    distinct = pages - (w.batch - 1) * (w.prefix // w.page if w.page else 0)
    scales = 2 * w.kv_heads * (distinct if w.page else 1) if w.cache_dtype else 0
    return WORD * (pages + scales + (w.batch if w.padding else 0))


def _prefix_again(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> tuple[float, tuple[str, ...]]:
    """(bytes of a shared prefix that are read more than once, why): sequences at a time share a pass."""
    if not w.prefix or w.batch == 1:
        return 0.0, ()
    tile, l2 = tile_of(uses, SPLIT), device.level("l2").capacity_bytes
    size = 2 * w.kv_heads * w.prefix * w.head_dim * w.cache_element_bytes
    at_a_time = max(1, resident(tile, device) // (w.kv_heads * -(-rows_of(w) // tile.block_m)))
    turns = -(-w.batch // at_a_time)
    lost = lost_share(size, l2) if turns > 1 else 0.0
    said = f"in {turns} turns, {lost:.0%} of which miss L2" if lost else "once"
    return lost * (turns - 1) * size, (f"the prefix of {show(size, 'bytes')} {said}",)
