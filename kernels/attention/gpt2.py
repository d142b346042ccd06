"""GPT-2's attention with its steps apart: matmul, mask, softmax, dropout, matmul, and their gradients.

The pipeline that FlashAttention (arXiv 2205.14135, section 3.2, Figure 2 left) is compared with. Each step is
a function of its own here, written out as the operations of torch that run, so that it can be timed alone and
its bytes are known: no step is fused with another, and autograd adds none.

Passes over an N_q x N_k matrix of the working dtype e, forward: S written (1), the mask added (2), softmax
(2), dropout (2 and the 1-byte mask Z), P o Z read (1): 8.5 in 16 bits. Backward: P o Z read (1), dP written
(1), dropout (2 and Z), softmax (3, and on a GPU 3 more: torch multiplies P and dP in a kernel of its own
first), dS read twice (2). The scale is a factor inside the products and costs nothing.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .shape import checked_shape, softmax_scale
from .standard import MASKED_SCORE
from .use import KernelUse

_aten = torch.ops.aten


class Weights(NamedTuple):
    """What the forward pass keeps for the backward: P, P o Z / (1 - p), and Z, [B h, N_q, N_k].

    Z is bool, what dropout kept; without dropout it is None, and P o Z is P itself.
    """

    whole: Tensor
    dropped: Tensor
    kept: Tensor | None


def padding_mask(lengths: Tensor, seq_k: int, dtype: torch.dtype) -> Tensor:
    """The additive mask over MASKED_SCORE, [B, 1, 1, N_k]: 1 for keys j >= lengths[b], else 0. 2 launches."""
    keys = torch.arange(seq_k, dtype=torch.int32, device=lengths.device)
    mask = torch.empty(lengths.shape[0], seq_k, dtype=dtype, device=lengths.device)
    torch.ge(keys, lengths[:, None], out=mask)
    return mask[:, None, None]


def scores(q: Tensor, k: Tensor, factor: float) -> Tensor:
    """S = factor Q K^T, [B h, N_q, N_k], from rows [B h, N, d]."""
    return _product(q, k.transpose(1, 2), factor)


def masked(s: Tensor, mask: Tensor, heads: int) -> Tensor:
    """S + MASKED_SCORE mask, written over S, which is read and written once."""
    s.view(-1, heads, *s.shape[1:]).add_(mask, alpha=MASKED_SCORE)
    return s


def softmax(s: Tensor) -> Tensor:
    """P = softmax(S) over the keys."""
    return torch.softmax(s, dim=-1)


def drop(p: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """(P o Z / (1 - p), Z): Z is bool, drawn here, and False with probability `dropout`."""
    dropped: Tensor
    kept: Tensor
    dropped, kept = _aten.native_dropout(p, dropout, True)
    return dropped, kept


def output(dropped: Tensor, v: Tensor) -> Tensor:
    """O = (P o Z) V."""
    return torch.bmm(dropped, v)


def value_gradient(dropped: Tensor, dout: Tensor) -> Tensor:
    """dV = (P o Z)^T dO."""
    return torch.bmm(dropped.transpose(1, 2), dout)


def weight_gradient(dout: Tensor, v: Tensor) -> Tensor:
    """dP = dO V^T, of the weights after dropout."""
    return torch.bmm(dout, v.transpose(1, 2))


def drop_gradient(dp: Tensor, kept: Tensor, dropout: float) -> Tensor:
    """dP o Z / (1 - p), the gradient of the weights before dropout."""
    before: Tensor = _aten.native_dropout_backward(dp, kept, 1.0 / (1.0 - dropout))
    return before


def softmax_gradient(dp: Tensor, p: Tensor) -> Tensor:
    """dS = P o (dP - rowsum(P o dP))."""
    ds: Tensor = _aten._softmax_backward_data(dp, p, -1, p.dtype)
    return ds


def query_gradient(ds: Tensor, k: Tensor, factor: float) -> Tensor:
    """dQ = factor dS K."""
    return _product(ds, k, factor)


def key_gradient(ds: Tensor, q: Tensor, factor: float) -> Tensor:
    """dK = factor dS^T Q."""
    return _product(ds.transpose(1, 2), q, factor)


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor a b in one kernel: the addend is not read where beta is 0."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=factor)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, heads: int, factor: float, dropout: float
) -> tuple[Tensor, Weights]:
    """(O, what the backward pass needs) from rows [B h, N, d], step after step. No autograd."""
    mask = None if lengths is None else padding_mask(lengths, k.shape[1], q.dtype)
    s = scores(q, k, factor)
    if mask is not None:
        s = masked(s, mask, heads)
    whole = softmax(s)
    del s  # it is not needed again, and as large as P
    dropped, kept = drop(whole, dropout) if dropout else (whole, None)
    return output(dropped, v), Weights(whole, dropped, kept)


def backward(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, weights: Weights, factor: float, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) as rows [B h, N, d], step after step. No autograd."""
    dv = value_gradient(weights.dropped, dout)
    dp = weight_gradient(dout, v)
    if weights.kept is not None:
        dp = drop_gradient(dp, weights.kept, dropout)
    ds = softmax_gradient(dp, weights.whole)
    return query_gradient(ds, k, factor), key_gradient(ds, q, factor), dv


class _Gpt2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        factor: float,
        dropout: float,
        drawn: list[Tensor] | None,
    ) -> Tensor:
        batch, heads = q.shape[:2]
        rows = [t.reshape(batch * heads, *t.shape[2:]) for t in (q, k, v)]
        out, weights = forward(rows[0], rows[1], rows[2], lengths, heads, factor, dropout)
        if drawn is not None and weights.kept is not None:
            drawn[:] = [weights.kept.view(batch, heads, *weights.kept.shape[1:])]
        ctx.save_for_backward(*rows, *weights)
        ctx.shapes, ctx.factor, ctx.dropout = (q.shape, k.shape, v.shape), factor, dropout
        return out.view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        found = backward(q, k, v, dout.reshape(q.shape), Weights(*weights), ctx.factor, ctx.dropout)
        gradients = (grad.view(shape) for grad, shape in zip(found, ctx.shapes, strict=True))
        return (*gradients, None, None, None, None)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    lengths: Tensor | None = None,
    drawn: list[Tensor] | None = None,
    uses: list[KernelUse] | None = None,  # noqa: ARG001 - one signature for all implementations
) -> Tensor:
    """O like q, [B, h, N_q, d]: (softmax(scale Q K^T + mask) o Z / (1 - dropout)) V, on a GPU or the CPU.

    `lengths` (integers [B], 1 to N_k) are the keys of each sequence that are no padding. With `dropout` Z is
    drawn by torch's generator and put into `drawn` (bool [B, h, N_q, N_k], what was kept). Without one of
    them its steps do not run. ValueError for a causal mask, grouped heads, and what makes no attention call.
    """
    shape = checked_shape(q, k, v)
    if causal:
        raise ValueError("gpt2 has a padding mask and no causal one")
    if shape.kv_heads != shape.heads:
        raise ValueError(f"gpt2 has no grouped heads: {shape.heads} query heads, {shape.kv_heads} K/V heads")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a share from 0 to below 1, got {dropout}")
    if lengths is not None and (lengths.shape != (shape.batch,) or lengths.device != q.device):
        raise ValueError(f"lengths must be [{shape.batch}] on {q.device}, got {tuple(lengths.shape)}")
    factor = softmax_scale(scale, shape.head_dim)
    out: Tensor = _Gpt2.apply(q, k, v, lengths, factor, dropout, drawn)  # type: ignore[no-untyped-call]
    return out
