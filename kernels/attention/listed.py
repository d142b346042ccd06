"""Spans on their device: the tile lists that kernels walk, made on the host once for a mask, and kept.

They live as long as the tensor `ends` of the spans: making them is preparation and no part of the
attention's traffic, though reading them is. It waits for the device, the second call does not.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .shape import Shape
from .spans import Array, Spans, tile_lists, walk_of
from .tiles import Tile, within


class Listed(NamedTuple):
    """A `TileList` on its device, int32, and how kernels go along it.

    `spans` is how many spans of a row they compare keys with where they meet a tile in part: 0 where none is.
    """

    offsets: Tensor
    partial: Tensor
    members: Tensor
    spans: int
    runs: bool
    late: bool


class _Known(NamedTuple):
    """What was made of a tensor at one version of it: its copy on the host, and the rest by its key."""

    version: int
    ends: Array
    made: dict[Any, Any]


_known: Any = WeakTensorKeyDictionary()


def _of(spans: Spans) -> _Known:
    ends = spans.ends
    version = 0 if ends.is_inference() else ends._version
    known: _Known | None = _known.get(ends)
    if known is None or known.version != version:
        known = _Known(version, ends.cpu().numpy(), {})
        _known[ends] = known
    return known


def within_blocks(tile: Tile, spans: Spans) -> Tile:
    """The tile, no side longer than a block of the spans, where they have blocks: it crosses no border."""
    return within(tile, spans.step) if spans.step > 1 else tile


def check_spans(spans: Spans | None, shape: Shape, causal: bool) -> Spans:
    """The spans themselves. ValueError for what no kernel of this folder can walk.

    Those of blocks are whole: a power of two of rows from 16 on, by as many keys. Row by row there are two
    spans at most.
    """
    if causal or spans is None:
        raise ValueError("block-sparse attention takes spans, and no causal mask")
    ends, step, stride = spans
    if ends.dtype != torch.int32 or ends.dim() != 3 or ends.shape[2] != 2 or not ends.shape[1]:
        raise ValueError(f"the ends of spans must be int32 [R, K, 2], got {ends.dtype} {list(ends.shape)}")
    if ends.shape[0] != (rows := -(-shape.seq_q // step)):
        raise ValueError(f"{shape.seq_q} queries by {step} have {rows} rows of spans, not {len(ends)}")
    if step > 1 and (step < 16 or step & (step - 1)):
        raise ValueError(f"the step of spans must be 1, or a power of two from 16 on, got {step}")
    if step == 1 and ends.shape[1] > 2:
        raise ValueError(f"spans row by row are at most 2 a row, got {ends.shape[1]}")
    if stride > 1 and step > 1:
        raise ValueError(f"a stride wants spans row by row, not of {step} rows together")
    if stride > 1 and (shape.seq_q != shape.seq_k or shape.seq_q % stride):
        raise ValueError(
            f"a stride of {stride} must divide as many queries as keys, not {shape.seq_q} and {shape.seq_k}"
        )
    known = _of(spans)
    if ("checked", shape.seq_k, step) not in known.made:
        _check_ends(known.ends, step, shape.seq_k)
        known.made["checked", shape.seq_k, step] = True
    return spans


def _check_ends(ends: Array, step: int, seq_k: int) -> None:
    if ends.min() < 0 or ends.max() > seq_k:
        raise ValueError(f"spans must lie within 0 and the {seq_k} keys, got {ends.min()} to {ends.max()}")
    if step > 1 and ((ends % step != 0) & (ends != seq_k)).any():
        raise ValueError(f"spans of {step} rows together must end at multiples of {step}, or at the last key")


def listed(spans: Spans, shape: Shape, tile: Tile, by_keys: bool = False) -> Listed:
    """The tiles of keys of each tile of queries, or the other way round; `spans` are checked ones."""
    known = _of(spans)
    key = (spans.step, shape.seq_q, shape.seq_k, tile.block_m, tile.block_n, by_keys)
    found: Listed | None = known.made.get(key)
    if found is None:
        both = tile_lists(known.ends, spans.step, *key[1:5])
        one = both.by_keys if by_keys else both.by_queries
        walk = walk_of(one, spans.step)
        offsets, members, partial = (torch.from_numpy(part).to(spans.ends.device) for part in one)
        count = known.ends.shape[1] if walk.split else 0
        found = Listed(offsets, partial, members, count, walk.runs, walk.late)
        known.made[key] = found
    return found


def without_stride(spans: Spans, length: int) -> Spans:
    """The spans of every D-th row and key, the same from whichever row one starts; D is the stride.

    Key j = r + D t of row i = r + D m is seen where lo <= j < hi: t from ceil((lo - r) / D) to below
    ceil((hi - r) / D). ValueError where the spans of row m differ from one remainder r to another.
    """
    known, stride = _of(spans), spans.stride
    found: Spans | None = known.made.get(stride)
    if found is None:
        rows = known.ends.reshape(length // stride, stride, *known.ends.shape[1:])
        cut = np.maximum(-((np.arange(stride)[:, None, None] - rows) // stride), 0)
        cut[cut[..., 0] >= cut[..., 1]] = 0
        if (cut != cut[:, :1]).any():
            raise ValueError(f"spans with a stride of {stride} must be the same for each of {stride} rows")
        ends = torch.from_numpy(np.ascontiguousarray(cut[:, 0], np.int32)).to(spans.ends.device)
        found = Spans(ends)
        known.made[stride] = found
    return found


def spans_of_blocks(seen: Tensor, block: int, length: int) -> Spans:
    """The spans of a mask of blocks: bool, True where a block of queries (row) sees one of keys (column).

    A block has `block` rows, a power of two from 16 on; `length` are the keys, which the last block may
    exceed.
    """
    rows = [np.flatnonzero(np.diff(row, prepend=0, append=0)) for row in seen.cpu().numpy().astype(np.int8)]
    ends = np.zeros((len(rows), max(1, *(len(row) // 2 for row in rows)), 2), np.int32)
    for at, row in enumerate(rows):
        ends[at, : len(row) // 2] = np.minimum(row * block, length).reshape(-1, 2)
    return Spans(torch.from_numpy(ends).to(seen.device), block)


def seen_blocks(spans: Spans, shape: Shape) -> Tensor:
    """A mask of blocks, uint8 [T, T] by block of keys and block of queries, T = ceil(N / step).

    0 hidden, 1 visible, 2 visible and the last that the block of queries sees. ValueError for spans that are
    none of blocks, or leave a block of queries or of keys without any.
    """
    if spans.step == 1 or spans.stride > 1:
        raise ValueError("block-sparse1 takes spans of blocks: of `step` rows together, without a stride")
    if shape.seq_q != shape.seq_k:
        raise ValueError(f"a mask of blocks needs as many queries as keys: {shape.seq_q}, {shape.seq_k}")
    known = _of(spans)
    found: Tensor | None = known.made.get("seen")
    if found is None:
        count = len(known.ends)
        at, ends = np.arange(count)[None, None], -(-known.ends // spans.step)
        seen: Any = ((ends[..., :1] <= at) & (at < ends[..., 1:])).any(1)
        if not (seen.any(0).all() and seen.any(1).all()):
            raise ValueError("each block of queries must see a block of keys, and each block of keys be seen")
        coded: Any = seen.astype(np.uint8)
        coded[np.arange(count), -1 - seen[:, ::-1].argmax(1)] = 2
        found = torch.from_numpy(np.ascontiguousarray(coded.T)).to(spans.ends.device)
        known.made["seen"] = found
    return found


@triton.jit  # type: ignore[untyped-decorator]
def ends_of(offsets, partial, at, SPANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first, parts, rest): the list of tile `at` begins at `first` with `parts` that are met in part.

    Traffic: reads 8 bytes, 4 more with SPANS.
    """
    first = tl.load(offsets + at)
    rest = tl.load(offsets + at + 1) - first
    parts = 0
    if SPANS > 0:
        parts = tl.load(partial + at)
        rest -= parts
    return first, parts, rest


@triton.jit  # type: ignore[untyped-decorator]
def span_of(ends, rows, present, AT: tl.constexpr, SPANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(lo, hi) of span AT of `rows`, empty where they are not `present`. Reads 8 bytes a row."""
    low = tl.load(ends + rows * (2 * SPANS) + 2 * AT, mask=present, other=0)
    return low, tl.load(ends + rows * (2 * SPANS) + 2 * AT + 1, mask=present, other=0)
