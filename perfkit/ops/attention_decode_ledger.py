"""The byte ledger of `flash-decode`: which keys its programs visit, and what they read and write.

Total over batch and heads, between SMs and L2; the sources are named in `attention_decode`.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from perfkit.kernels.attention import tiles
from perfkit.ops.attention_io import tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES, step
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Ledger, Uses

APPEND: Final = "decode_append"
SPLIT: Final = "decode_split"
COMBINE: Final = "decode_combine"
#: No kernel: the last share of a row tile to be ready merges them all, within `decode_split`.
MERGE: Final = "decode_merge"
FP32: Final = 4
#: Bytes of an entry of a block table, a length, a scale, and a counter of shares that are ready.
WORD: Final = 4


def splits_of(uses: Uses) -> int:
    """Shares of the keys; 1 where nothing merges."""
    return next((use.block_m for use in uses if use.kernel in (COMBINE, MERGE)), 1)


class Walk(NamedTuple):
    """What the programs of one row tile of one sequence's K/V head do together.

    `shares` of them have work; they visit `blocks` blocks of keys, load `keys` rows of K and of V, and for a
    cache in pages `entries` entries of the block table.
    """

    shares: int
    blocks: int
    keys: int
    entries: int


def walks(w: AttentionWorkload, uses: Uses) -> Iterator[Walk]:
    """Every row tile of one K/V head of every sequence; the rows of a tile go token by token."""
    tile, rows, group = tile_of(uses, SPLIT), rows_of(w), w.heads // w.kv_heads
    page, side = w.page, tile.block_n
    shares = splits_of(uses)
    share = -(-tiles.decode_blocks(w.seq_k, page, side) // shares)
    pages = tiles.decode_pages(page, side)
    for length in w.lengths:
        if w.padding:  # else no share looks for the end of its sequence
            shares = max(1, -(-tiles.decode_blocks(length, page, side) // share))
        for start in range(0, rows, tile.block_m):
            last = (min(start + tile.block_m, rows) - 1) // group
            seen = max(0, last + 1 + length - w.seq_q) if w.causal else length
            blocks = tiles.decode_blocks(min(seen, length), page, side)
            yield Walk(
                shares=shares,
                blocks=blocks,
                keys=min(length, tiles.decode_covered(blocks, page, side)),
                entries=min(blocks * pages, -(-length // page)) if pages > 1 else blocks,
            )


def decode_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels move between SMs and L2, with the tile and the number of shares S that ran.

    Every share reads Q. K and V are read once for each row tile, whatever S, up to the block of keys that the
    tile's last token sees. With S > 1 partial results, (4 d + 4) bytes a row of a share, are written and read
    once. A share behind the end of its sequence reads its length only. Of a cache in pages each block reads
    the entries of its pages, and in fp8 their scales; in one piece each share reads those of its head.
    """
    found = list(walks(w, uses))
    splits, tiles_m = splits_of(uses), len(found) // w.batch
    working = w.kv_heads * sum(walk.shares for walk in found)
    keys = w.kv_heads * sum(walk.keys for walk in found) * w.head_dim * w.cache_element_bytes
    entries = w.kv_heads * sum(walk.entries for walk in found) * WORD
    shares = partial_rows(w, uses)
    read = {"Q": shares * w.head_dim * w.element_bytes, "K": keys, "V": keys}
    if w.page:
        read["block table"] = entries
    if w.cache_dtype:
        read["K scale"] = read["V scale"] = entries if w.page else working * WORD
    if w.padding:
        read["lengths"] = w.kv_heads * len(found) * splits * WORD
    appended = _append_ledger(w, uses) if w.append else ()
    if splits == 1:
        return (*appended, *step(SPLIT, read, {"O": w.query_bytes}))
    partial = {"O in fp32": shares * w.head_dim * FP32, "LSE": shares * STATISTIC_BYTES}
    if any(use.kernel == MERGE for use in uses):
        counters = {"arrivals": w.batch * w.kv_heads * tiles_m * WORD}
        return (*appended, *step(SPLIT, read | partial, {**partial, "O": w.query_bytes, **counters}))
    ends = {"lengths": w.rows * WORD} if w.padding else {}
    return (*appended, *step(SPLIT, read, partial), *step(COMBINE, partial | ends, {"O": w.query_bytes}))


def _append_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """The last N_q keys and values of each sequence, read where they are given and written to the cache."""
    programs = w.batch * w.kv_heads * -(-w.seq_q // tile_of(uses, APPEND).block_m)
    rows = w.batch * w.kv_heads * w.seq_q
    new, slots = rows * w.head_dim * w.element_bytes, rows * w.head_dim * w.cache_element_bytes
    read = {"new K": new, "new V": new}
    if w.page:
        read["block table"] = rows * WORD
    if w.cache_dtype:
        read["K scale"] = read["V scale"] = (rows if w.page else programs) * WORD
    if w.padding:
        read["lengths"] = programs * WORD
    return step(APPEND, read, {"K": slots, "V": slots})


def rows_of(w: AttentionWorkload) -> int:
    """Query rows of one K/V head: the query heads that share it, times the tokens."""
    return w.heads // w.kv_heads * w.seq_q


def partial_rows(w: AttentionWorkload, uses: Uses) -> int:
    """Query rows of all shares that have work, over batch and heads."""
    found = list(walks(w, uses))
    return sum(walk.shares for walk in found) * w.rows // len(found)
