"""Standard attention and torch's own on the CPU: right, and with as many N x N passes as counted."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from perfkit.kernels.attention import reference, sdpa, standard  # noqa: E402

SIZES = [  # heads, kv_heads, seq_q, seq_k, causal
    (2, 2, 64, 64, False),
    (2, 2, 113, 113, True),
    (4, 2, 40, 70, True),
    (4, 1, 70, 40, True),
    (3, 1, 33, 203, False),
]
ERROR = {
    "float32": 1e-6,
    "float16": 2e-3,
    "bfloat16": 1.5e-2,
}  # relative, Frobenius; about 3x what was seen


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize(("heads", "kv_heads", "seq_q", "seq_k", "causal"), SIZES)
@pytest.mark.parametrize(
    "attention", [standard.attention, sdpa.default, sdpa.math], ids=["standard", "default", "math"]
)
def test_matches_the_oracle(
    attention: Any, heads: int, kv_heads: int, seq_q: int, seq_k: int, causal: bool, dtype: str,
    make_case: Any, make_inputs: Callable[..., Any],
) -> None:  # fmt: skip
    case = make_case(2, heads, kv_heads, seq_q, seq_k, 24, causal, dtype, rows_first=heads == 3)
    q, k, v, dout = make_inputs(case)
    expected = (reference.forward(q, k, v, causal)[0], *reference.backward(q, k, v, dout, causal))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = attention(*leaves, causal=causal)
    assert out.dtype == q.dtype
    assert out.shape == q.shape
    for got, right in zip((out, *torch.autograd.grad(out, leaves, dout)), expected, strict=True):
        assert (got - right).norm() <= ERROR[dtype] * right.norm()


class _Square(TorchDispatchMode):
    """Counts elements of tensors with N_q x N_k rows that kernels read and write (views move nothing)."""

    def __init__(self, seq_q: int, seq_k: int) -> None:
        super().__init__()
        self.square = seq_q * seq_k
        self.calls: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in ("new_empty", "empty", "detach", "arange", "_unsafe_view"):
            reads = sum(self._is_square(a) for a in args)
            if (kwargs or {}).get("beta", args[3] if name == "baddbmm" and len(args) > 3 else 1) == 0:
                reads = sum(self._is_square(a) for a in args[1:])
            self.calls.append((name, reads, self._is_square(result)))
        return result

    def _is_square(self, value: Any) -> int:
        return int(isinstance(value, torch.Tensor) and value.numel() % self.square == 0)


def square_passes(causal: bool, backward: bool) -> tuple[int, int]:
    """(reads, writes) of N_q x N_k tensors, of all heads at once."""
    q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (32, 48, 48))
    out = standard.attention(q, k, v, causal=causal) if backward else None
    with _Square(32, 48) as seen:
        if out is None:
            standard.attention(q, k, v, causal=causal)
        else:
            torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
    calls = [(name, r, w) for name, r, w in seen.calls if name not in ("randn_like", "mul")]
    return sum(r for _, r, _ in calls), sum(w for _, _, w in calls)


def test_forward_passes_over_the_square() -> None:
    assert square_passes(causal=False, backward=False) == (2, 2)  # S w; S r, P w; P r
    assert square_passes(causal=True, backward=False) == (3, 3)  # mask w; mask r, S w; S r, P w; P r


@pytest.mark.parametrize("causal", [False, True])
def test_backward_passes_over_the_square(causal: bool) -> None:
    assert square_passes(causal, backward=True) == (5, 2)  # P r; dP w; P, dP r, dS w; dS r, dS r


def test_inputs_are_not_copied_and_groups_are_not_expanded() -> None:
    q, k, v = torch.randn(2, 6, 32, 8), torch.randn(2, 2, 48, 8), torch.randn(2, 2, 48, 8)
    with _Square(32, 48) as seen:
        standard.attention(q, k, v)
    assert [name for name, _, _ in seen.calls] == ["baddbmm", "_softmax", "bmm"]


def test_torch_backends_refuse_what_they_cannot_do() -> None:
    q, k = torch.randn(1, 2, 8, 16), torch.randn(1, 1, 12, 16)
    with pytest.raises(ValueError, match="top-left"):
        sdpa.cudnn(q, k, k, causal=True)
    with pytest.raises(ValueError, match="without a key"):
        sdpa.flash(q, k[:, :, :4], k[:, :, :4], causal=True)
    with pytest.raises(ValueError, match="grouped"):
        sdpa.efficient(q, k, k)
    with pytest.raises(ValueError, match="no such kernel"):
        sdpa.cudnn(q, k, k)
