"""A block mask as lists: the blocks of keys that each block of queries sees, and the other way round.

The lists are made on the host, once for a mask tensor, and kept for as long as it lives: that is preparation
and no part of the attention's traffic, though reading them is. Making them waits for the device.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .shape import Shape


class Listed(NamedTuple):
    """`members[offsets[i] : offsets[i + 1]]` are what block i is visible with, ascending; both int32."""

    offsets: Tensor
    members: Tensor


class BlockLists(NamedTuple):
    """A mask of T x T blocks, on its device.

    `columns` lists the blocks of keys of each block of queries, `rows` the blocks of queries of each block of
    keys. `seen` is the mask itself, uint8 [T, T] by block of keys and block of queries: 0 hidden, 1 visible,
    2 visible and the last that the block of queries sees.
    """

    columns: Listed
    rows: Listed
    seen: Tensor


_made: Any = WeakTensorKeyDictionary()


def block_lists(shape: Shape, blocks: Tensor | None, block: int, causal: bool) -> BlockLists:
    """The lists of a mask, made at its first use. ValueError for what is no mask of blocks for `shape`.

    `blocks` is bool [T, T] with T = ceil(N / block); `block` is a power of two from 16 on.
    """
    if causal or blocks is None:
        raise ValueError("block-sparse attention takes a mask of blocks, and no causal mask")
    if block < 16 or block & (block - 1):
        raise ValueError(f"block must be a power of two from 16 on, got {block}")
    if shape.seq_q != shape.seq_k:
        raise ValueError(f"a mask of blocks needs as many queries as keys: {shape.seq_q}, {shape.seq_k}")
    count = -(-shape.seq_q // block)
    if blocks.dtype != torch.bool or blocks.shape != (count, count):
        raise ValueError(f"blocks must be bool [{count}, {count}], got {blocks.dtype} {list(blocks.shape)}")
    version = 0 if blocks.is_inference() else blocks._version
    known = _made.get(blocks)
    if known is None or known[0] != version:
        known = (version, _lists(blocks))
        _made[blocks] = known
    lists: BlockLists = known[1]
    return lists


def _lists(blocks: Tensor) -> BlockLists:
    seen = blocks.cpu().numpy()
    if not (seen.any(0).all() and seen.any(1).all()):
        raise ValueError("every block of queries must see a block of keys, and every block of keys be seen")

    def placed(array: Any, dtype: type = np.int32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(blocks.device)

    def listed(mask: Any) -> Listed:
        offsets = np.concatenate([[0], np.cumsum(mask.sum(1))])
        return Listed(placed(offsets), placed(np.nonzero(mask)[1]))

    coded = seen.astype(np.uint8)
    coded[np.arange(len(seen)), -1 - seen[:, ::-1].argmax(1)] = 2
    return BlockLists(listed(seen), listed(seen.T), placed(coded.T, np.uint8))


@triton.jit  # type: ignore[untyped-decorator]
def walk(offsets, members, at, length, EVEN: tl.constexpr, BLOCK: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first, steps): the list of block `at` begins at `first`, and its rows are `steps` tiles of SIDE rows.

    Traffic: reads 8 bytes; 4 more unless EVEN (BLOCK divides `length`), to see whether the last block, which
    is partial, is listed: of its tiles those wholly beyond `length` are not walked.
    """
    first = tl.load(offsets + at)
    end = tl.load(offsets + at + 1)
    steps = (end - first) * (BLOCK // SIDE)
    if not EVEN:
        partial = tl.load(members + end - 1) == length // BLOCK
        beyond = BLOCK // SIDE - (length % BLOCK + SIDE - 1) // SIDE
        steps -= tl.where(partial, beyond, 0)
    return first, steps
