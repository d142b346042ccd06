"""Square tiles in Triton's interpreter, on CPU tensors. `test_square_interpreter.py` runs this file."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_square_interpreter.py"

from perfkit.kernels.attention import reference, square, standard  # noqa: E402
from perfkit.kernels.attention.tiles import square_tile  # noqa: E402
from perfkit.measure.correctness import Judge, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402


def in_tiles(side: int) -> Callable[..., Any]:
    return functools.partial(square.attention, tiles=[square_tile(side)] * 3)


CASES = [  # batch, heads, kv_heads, seq_q, seq_k, head_dim, side
    (1, 2, 2, 64, 64, 16, 16),
    (2, 2, 1, 113, 203, 48, 32),
    (1, 4, 2, 50, 83, 80, 16),
    (1, 3, 3, 83, 50, 64, 64),
    (2, 4, 1, 33, 17, 32, 32),
    (1, 1, 1, 1, 70, 16, 16),
    (1, 1, 1, 70, 1, 48, 64),
    (1, 1, 1, 1, 1, 16, 32),
    (1, 1, 1, 130, 150, 256, 128),
    (1, 1, 1, 40, 45, 1024, 64),
]


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_no_worse_than_twice_the_eager_error(sizes: tuple[int, ...]) -> None:
    batch, heads, kv_heads, seq_q, seq_k, head_dim, side = sizes
    w = AttentionWorkload(
        batch=batch, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, dtype="fp16"
    )
    inputs = make_inputs(w, "cpu", seed=seq_q)
    out = in_tiles(side)(inputs.q, inputs.k, inputs.v)
    assert (out.shape, out.dtype) == (inputs.q.shape, torch.float16)
    require(w, Judge(w, inputs).errors((out,)))


def test_the_table_s_own_tile_a_scale_and_other_strides(
    make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    case = make_case(2, 4, 2, 70, 90, 48, False, "float16", 0.4, True)
    q, k, v, _ = make_inputs(case)
    assert q.stride() != q.contiguous().stride()
    out = square.attention(q, k, v, scale=0.4)
    right, eager = reference.forward(q, k, v, scale=0.4)[0], standard.attention(q, k, v, scale=0.4)
    assert (out - right).abs().max() <= 2 * (eager - right).abs().max()
    flipped = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v))  # rows are not contiguous
    assert torch.equal(square.attention(*flipped, scale=0.4), out)


def test_tiles_of_different_sizes_work_together(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 1, 50, 83, 80))
    mixed = [square_tile(16), square_tile(64), square_tile(32)]
    assert (square.attention(q, k, v, tiles=mixed) - reference.forward(q, k, v)[0]).abs().max() < 2e-3


def test_sum_and_maximum_are_those_of_the_softmax(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 1, 50, 83, 16))
    _, row_sum, row_max = square.forward(q, k, v, tiles=(square_tile(16),) * 3)
    log_sum = row_sum.double().log() + row_max.double() * np.log(2)  # m is of scores times log2 e
    # S is rounded to float16: 2^-11 of scores up to 4.
    torch.testing.assert_close(log_sum, reference.forward(q, k, v)[1], rtol=0, atol=4 * 2.0**-11)


def test_large_scores_do_not_overflow(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 1, 1, 40, 45, 16))
    q, k = q * 30, k * 30  # scores of several thousands: all but the largest of a row weigh nothing
    out, right = in_tiles(16)(q, k, v), reference.forward(q, k, v)[0]
    assert torch.isfinite(out).all()
    # Near ties are decided by the rounding of S, as on the eager path; most rows have none.
    assert ((out - right).abs().amax(-1) < 1e-2).double().mean() > 0.9


def test_what_it_cannot_serve_is_refused() -> None:
    q = torch.randn(1, 2, 32, 16)
    with pytest.raises(ValueError, match="float16 and bfloat16"):
        square.attention(q, q, q)
    half = q.half()
    with pytest.raises(ValueError, match="no causal mask"):
        square.attention(half, half, half, causal=True)
    for head_dim in (8, 24, 1040):
        wide = torch.randn(1, 1, 16, head_dim, dtype=torch.float16)
        with pytest.raises(ValueError, match="head dims 16 to 1024 in steps of 16"):
            square.attention(wide, wide, wide)
    with pytest.raises(ValueError, match="no multiple"):
        square.attention(half, half.new_zeros(1, 3, 32, 16), half.new_zeros(1, 3, 32, 16))
    with pytest.raises(ValueError, match="scale must be positive"):
        square.attention(half, half, half, scale=0.0)
    with pytest.raises(ValueError, match="as high as wide, not 16 x 32"):
        square.attention(half, half, half, tiles=[(16, 32, 4, 1)] * 3)
    with pytest.raises(ValueError, match="a side of 16, 32, 64 or 128, not 8"):
        square.attention(half, half, half, tiles=[(8, 8, 4, 1)] * 3)
    with pytest.raises(ValueError, match="interpreter multiplies bfloat16"):
        square.attention(*(t.bfloat16() for t in (half, half, half)))
