"""The oracle against the formula written out once more, and against autograd."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import reference  # noqa: E402

SIZES = [  # heads, kv_heads, seq_q, seq_k, causal
    (2, 2, 33, 33, False),
    (2, 2, 33, 33, True),
    (4, 2, 17, 41, True),
    (4, 1, 41, 17, True),
    (3, 3, 5, 70, False),
    (2, 1, 1, 50, True),
]


def by_hand(q: Any, k: Any, v: Any, causal: bool, scale: float) -> Any:
    """One row at a time, from the definition; differentiable."""
    group = q.shape[1] // k.shape[1]
    out = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = min(k.shape[2], i + k.shape[2] - q.shape[2] + 1) if causal else k.shape[2]
                if seen <= 0:
                    out.append(q[b, h, i] * 0)
                    continue
                scores = scale * (k[b, h // group, :seen] @ q[b, h, i])
                out.append(torch.softmax(scores, 0) @ v[b, h // group, :seen])
    return torch.stack(out).view(q.shape)


@pytest.mark.parametrize("chunk_bytes", [1 << 28, 4096])
@pytest.mark.parametrize(("heads", "kv_heads", "seq_q", "seq_k", "causal"), SIZES)
def test_forward_and_backward_are_the_definition(
    heads: int, kv_heads: int, seq_q: int, seq_k: int, causal: bool, chunk_bytes: int,
    monkeypatch: pytest.MonkeyPatch, make_case: Any, make_inputs: Callable[..., Any],
) -> None:  # fmt: skip
    monkeypatch.setattr(reference, "CHUNK_BYTES", chunk_bytes)
    case = make_case(2, heads, kv_heads, seq_q, seq_k, 8, causal, "float64")
    q, k, v, dout = make_inputs(case)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    expected = by_hand(*leaves, causal, 0.3)
    gradients = torch.autograd.grad(expected, leaves, dout)
    out, lse = reference.forward(q, k, v, causal, 0.3)
    torch.testing.assert_close(out, expected)
    assert lse.shape == q.shape[:3]
    for got, right in zip(reference.backward(q, k, v, dout, causal, 0.3), gradients, strict=True):
        torch.testing.assert_close(got, right)
    mine = torch.autograd.grad(reference.attention(*leaves, causal=causal, scale=0.3), leaves, dout)
    for got, right in zip(mine, gradients, strict=True):
        torch.testing.assert_close(got, right)


def test_log_sum_exp_by_hand() -> None:
    # One query, keys 0 and log 3 away: scores 0 and log 3, sum of exp 1 + 3 = 4, out = (1 v0 + 3 v1) / 4.
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([1.0, 3.0]).log().view(1, 1, 2, 1)
    v = torch.tensor([8.0, 4.0]).view(1, 1, 2, 1)
    out, lse = reference.forward(q, k, v)
    assert out.item() == pytest.approx(5.0)
    assert lse.item() == pytest.approx(1.3862943611)


def test_rows_without_a_key_give_zero_and_minus_infinity() -> None:
    q, k = torch.randn(1, 1, 5, 4), torch.randn(1, 1, 3, 4)
    out, lse = reference.forward(q, k, k, causal=True)
    assert (out[0, 0, :2] == 0).all()
    assert (lse[0, 0, :2] == float("-inf")).all()
    assert torch.isfinite(lse[0, 0, 2:]).all()
    gradients = reference.backward(q, k, k, torch.ones_like(q), causal=True)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert (gradients[0][0, 0, :2] == 0).all()


def test_precision_is_the_callers_and_settings_are_restored() -> None:
    q = torch.randn(1, 1, 8, 4, dtype=torch.float16)
    before = torch.backends.cuda.matmul.fp32_precision
    assert reference.attention(q, q, q).dtype == torch.float64
    assert reference.attention(q, q, q, oracle_dtype=torch.float32).dtype == torch.float32
    assert torch.backends.cuda.matmul.fp32_precision == before
    with pytest.raises(ValueError, match="float32 or float64"):
        reference.forward(q, q, q, oracle_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("q_shape", "k_shape", "message"),
    [
        ((1, 3, 4, 8), (1, 2, 4, 8), "no multiple"),
        ((1, 2, 4, 8), (1, 2, 4, 16), "agree"),
        ((2, 4, 8), (2, 4, 8), "must be"),
        ((1, 2, 0, 8), (1, 2, 4, 8), "empty"),
    ],
)
def test_shapes_that_are_no_attention_are_refused(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reference.forward(torch.randn(q_shape), torch.randn(k_shape), torch.randn(k_shape))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_scale_are_refused(scale: float) -> None:
    q = torch.randn(1, 1, 4, 8)
    with pytest.raises(ValueError, match="scale"):
        reference.attention(q, q, q, scale=scale)
