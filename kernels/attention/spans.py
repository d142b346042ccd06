"""Masks as spans: which keys each query sees, and which tiles a kernel therefore visits.

Pure numpy: the IO model reads it where there is neither torch nor Triton.
"""

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.int32]]


class Spans(NamedTuple):
    """Row i sees the keys j with lo <= j < hi of one of `ends[i // step]`, int32 [R, K, 2] of (lo, hi).

    The K spans of a row are disjoint; empty ones have lo >= hi. The k-th spans of neighbouring rows touch or
    overlap where neither is empty, unless `step` rows fill every tile. With `stride` D row i sees only those
    of the keys with j = i modulo D. In kernels `ends` is a tensor on their device, here an array.
    """

    ends: Any
    step: int = 1
    stride: int = 1


class TileList(NamedTuple):
    """`members[offsets[t] : offsets[t + 1]]` are the tiles that tile t meets, the first `partial[t]` in part.

    All int32. A tile that is met in part has pairs that the mask hides; ascending within both parts.
    """

    offsets: Array
    members: Array
    partial: Array


class Walk(NamedTuple):
    """How kernels go along a list, for which they are compiled.

    `split`: tiles that are met in part come first, and their pairs are looked at one by one; without it no
    pair is looked at, but for the end of the keys. `runs`: the tiles that are met in full, all where nothing
    is split, have consecutive numbers. `late`: the last list is longer than the first.
    """

    split: bool
    runs: bool
    late: bool


class TileLists(NamedTuple):
    """The tiles of keys of each tile of queries, and the tiles of queries of each tile of keys."""

    by_queries: TileList
    by_keys: TileList


def tile_lists(ends: Array, step: int, seq_q: int, seq_k: int, block_m: int, block_n: int) -> TileLists:
    """The tiles of `block_m` queries by `block_n` keys that hold a visible pair: all that is visited.

    `step` divides `block_m` or is a multiple of it. A tile is met in full where one span of every row of it
    covers it, and all its keys are there.
    """
    grouped = _by_tile(ends, step, seq_q, block_m)
    low, high = grouped[..., 0], grouped[..., 1]
    empty = low >= high
    far = np.int32(np.iinfo(np.int32).max)
    first = np.where(empty, far, low).min(1)
    last = np.where(empty, 0, high).max(1)
    whole_from = np.where(empty, far, low).max(1)
    whole_to = np.where(empty, 0, high).min(1)
    tiles_n = -(-seq_k // block_n)
    queries, keys, partial = [], [], []
    for tile in range(len(grouped)):
        seen = np.zeros(tiles_n, bool)
        whole = np.zeros(tiles_n, bool)
        for k in range(grouped.shape[2]):
            if first[tile, k] < last[tile, k]:
                seen[first[tile, k] // block_n : -(-last[tile, k] // block_n)] = True
            if whole_from[tile, k] < whole_to[tile, k]:
                whole[-(-whole_from[tile, k] // block_n) : whole_to[tile, k] // block_n] = True
        found = np.nonzero(seen)[0]
        queries.append(np.full(len(found), tile))
        keys.append(found)
        partial.append(~whole[found])
    rows, columns, in_part = (np.concatenate(parts) for parts in (queries, keys, partial))
    return TileLists(_listed(rows, columns, in_part, len(grouped)), _listed(columns, rows, in_part, tiles_n))


def walk_of(found: TileList, step: int) -> Walk:
    """How kernels go along `found`, of spans of `step` rows: where these fill every tile nothing is split.

    Such a tile is met in part only where keys end.
    """
    offsets, members, partial = found
    split = step == 1 and bool(partial.any())
    first = offsets[:-1] + (partial if split else 0)
    follows = np.ones(len(members), bool)
    follows[1:] = np.diff(members) == 1
    follows[first[first < offsets[1:]]] = True
    sizes = np.diff(offsets)
    full = np.arange(len(members)) >= np.repeat(first, sizes)
    return Walk(split, bool(follows[full].all()), bool(sizes[-1] > sizes[0]))


def _by_tile(ends: Array, step: int, seq_q: int, block_m: int) -> Array:
    """[T, rows of `ends` in a tile, K, 2]; the last tile repeats its last row."""
    tiles_m = -(-seq_q // block_m)
    if step >= block_m:
        return ends[np.arange(tiles_m) * block_m // step][:, None]
    height = block_m // step
    rows = np.minimum(np.arange(tiles_m * height), len(ends) - 1)
    return ends[rows].reshape(tiles_m, height, *ends.shape[1:])


def _listed(owners: Any, members: Any, partial: Any, count: int) -> TileList:
    order = np.lexsort((members, ~partial, owners))
    sizes = np.bincount(owners, minlength=count)
    return TileList(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        members[order].astype(np.int32),
        np.bincount(owners, weights=partial, minlength=count).astype(np.int32),
    )
