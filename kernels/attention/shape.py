"""The sizes of one attention call, checked once: q [B, h, N_q, d], k and v [B, h_kv, N_k, d]."""

import math
from typing import NamedTuple

from torch import Tensor


class Shape(NamedTuple):
    """Sizes in elements; `group` = heads / kv_heads query heads share one key/value head."""

    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def shift(self) -> int:
        """Causal, bottom-right aligned: query i sees the keys j <= i + shift."""
        return self.seq_k - self.seq_q


def checked_shape(q: Tensor, k: Tensor, v: Tensor) -> Shape:
    """The call's sizes. ValueError where q, k, v do not make one attention call."""
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k, v must be [batch, heads, rows, head_dim], got {_sizes(q, k, v)}")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q, k, v must agree in batch and head_dim, k with v in all: {_sizes(q, k, v)}")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q, k, v must not be empty, got {_sizes(q, k, v)}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key/value heads")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v must share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v must share one device, got {q.device}, {k.device}, {v.device}")
    return Shape(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3])


def softmax_scale(scale: float | None, head_dim: int) -> float:
    """The factor on Q K^T: 1/sqrt(d) unless given. ValueError unless positive and finite."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return scale


def _sizes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return ", ".join(str(tuple(t.shape)) for t in (q, k, v))
