"""Correctness before speed: a result is held against the oracle, with the eager path as the measure.

The rule (FlashAttention's own tests use it too): the largest error against the oracle is at most twice that
of the eager path in the same dtype. Heads are independent, so that a large workload is checked on a stated
sample of them; the eager path runs over chunks of queries, which changes nothing in the forward pass.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec

from perfkit.measure.draft import Incorrect
from perfkit.ops import patterns
from perfkit.ops.attention_workload import AttentionWorkload

if TYPE_CHECKING:
    from torch import Tensor

    from perfkit.kernels.attention.masks import Mask

FACTOR: Final = 2.0
#: One rounding step of the working dtype at the size of a typical output: below it errors are equal.
FLOOR: Final = {"bf16": 2.0**-9, "fp16": 2.0**-12, "fp32": 2.0**-22}
CHUNK_BYTES: Final = 1 << 30
#: Output elements under which the eager path is drawn DRAWS times.
TINY: Final = 4096
DRAWS: Final = 16


class Inputs(msgspec.Struct, frozen=True):
    """The tensors of a workload; `dout` is the gradient that a backward pass starts from.

    `given` are keyword arguments of the implementation for what else the workload has: a pattern's `blocks`
    (bool [T, T]) and `block` (their rows), `dropout` with a list `drawn` that receives the mask of what was
    kept (bool [B, h, N_q, N_k]), and `lengths` (int32 [B], the keys that are no padding).
    """

    q: Any
    k: Any
    v: Any
    dout: Any
    given: dict[str, Any] = {}


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Largest absolute errors against the oracle, of the tensor that fares worst, and what was compared."""

    error: float
    eager_error: float
    scope: str


def make_inputs(w: AttentionWorkload, device: str, seed: int = 0) -> Inputs:
    """Standard-normal tensors of the workload, the same for every implementation."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[w.dtype]
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(heads: int, rows: int) -> "Tensor":
        size = (w.batch, heads, rows, w.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    q, k, v = draw(w.heads, w.seq_q), draw(w.kv_heads, w.seq_k), draw(w.kv_heads, w.seq_k)
    return Inputs(q=q, k=k, v=v, dout=draw(w.heads, w.seq_q), given=_given(w, device))


def _given(w: AttentionWorkload, device: str) -> dict[str, Any]:
    """The keyword arguments for pattern, dropout and padding, where the workload has them."""
    import torch

    given: dict[str, Any] = {}
    if w.pattern is not None:
        rows = patterns.blocks(w.pattern, w.seq_q)
        seen = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        for at, columns in enumerate(rows):
            seen[at, list(columns)] = True
        given |= {"blocks": seen.to(device), "block": patterns.parse(w.pattern).block}
    if w.dropout:
        given |= {"dropout": w.dropout, "drawn": []}
    if w.padding:
        given["lengths"] = torch.tensor(w.lengths, dtype=torch.int32, device=device)
    return given


def sample_heads(w: AttentionWorkload, whole_below: int = 1 << 31) -> list[tuple[int, int]]:
    """(batch, kv head) pairs to compare: all of a small workload, else the first and the last."""
    every = [(b, h) for b in range(w.batch) for h in range(w.kv_heads)]
    return every if w.pairs <= whole_below or len(every) <= 2 else [every[0], every[-1]]


class Judge:
    """Holds results of one workload against the oracle and the eager path, each computed once.

    `oracle` is the oracle's dtype. Only the sampled heads are computed and compared.
    """

    def __init__(self, w: AttentionWorkload, inputs: Inputs, oracle: str = "float64") -> None:
        self._w, self._inputs, self._oracle = w, inputs, oracle
        self._heads = sample_heads(w)

    @cached_property
    def _truth(self) -> "list[dict[str, Tensor]]":
        """What the oracle says, per sampled head."""
        return [_oracle(self._w, part, self._oracle) for part in self._parts(self._inputs)]

    def _forget(self) -> None:
        """Drop what was computed for another draw of dropout."""
        for name in ("_truth", "_eager"):
            self.__dict__.pop(name, None)

    @cached_property
    def _eager(self) -> dict[str, float]:
        """The eager path's largest error per tensor.

        The largest of a handful of errors is luck, so that a tiny workload is drawn several times.
        """
        found: dict[str, float] = {}
        draws = [self._inputs]
        if self._w.rows * self._w.head_dim < TINY and not self._w.dropout:  # other inputs, no draw
            draws += [make_inputs(self._w, self._inputs.q.device.type, seed) for seed in range(1, DRAWS)]
        for inputs in draws:
            for part in self._parts(inputs):
                eager, want = _eager(self._w, part), _oracle(self._w, part, self._oracle)
                for name, tensor in want.items():
                    found[name] = _worse(found.get(name, 0.0), _largest(eager[name], tensor))
        return found

    def _parts(self, inputs: Inputs) -> list[Inputs]:
        return [_slice(self._w, inputs, batch, kv_head) for batch, kv_head in self._heads]

    def errors(self, result: tuple[Any, ...]) -> Errors:
        """Errors of `result` (O, or dQ, dK, dV, or all four): of the one nearest to breaking the rule.

        With dropout the oracle takes the mask that was drawn last: judge a result before the next is made.
        """
        if self._w.dropout:
            self._forget()
        found: dict[str, float] = {}
        for (batch, kv_head), want in zip(self._heads, self._truth, strict=True):
            for name, tensor in _slice_result(self._w, result, batch, kv_head).items():
                found[name] = _worse(found.get(name, 0.0), _largest(tensor, want[name]))
        eager = self._eager
        worst = max(found, key=lambda name: _badness(found[name], eager[name] + FLOOR[self._w.dtype] / 64))
        total = self._w.batch * self._w.kv_heads
        few = f"{len(self._heads)} of {total} K/V heads (first and last)"
        scope = f"{worst}, {'all heads' if len(self._heads) == total else few}"
        return Errors(error=found[worst], eager_error=eager[worst], scope=scope)


class Bench:
    """A workload's inputs on a device and the judge of results on them, made once for all that run it."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._made: tuple[AttentionWorkload, Inputs, Judge] | None = None

    def has(self, w: AttentionWorkload) -> bool:
        """Whether the inputs of `w` are in memory."""
        return self._made is not None and self._made[0] == w

    def inputs(self, w: AttentionWorkload) -> tuple[Inputs, Judge]:
        """The inputs of `w` and their judge; those of another workload are dropped first."""
        if self._made is None or self._made[0] != w:
            self._made = None
            made = make_inputs(w, self._device)
            self._made = (w, made, Judge(w, made))
        return self._made[1:]


