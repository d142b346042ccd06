"""torch's scaled_dot_product_attention, one function per kernel family, with no fallback between them.

The family is chosen at call; the autograd graph then holds that family's own backward, so the backward needs
no context. torch's `is_causal` is top-left aligned: for N_q != N_k each function says what it can do instead.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from .masks import Mask
from .shape import Shape, checked_shape, softmax_scale
from .spans import Spans
from .use import KernelUse

# ruff: noqa: ARG001 - one signature for all implementations


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """torch's FlashAttention-2. Causal N_q < N_k is bottom-right; ValueError for causal N_q > N_k."""
    return _one_backend(SDPBackend.FLASH_ATTENTION, q, k, v, causal, scale, lower_right=True)


def efficient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """torch's memory-efficient attention (CUTLASS). ValueError for grouped heads and for causal N_q > N_k."""
    if q.shape[1] != k.shape[1]:
        raise ValueError(
            f"torch's efficient attention has no grouped heads (h {q.shape[1]}, h_kv {k.shape[1]})"
        )
    return _one_backend(SDPBackend.EFFICIENT_ATTENTION, q, k, v, causal, scale, lower_right=True)


def cudnn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """cuDNN's fused attention. ValueError for causal N_q != N_k: torch offers only top-left alignment."""
    return _one_backend(SDPBackend.CUDNN_ATTENTION, q, k, v, causal, scale, lower_right=False)


def math(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    spans: Spans | None = None,
    lengths: Tensor | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """torch's composition of matmul, mask, softmax, matmul. Any mask but a square causal one is a matrix."""
    with sdpa_kernel([SDPBackend.MATH]):
        return _masked(q, k, v, Mask(causal, spans, lengths), scale)


def default(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    spans: Spans | None = None,
    lengths: Tensor | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """Whatever torch picks, CPU included. Any mask but a square causal one is a boolean matrix."""
    return _masked(q, k, v, Mask(causal, spans, lengths), scale)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None) -> Tensor:
    shape = checked_shape(q, k, v)
    factor = softmax_scale(scale, shape.head_dim)
    grouped = shape.group > 1
    if mask == Mask(causal=True) and not shape.shift:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=factor, enable_gqa=grouped)
    hidden = mask.hidden(slice(0, shape.seq_q), shape.seq_q, shape.seq_k, q.device)
    seen = None if hidden is None else ~hidden
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=factor, enable_gqa=grouped)


def _one_backend(
    backend: SDPBackend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    scale: float | None,
    *,
    lower_right: bool,
) -> Tensor:
    """SDPA under one backend; ValueError, with torch's reason, where the backend refuses."""
    shape = checked_shape(q, k, v)
    name = backend.name.lower()
    if causal and shape.shift and not lower_right:
        raise ValueError(f"{name}: torch aligns causal top-left, so N_q must equal N_k ({_rows(shape)})")
    if causal and shape.shift < 0:
        raise ValueError(f"{name}: causal N_q > N_k leaves rows without a key, NaN in torch ({_rows(shape)})")
    bias = causal_lower_right(shape.seq_q, shape.seq_k) if causal and shape.shift else None
    try:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=bias,
                is_causal=causal and bias is None,
                scale=softmax_scale(scale, shape.head_dim),
                enable_gqa=shape.group > 1,
            )
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        raise ValueError(f"{name}: no such kernel for {tuple(q.shape)}, {q.dtype}, {q.device}") from error


def _rows(shape: Shape) -> str:
    return f"N_q = {shape.seq_q}, N_k = {shape.seq_k}"
