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
from perfkit.measure.inputs import Inputs, make_inputs, slice_inputs
from perfkit.measure.oracle import by_eager, by_oracle
from perfkit.ops.attention_workload import AttentionWorkload

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bench", "Errors", "Inputs", "Judge", "callables", "make_inputs", "require", "sample_heads"]

FACTOR: Final = 2.0
#: One rounding step of the working dtype at the size of a typical output: below it errors are equal.
FLOOR: Final = {"bf16": 2.0**-9, "fp16": 2.0**-12, "fp32": 2.0**-22}
#: Output elements under which the eager path is drawn DRAWS times.
TINY: Final = 4096
DRAWS: Final = 16


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Largest absolute errors against the oracle, of the tensor that fares worst, and what was compared."""

    error: float
    eager_error: float
    scope: str


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
        return [by_oracle(self._w, part, self._oracle) for part in self._parts(self._inputs)]

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
                eager, want = by_eager(self._w, part), by_oracle(self._w, part, self._oracle)
                for name, tensor in want.items():
                    found[name] = _worse(found.get(name, 0.0), _largest(eager[name], tensor))
        return found

    def _parts(self, inputs: Inputs) -> list[Inputs]:
        return [slice_inputs(self._w, inputs, batch, kv_head) for batch, kv_head in self._heads]

    def errors(self, result: tuple[Any, ...]) -> Errors:
        """Errors of `result` (O, or dQ, dK, dV, or all four): of the one nearest to breaking the rule.

        With dropout the oracle takes the mask that was drawn last: judge a result before the next is made.
        """
        if self._w.dropout:
            self._forget()
            require_drawn(self._w, self._inputs.given["drawn"][0])
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


def require_drawn(w: AttentionWorkload, kept: "Tensor") -> None:
    """Raise Incorrect where the share that dropout kept is not the asked one, by more than luck."""
    share, wanted = float(kept.float().mean()), 1 - w.dropout
    luck = 6 * math.sqrt(w.dropout * wanted / kept.numel())
    if not abs(share - wanted) <= luck:
        raise Incorrect(f"dropout kept {share:.4f} of P, and {wanted:.4f} was asked for")


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