def require(w: AttentionWorkload, errors: Errors) -> None:
    """Raise Incorrect where the error breaks the rule; NaN breaks it always."""
    allowed = FACTOR * errors.eager_error + FLOOR[w.dtype] / 64
    if not errors.error <= allowed:
        raise Incorrect(
            f"largest error {errors.error:.3g} against the oracle, allowed {allowed:.3g} "
            f"(twice the eager path's {errors.eager_error:.3g}; {errors.scope})"
        )


def _largest(got: "Tensor", want: "Tensor") -> float:
    """The largest absolute difference; NaN if there is one."""
    return float((got.to(want.dtype) - want).abs().max())


def _worse(a: float, b: float) -> float:
    """The larger of two errors, and NaN beats all: `max` would lose it."""
    return b if b > a or math.isnan(b) else a


def _badness(error: float, allowed: float) -> float:
    return math.inf if math.isnan(error) else error / allowed


def _slice(w: AttentionWorkload, inputs: Inputs, batch: int, kv_head: int) -> Inputs:
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


def _slice_result(
    w: AttentionWorkload, result: tuple[Any, ...], batch: int, kv_head: int
) -> "dict[str, Tensor]":
    group = w.heads // w.kv_heads
    names = {1: ("out",), 3: ("dq", "dk", "dv"), 4: ("out", "dq", "dk", "dv")}[len(result)]
    found = {}
    for name, tensor in zip(names, result, strict=True):
        heads = (
            slice(kv_head, kv_head + 1)
            if name in ("dk", "dv")
            else slice(kv_head * group, (kv_head + 1) * group)
        )
        found[name] = tensor[batch : batch + 1, heads].detach()
    return found


def _oracle(w: AttentionWorkload, part: Inputs, dtype: str) -> "dict[str, Tensor]":
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
        blocks=given.get("blocks"),
        block=given.get("block", 0),
        lengths=given.get("lengths"),
        kept=given["drawn"][0] if w.dropout else None,
        dropout=w.dropout,
    )


def _eager(w: AttentionWorkload, part: Inputs) -> "dict[str, Tensor]":
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


def callables(
    w: AttentionWorkload, inputs: Inputs, attention: Callable[..., Any], uses: list[Any] | None
) -> tuple[Callable[[], Any], Callable[[], tuple[Any, ...]]]:
    """(the work to time, the same returning its results) of one implementation for the workload's pass."""
    import torch

    if w.pass_ == "fwd":

        def forward() -> Any:
            with torch.no_grad():
                return attention(inputs.q, inputs.k, inputs.v, causal=w.causal, uses=uses, **inputs.given)

        return forward, lambda: (forward(),)
    leaves = tuple(t.detach().requires_grad_() for t in (inputs.q, inputs.k, inputs.v))

    def both() -> tuple[Any, ...]:
        out = attention(*leaves, causal=w.causal, uses=uses, **inputs.given)
        return (out.detach(), *torch.autograd.grad(out, leaves, inputs.dout))

    if w.pass_ == "fwd-bwd":
        return both, both
    kept = attention(*leaves, causal=w.causal, uses=uses, **inputs.given)

    def backward() -> tuple[Any, ...]:
        return torch.autograd.grad(kept, leaves, inputs.dout, retain_graph=True)

    return backward, backward
