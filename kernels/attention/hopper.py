"""FlashAttention-3 on Hopper: attention that autograd can differentiate.

The forward kernel is that of `flash_hopper`, the backward ones those of `flash_hopper_backward`. Gluon, in
which they are written, came with Triton 3.6: it is imported by the first call.
"""

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from .shape import checked_shape
from .tile_io import DTYPES, can_describe, capability, interpreted
from .tiles import hopper_backward_width, padded_rows
from .use import KernelUse


def refusal(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why flash_hopper cannot serve the call, forward or backward ("needs ..."); None where it can.

    ValueError for what is no attention call. It launches nothing.
    """
    head_dim = checked_shape(q, k, v).head_dim
    if q.device.type != "cuda":
        return f"needs a GPU of compute capability 9.0, got {q.device}"
    if (found := capability(q)) != (9, 0):
        return f"needs compute capability 9.0 (wgmma), got {found[0]}.{found[1]}"
    if (reason := _without_gluon()) is not None:
        return reason
    if q.dtype not in DTYPES:
        return f"serves float16 and bfloat16, got {q.dtype}"
    if not 16 <= head_dim <= 256 or head_dim % 8:
        return f"serves head dims 16 to 256 in steps of 8, got {head_dim}"
    if max(q.shape[0] * q.shape[1], hopper_backward_width(head_dim)) * padded_rows(q.shape[2]) >= 2**31:
        return f"counts rows of all heads and numbers of one in 32 bits, got {list(q.shape)}"
    if not all(t.stride(-1) == 1 and can_describe(t) for t in (q, k, v)):
        return "loads by TMA and needs 16-byte aligned bases and strides, none 0"
    return None


@cache
def _without_gluon() -> str | None:
    """Why this Triton cannot compile Gluon; None where it can."""
    if interpreted():
        return "is in Gluon, which Triton's interpreter cannot execute"
    try:
        from . import flash_hopper  # noqa: F401
    except ImportError as error:
        return f"needs Gluon, of Triton 3.6 or newer, got {triton.__version__}: {error}"
    return None


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
    if (reason := _without_gluon()) is not None:
        raise ValueError(f"flash_hopper {reason}")
    from . import flash_hopper

    return flash_hopper.forward(q, k, v, causal, scale, uses=uses)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    deterministic: bool = False,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) from what `forward` gave.

    dQ has the same bits each time if `deterministic`, and above a head dim of 128.
    """
    from . import flash_hopper_backward  # there is Gluon: the forward pass has run

    return flash_hopper_backward.backward(
        q, k, v, out, lse, dout, causal, scale, deterministic=deterministic, uses=uses
    )


class _Hopper(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool,
        scale: float | None,
        deterministic: bool,
        uses: list[KernelUse] | None,
    ) -> Tensor:
        out, lse = forward(q, k, v, causal, scale, uses=uses)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.scale, ctx.deterministic, ctx.uses = causal, scale, deterministic, uses
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        how = {"deterministic": ctx.deterministic, "uses": ctx.uses}
        dq, dk, dv = backward(q, k, v, out, lse, dout, ctx.causal, ctx.scale, **how)
        return dq, dk, dv, None, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    deterministic: bool = False,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N_q, d], float16 or bfloat16. Rows that see no key are 0.

    Backward, up to head dim 128, parts of dQ are added in float32 in whatever order they are ready, and its
    last bits differ from run to run; `deterministic` fixes them, for seven matrix products instead of five.
    Above 128 they are fixed, and there are seven. `uses` receives what
    the forward kernel used at call, and the backward kernels when autograd runs. ValueError for other dtypes,
    head dims outside 16..256 or no multiple of 8, layouts that TMA cannot address, and any device but one of
    compute capability 9.0.
    """
    out: Tensor = _Hopper.apply(q, k, v, causal, scale, deterministic, uses)  # type: ignore[no-untyped-call]
    return out
