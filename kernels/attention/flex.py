"""torch's flex_attention, compiled: generated Triton kernels, masked by a block mask that skips blocks."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch import config as functorch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from .shape import checked_shape, softmax_scale
from .spans import Spans, TileList, tile_lists
from .use import KernelUse

#: The sides of flex_attention's blocks.
BLOCK = 128

_made: Any = WeakTensorKeyDictionary()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    spans: Spans | None = None,
    uses: list[KernelUse] | None = None,  # noqa: ARG001 - one signature for all implementations
) -> Tensor:
    """O like q, [B, h, N_q, d]. The first call with new sizes compiles; on a CPU no backward.

    With `spans` the block mask is made once for their tensor, from the same lists of tiles that perfkit's own
    kernels take. ValueError for spans with a stride.
    """
    shape = checked_shape(q, k, v)
    mask: BlockMask | None = None
    if causal:
        mask = _causal_mask(shape.seq_q, shape.seq_k, str(q.device))
    elif spans is not None:
        mask = _made.get(spans.ends)
        if mask is None or mask.seq_lengths != (shape.seq_q, shape.seq_k):
            mask = _mask_of(spans, shape.seq_q, shape.seq_k)
            _made[spans.ends] = mask
    # One compilation per set of sizes; past the limit dynamo raises (fullgraph) and does not run eager.
    with torch._dynamo.config.patch(recompile_limit=1024, accumulated_recompile_limit=4096):
        out: Tensor = _compiled()(
            q, k, v, block_mask=mask, scale=softmax_scale(scale, shape.head_dim), enable_gqa=shape.group > 1
        )
    return out


@lru_cache(maxsize=1)
def _compiled() -> Any:
    # A backward that may overwrite what the forward saved refuses a second run: in this process, and in each
    # that finds it in torch's cache on disk. Not for this call alone: it is asked again at every run.
    functorch.donated_buffer = False
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@lru_cache(maxsize=32)
def _causal_mask(seq_q: int, seq_k: int, device: str) -> BlockMask:
    """Bottom-right aligned: query i sees the keys j <= i + N_k - N_q."""
    shift = seq_k - seq_q

    def seen(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return key <= row + shift

    return create_block_mask(seen, None, None, seq_q, seq_k, device=device)


def _mask_of(spans: Spans, seq_q: int, seq_k: int) -> BlockMask:
    """The spans as a block mask. Evaluating the mask everywhere, as torch would, takes N_q N_k of memory."""
    if spans.stride > 1:
        raise ValueError("flex: spans with a stride are not served")
    ends, step = spans.ends, spans.step
    found = tile_lists(ends.cpu().numpy(), step, seq_q, seq_k, BLOCK, BLOCK).by_queries
    copies = [ends[:, k].contiguous() for k in range(ends.shape[1])]
    low, high = [one[:, 0].contiguous() for one in copies], [one[:, 1].contiguous() for one in copies]

    def seen(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        at = row // step
        found = (key >= low[0][at]) & (key < high[0][at])
        for first, last in zip(low[1:], high[1:], strict=True):
            found = found | ((key >= first[at]) & (key < last[at]))
        return found  # type: ignore[no-any-return]

    tiles_k = -(-seq_k // BLOCK)
    counts, which = _indices(found, tiles_k, ends.device, in_part=True)
    full_counts, full = _indices(found, tiles_k, ends.device, in_part=False)
    made: BlockMask = BlockMask.from_kv_blocks(
        counts,
        which,
        full_counts,
        full,
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(seq_q, seq_k),
    )
    return made


def _indices(found: TileList, tiles_k: int, device: torch.device, *, in_part: bool) -> list[Tensor]:
    """Of the blocks met in part, or in full: how many [1, 1, T], and which [1, 1, T, T_k]."""
    first = found.offsets[:-1] + (0 if in_part else found.partial)
    last = found.offsets[:-1] + found.partial if in_part else found.offsets[1:]
    which = np.zeros((len(first), tiles_k), np.int32)
    for row, (start, stop) in enumerate(zip(first, last, strict=True)):
        which[row, : stop - start] = found.members[start:stop]
    counts = (last - first).astype(np.int32)
    return [torch.from_numpy(array)[None, None].to(device) for array in (counts, which)]
