"""Decoding without a kernel for pages: the cache is gathered into one piece, and torch's SDPA reads that."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import Cache, New
from .masks import Mask
from .shape import checked_shape, softmax_scale
from .use import KernelUse


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    lengths: Tensor | None = None,
    cache: Cache | None = None,
    new: New | None = None,
    uses: list[KernelUse] | None = None,  # noqa: ARG001 - one signature for all implementations
) -> Tensor:
    """O like q, [B, h, N_q, d], on a GPU or the CPU; without gradients.

    With a `cache` K and V are what it holds: `new` is written to it, its pages are copied to where their
    sequence wants them, and fp8 is converted. With `lengths` a mask hides what lies behind each sequence.
    """
    shape = checked_shape(q, k, v)
    with torch.no_grad():
        if cache is not None:
            ends = (
                lengths if lengths is not None else torch.full((shape.batch,), shape.seq_k, device=q.device)
            )
            if new is not None:
                _append(cache, new, ends)
            k, v = (
                _gathered(stored, scales, cache.table, ends, shape.seq_k, q.dtype)
                for stored, scales in ((cache.k, cache.k_scale), (cache.v, cache.v_scale))
            )
        rows = slice(0, shape.seq_q)
        hidden = None
        if lengths is not None or (causal and shape.shift):
            hidden = Mask(causal, lengths=lengths).hidden(rows, shape.seq_q, shape.seq_k, q.device)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if hidden is None else ~hidden,
            is_causal=causal and hidden is None,
            scale=softmax_scale(scale, shape.head_dim),
            enable_gqa=shape.group > 1,
        )


def _slots(cache: Cache, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(page or sequence, row in it) of `tokens` [B, n] of each sequence."""
    batches = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
    if cache.table is None:
        return batches, tokens
    page = cache.k.shape[2]
    return cache.table[batches, tokens // page].long(), tokens % page


def _append(cache: Cache, new: New, ends: Tensor) -> None:
    count = new.k.shape[2]
    tokens = ends[:, None] - count + torch.arange(count, device=ends.device)
    pages, rows = _slots(cache, tokens)
    for stored, scales, given in ((cache.k, cache.k_scale, new.k), (cache.v, cache.v_scale, new.v)):
        values = given.transpose(1, 2)  # [B, n, h_kv, d]
        if scales is None:
            stored[pages, :, rows] = values
        else:
            scale = scales[pages] if cache.table is not None else scales
            eighths = (values.float() / scale[..., None]).to(stored.dtype)
            # torch has no assignment by index for fp8; its bytes are as good.
            stored.view(torch.uint8)[pages, :, rows] = eighths.view(torch.uint8)


def _gathered(
    stored: Tensor, scales: Tensor | None, table: Tensor | None, ends: Tensor, seq_k: int, dtype: torch.dtype
) -> Tensor:
    """K or V [B, h_kv, N_k, d] in `dtype`; what lies behind a sequence is 0."""
    found = stored
    if table is not None:
        found = stored.view(torch.uint8)[table.long()].view(stored.dtype)  # [B, pages, h_kv, page, d]
    if scales is not None:
        factors = scales[table.long()] if table is not None else scales
        found = found.to(dtype) * factors[..., None, None].to(dtype)
    if table is not None:
        found = found.transpose(1, 2).flatten(2, 3)[:, :, :seq_k]
    behind = torch.arange(seq_k, device=ends.device) >= ends[:, None]
    return found.masked_fill(behind[:, None, :, None], 0.0)
