"""The tensors of a workload, the same for every implementation."""

from typing import TYPE_CHECKING, Any

import msgspec

from perfkit.measure.cache_inputs import cached
from perfkit.ops import patterns
from perfkit.ops.attention_workload import AttentionWorkload

if TYPE_CHECKING:
    from torch import Tensor


class Inputs(msgspec.Struct, frozen=True):
    """The tensors of a workload; `dout` is the gradient that a backward pass starts from.

    `given` are keyword arguments of the implementation for what else the workload has: a pattern's `spans`,
    `dropout` with a list `drawn` that receives the mask of what was kept (bool [B, h, N_q, N_k]), `lengths`
    (int32 [B], the keys that are no padding), and `cache` and `new` (see `cache_inputs`).
    """

    q: Any
    k: Any
    v: Any
    dout: Any
    given: dict[str, Any] = {}


def make_inputs(w: AttentionWorkload, device: str, seed: int = 0) -> Inputs:
    """Standard-normal tensors of the workload, the same for every implementation."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[w.dtype]
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(heads: int, rows: int) -> "Tensor":
        size = (w.batch, heads, rows, w.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    q, k, v = draw(w.heads, w.seq_q), draw(w.kv_heads, w.seq_k), draw(w.kv_heads, w.seq_k)
    dout = draw(w.heads, w.seq_q)
    k, v, of_cache = cached(w, k, v)
    return Inputs(q=q, k=k, v=v, dout=dout, given=_given(w, device) | of_cache)


def _given(w: AttentionWorkload, device: str) -> dict[str, Any]:
    """The keyword arguments for pattern, dropout and padding, where the workload has them."""
    import torch

    given: dict[str, Any] = {}
    if w.pattern is not None:
        found = patterns.spans(w.pattern, w.seq_q, w.seq_k)
        given["spans"] = found._replace(ends=torch.from_numpy(found.ends).to(device))
    if w.dropout:
        given |= {"dropout": w.dropout, "drawn": []}
    if w.padding:
        given["lengths"] = torch.tensor(w.lengths, dtype=torch.int32, device=device)
    return given


def slice_inputs(w: AttentionWorkload, inputs: Inputs, batch: int, kv_head: int) -> Inputs:
    """The part of one K/V head with the query heads that share it."""
    group = w.heads // w.kv_heads
    rows = slice(kv_head * group, (kv_head + 1) * group)
    one = slice(batch, batch + 1)
    return Inputs(
        q=inputs.q[one, rows].detach(),
        k=inputs.k[one, kv_head : kv_head + 1].detach(),
        v=inputs.v[one, kv_head : kv_head + 1].detach(),
        dout=inputs.dout[one, rows],
        given=_slice_given(inputs.given, one, rows),
    )


def _slice_given(given: dict[str, Any], batch: slice, heads: slice) -> dict[str, Any]:
    cut = dict(given)
    if "lengths" in cut:
        cut["lengths"] = cut["lengths"][batch]
    if "drawn" in cut:
        cut["drawn"] = [mask[batch, heads] for mask in cut["drawn"]]
    return cut
