"""What the oracle says of a part of a workload, and what the formula gives in the working dtype."""

from typing import TYPE_CHECKING, Final

from perfkit.measure.inputs import Inputs
from perfkit.ops.attention_workload import AttentionWorkload

if TYPE_CHECKING:
    from torch import Tensor

    from perfkit.kernels.attention.masks import Mask

CHUNK_BYTES: Final = 1 << 30


def by_oracle(w: AttentionWorkload, part: Inputs, dtype: str) -> "dict[str, Tensor]":
    """Every result of the pass by name, in the oracle's `dtype`."""
    import torch

    from perfkit.kernels.attention import reference

    kind, mask = getattr(torch, dtype), _mask(w, part)
    if w.pass_ == "fwd":
        return {"out": reference.forward(part.q, part.k, part.v, mask=mask, oracle_dtype=kind)[0]}
    gradients = reference.backward(part.q, part.k, part.v, part.dout, mask=mask, oracle_dtype=kind)
    found = dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    if w.pass_ == "fwd-bwd":
        found["out"] = reference.forward(part.q, part.k, part.v, mask=mask, oracle_dtype=kind)[0]
    return found


def _mask(w: AttentionWorkload, part: Inputs) -> "Mask":
    """The mask of a part of a workload; its dropout is what was drawn last."""
    from perfkit.kernels.attention.masks import Mask

    given = part.given
    return Mask(
        causal=w.causal,
        spans=given.get("spans"),
        lengths=given.get("lengths"),
        kept=given["drawn"][0] if w.dropout else None,
        dropout=w.dropout,
    )


def by_eager(w: AttentionWorkload, part: Inputs) -> "dict[str, Tensor]":
    """The standard path in the working dtype, over chunks of queries; dK and dV are summed in float32.

    With other masks than a causal one it is the plain formula, in one piece.
    """
    import torch

    from perfkit.kernels.attention.standard import attention

    if w.features:
        return _eager_masked(w, part)

    heads, n_q, n_k = part.q.shape[1], w.seq_q, w.seq_k
    chunk = max(1, min(n_q, CHUNK_BYTES // (heads * n_k * w.element_bytes)))
    backward = w.pass_ != "fwd"
    out, dq = torch.zeros_like(part.q), torch.zeros_like(part.q)
    dk = torch.zeros(part.k.shape, dtype=torch.float32, device=part.k.device)
    dv = torch.zeros_like(dk)
    for start in range(0, n_q, chunk):
        stop = min(n_q, start + chunk)
        keys = max(0, stop + n_k - n_q) if w.causal else n_k
        if keys == 0:
            continue
        q, k, v = (t.detach().clone().requires_grad_(backward) for t in (
            part.q[:, :, start:stop], part.k[:, :, :keys], part.v[:, :, :keys]
        ))  # fmt: skip
        with torch.set_grad_enabled(backward):
            o = attention(q, k, v, causal=w.causal)
        out[:, :, start:stop] = o.detach()
        if backward:
            a, b, c = torch.autograd.grad(o, (q, k, v), part.dout[:, :, start:stop])
            dq[:, :, start:stop] = a
            dk[:, :, :keys] += b
            dv[:, :, :keys] += c
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def _eager_masked(w: AttentionWorkload, part: Inputs) -> "dict[str, Tensor]":
    import torch

    from perfkit.kernels.attention import eager

    q, k, v = leaves = tuple(t.detach().requires_grad_(w.pass_ != "fwd") for t in (part.q, part.k, part.v))
    with torch.set_grad_enabled(w.pass_ != "fwd"):
        out = eager.attention(q, k, v, _mask(w, part))
    found = {"out": out.detach()}
    if w.pass_ != "fwd":
        found |= zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, part.dout), strict=True)
    return found
