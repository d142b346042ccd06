"""FlashAttention-3's forward on Hopper, and attention that autograd can differentiate.

The forward kernel is that of `flash_hopper`, the backward ones those of `flash_backward`. Gluon, in which the
former is written, came with Triton 3.6: it is imported by the first call.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from .flash_backward import backward
from .use import KernelUse


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE) by `flash_hopper.forward`; ValueError also where Triton has no Gluon."""
    try:
        from . import flash_hopper
    except ImportError as error:
        found = triton.__version__
        raise ValueError(f"flash_hopper needs Gluon, of Triton 3.6 or newer, got {found}: {error}") from error
    return flash_hopper.forward(q, k, v, causal, scale, uses=uses)


class _Hopper(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool,
        scale: float | None,
        uses: list[KernelUse] | None,
    ) -> Tensor:
        out, lse = forward(q, k, v, causal, scale, uses=uses)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.scale, ctx.uses = causal, scale, uses
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = backward(q, k, v, out, lse, dout, ctx.causal, ctx.scale, uses=ctx.uses)
        return dq, dk, dv, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N_q, d], float16 or bfloat16. Rows that see no key are 0.

    `uses` receives what the forward kernel used at call, and the three backward kernels when autograd runs.
    ValueError for other dtypes, head dims outside 16..256 or no multiple of 8, layouts that TMA cannot
    address, and any device but one of compute capability 9.0.
    """
    out: Tensor = _Hopper.apply(q, k, v, causal, scale, uses)  # type: ignore[no-untyped-call]
    return out
