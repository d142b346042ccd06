"""The formula in the working dtype, with any mask, by autograd: the measure of what rounding may cost."""

import torch
from torch import Tensor

from .masks import Mask
from .shape import checked_shape, softmax_scale


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None = None) -> Tensor:
    """O like q, [B, h, N_q, d]: softmax(scale Q K^T) with hidden keys at -inf, dropout, V, step by step."""
    shape = checked_shape(q, k, v)
    k, v = (t.repeat_interleave(shape.group, dim=1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)) * softmax_scale(scale, shape.head_dim)
    rows = slice(0, shape.seq_q)
    hidden = mask.hidden(rows, shape.seq_q, shape.seq_k, q.device)
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1)
    kept = mask.weight(rows, weights.dtype)
    return (weights if kept is None else weights * kept) @ v
