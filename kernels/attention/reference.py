"""The oracle: attention and its gradients by definition, in float64 or float32, over chunks of query rows.

S = scale Q K^T, P = softmax(S), O = P V; dV = P^T dO, dP = dO V^T, dS = P o (dP - rowsum(dO o O)),
dQ = scale dS K, dK = scale dS^T Q (FlashAttention, arXiv 2205.14135, section 2.2 and appendix B.2).
Only the chunk's [B, h, rows, N_k] exists at a time, so that long sequences fit. CPU or GPU; TF32 stays off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cache import Cache, New
from .masks import Mask
from .shape import Shape, checked_shape, softmax_scale
from .spans import Spans
from .use import KernelUse

CHUNK_BYTES = 1 << 28
"""The most that one [B, h, rows, N_k] tensor takes; about four exist at a time."""


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    oracle_dtype: torch.dtype = torch.float64,
    mask: Mask | None = None,
) -> tuple[Tensor, Tensor]:
    """(O [B, h, N_q, d], LSE [B, h, N_q]) in `oracle_dtype`; rows without a key: 0 and -inf. No autograd.

    `mask` takes the place of `causal`.
    """
    mask = mask or Mask(causal)
    shape = checked_shape(q, k, v)
    factor = softmax_scale(scale, shape.head_dim)
    with torch.no_grad(), _full_precision():
        q, k, v = (t.to(_oracle(oracle_dtype)) for t in (q, k, v))
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
        for rows in _chunks(shape, q.element_size()):
            weights, log_sum = _weights(q[:, :, rows], k, rows, mask, factor, shape)
            kept = mask.weight(rows, weights.dtype)
            weights = weights if kept is None else weights.mul_(kept)
            out[:, :, rows] = _ungrouped(_grouped(weights, shape) @ v, shape)
            lse[:, :, rows] = log_sum
    return out, lse


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    causal: bool = False,
    scale: float | None = None,
    oracle_dtype: torch.dtype = torch.float64,
    mask: Mask | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) in `oracle_dtype`, shaped like q, k, v. Nothing from the forward pass is needed.

    `mask` takes the place of `causal`. With dropout of mask Z, dP = Z o (dO V^T) and dV = (Z o P)^T dO (FA1
    Algorithm 4).
    """
    mask = mask or Mask(causal)
    shape = checked_shape(q, k, v)
    factor = softmax_scale(scale, shape.head_dim)
    with torch.no_grad(), _full_precision():
        q, k, v, dout = (t.to(_oracle(oracle_dtype)) for t in (q, k, v, dout))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows in _chunks(shape, q.element_size()):
            weights, _ = _weights(q[:, :, rows], k, rows, mask, factor, shape)
            weights = _grouped(weights, shape)
            kept = mask.weight(rows, weights.dtype)
            dropped = weights if kept is None else weights * _grouped(kept, shape)
            q_rows, dout_rows = _grouped(q[:, :, rows], shape), _grouped(dout[:, :, rows], shape)
            d_weights = dout_rows @ v.transpose(-1, -2)
            if kept is not None:
                d_weights.mul_(_grouped(kept, shape))
            delta = (dout_rows * (dropped @ v)).sum(-1, keepdim=True)
            d_scores = d_weights.sub_(delta).mul_(weights).mul_(factor)
            dv += dropped.transpose(-1, -2) @ dout_rows
            dk += d_scores.transpose(-1, -2) @ q_rows
            dq[:, :, rows] = _ungrouped(d_scores @ k, shape)
    return dq, dk, dv


class _Reference(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        scale: float | None,
        oracle_dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.arguments = (mask.causal, scale, oracle_dtype, mask)
        return forward(q, k, v, *ctx.arguments)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v = ctx.saved_tensors
        grads = backward(q, k, v, dout, *ctx.arguments)
        dq, dk, dv = (grad.to(t.dtype) for grad, t in zip(grads, (q, k, v), strict=True))
        return dq, dk, dv, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    uses: list[KernelUse] | None = None,  # noqa: ARG001 - one signature for all implementations
    oracle_dtype: torch.dtype = torch.float64,
    spans: Spans | None = None,
    lengths: Tensor | None = None,
    cache: Cache | None = None,  # noqa: ARG001 - k and v are what it holds
    new: New | None = None,  # noqa: ARG001 - and k and v have these already
) -> Tensor:
    """O [B, h, N_q, d] in `oracle_dtype` (not q's dtype; gradients have their input's). Masks: see `Mask`."""
    mask = Mask(causal, spans, lengths)
    out: Tensor = _Reference.apply(q, k, v, mask, scale, oracle_dtype)  # type: ignore[no-untyped-call]
    return out


def _weights(
    q: Tensor, k: Tensor, rows: slice, mask: Mask, factor: float, shape: Shape
) -> tuple[Tensor, Tensor]:
    """(P [B, h, rows, N_k], LSE [B, h, rows]) of a chunk of query rows, in q's dtype, before dropout."""
    scores = _ungrouped(_grouped(q, shape) @ k.transpose(-1, -2), shape).mul_(factor)
    if (hidden := mask.hidden(rows, shape.seq_q, shape.seq_k, q.device)) is not None:
        scores.masked_fill_(hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    base = lse.masked_fill(lse == float("-inf"), 0.0)  # a row without a key: exp(-inf - 0) = 0
    return scores.sub_(base[..., None]).exp_(), lse


def _grouped(rows: Tensor, shape: Shape) -> Tensor:
    """[B, h, n, x] as [B, h_kv, g n, x]: the rows of a group's query heads under each other."""
    return rows.reshape(shape.batch, shape.kv_heads, -1, rows.shape[-1])


def _ungrouped(rows: Tensor, shape: Shape) -> Tensor:
    """[B, h_kv, g n, x] as [B, h, n, x]."""
    return rows.reshape(shape.batch, shape.heads, -1, rows.shape[-1])


def _chunks(shape: Shape, element_size: int) -> Iterator[slice]:
    rows = max(1, CHUNK_BYTES // (shape.batch * shape.heads * shape.seq_k * element_size))
    for start in range(0, shape.seq_q, rows):
        yield slice(start, min(start + rows, shape.seq_q))


def _oracle(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the oracle computes in float32 or float64, not in {dtype}")
    return dtype


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 matmuls in float32 on the GPU, whatever the process has set."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
