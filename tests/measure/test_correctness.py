"""Correctness on the CPU: right implementations pass, wrong ones are caught, and the eager path is whole."""

from collections.abc import Callable
from typing import Any

import pytest

from perfkit.measure import correctness, oracle
from perfkit.measure.correctness import (
    FACTOR,
    FLOOR,
    Errors,
    Inputs,
    Judge,
    callables,
    make_inputs,
    require,
    sample_heads,
)
from perfkit.measure.draft import Incorrect
from perfkit.ops.attention_workload import AttentionWorkload

torch = pytest.importorskip("torch")

Attention = Callable[..., Any]


def make(**fields: Any) -> AttentionWorkload:
    shape: dict[str, Any] = {"batch": 2, "heads": 4, "kv_heads": 2, "seq_q": 33, "seq_k": 33, "head_dim": 16}
    return AttentionWorkload(**{**shape, **fields})


def standard(*tensors: Any, **options: Any) -> Any:
    from perfkit.kernels.attention.standard import attention

    return attention(*tensors, **options)


def errors_of(w: AttentionWorkload, attention: Attention) -> Errors:
    inputs = make_inputs(w, "cpu")
    return Judge(w, inputs).errors(callables(w, inputs, attention, None)[1]())


PASSES = ("fwd", "bwd", "fwd-bwd")
SHAPES = [
    {},
    {"causal": True},
    {"seq_q": 17, "seq_k": 50, "causal": True},
    {"seq_q": 50, "seq_k": 17, "causal": True},  # the first 33 queries see no key
    {"seq_q": 1},
]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_eager_path_passes(shape: dict[str, Any], pass_: str, dtype: str) -> None:
    w = make(**shape, pass_=pass_, dtype=dtype)
    found = errors_of(w, standard)
    require(w, found)
    assert found.scope.endswith(", all heads")
    assert found.error <= 2 * found.eager_error + FLOOR[dtype] / 64


@pytest.mark.parametrize("pass_", PASSES)
def test_the_oracle_held_against_itself_has_no_error(pass_: str) -> None:
    from perfkit.kernels.attention.reference import attention

    w = make(dtype="fp32", pass_=pass_)
    found = errors_of(w, attention)
    require(w, found)
    # Gradients come back in the dtype of their inputs: one rounding to fp32 of values below 16.
    assert found.error <= (0 if pass_ == "fwd" else 16 * 2.0**-24)


