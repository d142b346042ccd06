"""Decoding in Triton's interpreter, on CPU tensors. `test_decode_interpreter.py` runs this file."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_decode_interpreter.py"

from perfkit.kernels.attention import decode, reference, standard  # noqa: E402
from perfkit.measure.correctness import Judge, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

CASES = [  # batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, splits
    (1, 2, 2, 1, 300, 64, False, None),
    (2, 4, 1, 1, 513, 128, True, None),
    (1, 8, 2, 1, 257, 48, False, 1),
    (1, 8, 2, 1, 257, 256, False, 3),
    (1, 6, 2, 3, 203, 80, True, 2),
    (1, 6, 2, 3, 203, 80, True, 1),
    (1, 2, 1, 64, 130, 128, True, 3),  # 128 rows: two row tiles, the first sees nothing of the last share
    (2, 3, 3, 5, 1, 16, False, None),
    (1, 3, 1, 17, 64, 72, False, 1),
    (1, 20, 1, 7, 129, 24, True, None),  # 140 rows: three row tiles, the last one partial
    (1, 1, 1, 1, 1, 16, True, None),
    (1, 4, 2, 9, 5, 32, True, None),  # four rows see no key
    (1, 1, 1, 1, 4500, 128, False, 40),  # 36 blocks, a share each, merged 16 at a time
]


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_no_worse_than_twice_the_eager_error(sizes: tuple[Any, ...]) -> None:
    batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, splits = sizes
    w = AttentionWorkload(
        batch=batch, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim,
        causal=causal, dtype="fp16",
    )  # fmt: skip
    inputs = make_inputs(w, "cpu", seed=seq_k)
    out = decode.attention(inputs.q, inputs.k, inputs.v, causal=causal, splits=splits)
    assert (out.shape, out.dtype) == (inputs.q.shape, torch.float16)
    require(w, Judge(w, inputs).errors((out,)))


def test_a_scale_and_other_strides(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    case = make_case(2, 4, 2, 3, 150, 48, True, "float16", 0.4, True)
    q, k, v, _ = make_inputs(case)
    assert q.stride() != q.contiguous().stride()
    right = reference.forward(q, k, v, True, 0.4)[0]
    allowed = 2 * (standard.attention(q, k, v, causal=True, scale=0.4) - right).abs().max()
    for splits in (1, 2):
        out = decode.attention(q, k, v, causal=True, scale=0.4, splits=splits)
        assert (out - right).abs().max() <= allowed
        flipped = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v))
        again = decode.attention(*flipped, causal=True, scale=0.4, splits=splits)
        assert torch.equal(again, out)


@pytest.mark.parametrize("splits", [1, 3])
def test_descriptors_give_the_same_bits(splits: int, make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 4, 2, 2, 203, 48))
    one, other = (decode.forward(q, k, v, splits=splits, descriptors=way) for way in (False, True))
    assert torch.equal(one, other)


def test_rows_that_see_no_key_are_zero(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 4, 2, 9, 5, 32))
    out = decode.attention(q, k, v, causal=True)
    assert not out[:, :, :4].any()
    assert out[:, :, 4:].abs().amin(-1).gt(0).all()


def test_large_scores_do_not_overflow(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 1, 1, 300, 64))
    q, k = q * 30, k * 30  # scores of thousands: all but the largest of a row weigh nothing
    best = (q.float() @ k.float().transpose(2, 3)).argmax(-1)
    for splits in (1, 3):
        out = decode.attention(q, k, v, splits=splits)
        torch.testing.assert_close(out[0, :, 0], v[0, 0, best[0, :, 0]], rtol=0, atol=1e-3)


def test_inputs_that_require_grad_are_served_without(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = (t.requires_grad_() for t in make_inputs(make_case(1, 1, 1, 1, 40, 16)))
    assert not decode.attention(q, k, v).requires_grad


def test_what_it_cannot_serve_is_refused() -> None:
    q = torch.randn(1, 2, 32, 16)
    with pytest.raises(ValueError, match="float16 and bfloat16"):
        decode.attention(q, q, q)
    half = q.half()
    long = half.new_zeros(1, 2, 65, 16)
    with pytest.raises(ValueError, match="up to 64 query tokens, got 65"):
        decode.attention(long, half, half)
    wide = half.new_zeros(1, 1, 1, 20)
    with pytest.raises(ValueError, match="head dims 16 to 256 in steps of 8, got 20"):
        decode.attention(wide, wide, wide)
    with pytest.raises(ValueError, match="no multiple"):
        decode.attention(half, half.new_zeros(1, 3, 32, 16), half.new_zeros(1, 3, 32, 16))
    for splits in (0, -1, 1025):
        with pytest.raises(ValueError, match="splits must be from 1 to 1024"):
            decode.attention(half, half, half, splits=splits)
    with pytest.raises(ValueError, match="scale must be positive"):
        decode.attention(half, half, half, scale=0.0)