def scaled(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return standard(q, k, v, **options) * 1.05


def unmasked(q: Any, k: Any, v: Any, *, causal: bool = False, **options: Any) -> Any:  # noqa: ARG001
    return standard(q, k, v, causal=False, **options)


def off_by_one_head(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return standard(q, k.flip(1), v.flip(1), **options)


def one_row_forgotten(q: Any, k: Any, v: Any, **options: Any) -> Any:
    out = standard(q, k, v, **options)
    keep = torch.ones_like(out)
    keep[-1, -1, -1] = 0
    return out * keep


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("wrong", [scaled, unmasked, off_by_one_head, one_row_forgotten])
def test_a_wrong_implementation_is_caught(wrong: Attention, pass_: str) -> None:
    w = make(causal=True, pass_=pass_)
    with pytest.raises(Incorrect):
        require(w, errors_of(w, wrong))


def test_a_wrong_gradient_is_caught_although_the_forward_is_right() -> None:
    class Wrong(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, t: Any) -> Any:  # noqa: ARG004
            return t.clone()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:  # noqa: ARG004
            return grad * 1.1

    def attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return standard(q, Wrong.apply(k), v, **options)

    require(make(), errors_of(make(), attention))
    with pytest.raises(Incorrect):
        require(make(pass_="bwd"), errors_of(make(pass_="bwd"), attention))


def test_each_tensor_is_held_against_its_own_eager_error() -> None:
    """An error in O that the larger errors of the gradients would hide."""
    w = make(pass_="fwd-bwd", dtype="bf16", seq_q=256, seq_k=256)
    inputs = make_inputs(w, "cpu")
    out, *gradients = callables(w, inputs, standard, None)[1]()
    right = Judge(w, inputs).errors((out, *gradients))
    require(w, right)
    spoilt = Judge(w, inputs).errors((out + 4 * right.eager_error, *gradients))
    with pytest.raises(Incorrect):
        require(w, spoilt)


def nan_everywhere(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return standard(q, k, v, **options) * float("nan")


def nan_once(q: Any, k: Any, v: Any, **options: Any) -> Any:
    out = standard(q, k, v, **options)
    hole = torch.zeros_like(out)
    hole[0, 0, 0, 0] = float("nan")
    return out + hole


@pytest.mark.parametrize("pass_", ["fwd", "bwd"])
def test_nan_is_caught(pass_: str) -> None:
    w = make(pass_=pass_)
    with pytest.raises(Incorrect):
        require(w, errors_of(w, nan_everywhere))


def test_one_nan_is_caught() -> None:
    with pytest.raises(Incorrect):
        require(make(), errors_of(make(), nan_once))


def test_the_rule() -> None:
    w = make(dtype="bf16")
    allowed = FACTOR * 0.01 + 2.0**-9 / 64
    require(w, Errors(error=allowed, eager_error=0.01, scope="all heads"))
    with pytest.raises(Incorrect) as wrong:
        require(w, Errors(error=0.03, eager_error=0.01, scope="all heads"))
    assert wrong.value.message == (
        "largest error 0.03 against the oracle, allowed 0.02 (twice the eager path's 0.01; all heads)"
    )
    with pytest.raises(Incorrect):
        require(w, Errors(error=float("nan"), eager_error=0.01, scope="all heads"))


# The eager path.


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_of_the_eager_path_make_the_whole(
    shape: dict[str, Any], pass_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = make(batch=1, kv_heads=1, dtype="fp32", pass_=pass_, **shape)
    inputs = make_inputs(w, "cpu")
    whole = oracle.by_eager(w, inputs)
    monkeypatch.setattr(oracle, "CHUNK_BYTES", 7 * 4 * w.seq_k * 4)  # 7 queries of 4 heads in fp32
    chunked = oracle.by_eager(w, inputs)
    for name in ("out",) if pass_ == "fwd" else ("out", "dq", "dk", "dv"):
        torch.testing.assert_close(chunked[name], whole[name], rtol=0, atol=4e-6)


def test_a_chunk_of_one_query_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "CHUNK_BYTES", 1)
    w = make(seq_q=3, seq_k=5, dtype="fp32")
    require(w, errors_of(w, standard))


# Inputs and samples of heads.


def test_inputs_are_the_same_for_every_implementation() -> None:
    w = make(seq_k=50)
    first, again, other = make_inputs(w, "cpu"), make_inputs(w, "cpu"), make_inputs(w, "cpu", seed=1)
    assert first.q.shape == first.dout.shape == (2, 4, 33, 16)
    assert first.k.shape == first.v.shape == (2, 2, 50, 16)
    assert first.q.dtype == torch.bfloat16
    assert torch.equal(first.q, again.q)
    assert torch.equal(first.dout, again.dout)
    assert not torch.equal(first.q, other.q)
    assert not torch.equal(first.k, first.v)


def test_a_small_workload_is_checked_whole_and_a_large_one_at_both_ends() -> None:
    w = make(batch=2, heads=6, kv_heads=3)
    every = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert sample_heads(w) == every
    assert sample_heads(w, whole_below=w.pairs) == every
    assert sample_heads(w, whole_below=w.pairs - 1) == [(0, 0), (1, 2)]
    assert sample_heads(make(batch=1, heads=2, kv_heads=2), whole_below=0) == [(0, 0), (0, 1)]


def test_the_scope_says_what_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "sample_heads", lambda _: [(0, 0), (1, 1)])
    assert errors_of(make(), standard).scope == "out, 2 of 4 K/V heads (first and last)"


def test_grouped_heads_are_compared_with_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in one query head of the last group is seen from that group only."""

    def last_head(q: Any, k: Any, v: Any, **options: Any) -> Any:
        out = standard(q, k, v, **options).clone()
        out[-1, -1] += 1
        return out

    w = make()
    for heads, seen in (([(0, 0)], False), ([(1, 0)], False), ([(1, 1)], True)):
        monkeypatch.setattr(correctness, "sample_heads", lambda _, heads=heads: heads)
        assert (errors_of(w, last_head).error > 0.5) is seen


def test_callables_time_what_they_check() -> None:
    for pass_, count in (("fwd", 1), ("bwd", 3), ("fwd-bwd", 4)):
        w = make(pass_=pass_, dtype="fp32")
        inputs = make_inputs(w, "cpu")
        work, result = callables(w, inputs, standard, None)
        assert len(result()) == count
        timed = work()
        first = timed if pass_ == "fwd" else timed[0]
        assert torch.equal(first, result()[0])
        assert not inputs.q.requires_grad  # the shared inputs stay as they were


def test_inputs_are_frozen() -> None:
    inputs = Inputs(q=1, k=2, v=3, dout=4)
    with pytest.raises(AttributeError):
        inputs.q = 5  # type: ignore[misc]
