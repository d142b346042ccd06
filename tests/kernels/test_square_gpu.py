"""Square tiles on a GPU, against the float64 oracle."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import reference, square  # noqa: E402
from perfkit.kernels.attention.tiles import square_tile  # noqa: E402
from perfkit.kernels.attention.use import KernelUse  # noqa: E402
from perfkit.measure.correctness import Judge, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

CASES = [  # batch, heads, kv_heads, seq_q, seq_k, head_dim, side, dtype
    (1, 2, 2, 512, 512, 64, 64, "bf16"),
    (2, 4, 2, 1000, 777, 128, 64, "fp16"),
    (1, 2, 1, 777, 1000, 256, 64, "bf16"),
    (1, 1, 1, 1024, 1024, 1024, 64, "fp16"),
    (3, 6, 2, 113, 203, 48, 16, "fp16"),
    (1, 2, 2, 511, 384, 80, 16, "bf16"),
    (1, 2, 2, 1024, 1024, 256, 16, "bf16"),
    (2, 2, 2, 203, 113, 96, 32, "bf16"),
    (1, 4, 1, 640, 1025, 512, 32, "fp16"),
    (1, 2, 2, 1024, 1024, 256, 128, "bf16"),
    (2, 2, 1, 1000, 1000, 112, 128, "fp16"),
    (1, 3, 3, 1, 300, 16, 64, "fp16"),
    (1, 3, 3, 300, 1, 64, 64, "bf16"),
    (1, 1, 1, 1, 1, 32, 16, "fp16"),
]


def in_tiles(side: int) -> Callable[..., Any]:
    return functools.partial(square.attention, tiles=[square_tile(side)] * 3)


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_no_worse_than_twice_the_eager_error(sizes: tuple[Any, ...]) -> None:
    batch, heads, kv_heads, seq_q, seq_k, head_dim, side, dtype = sizes
    w = AttentionWorkload(
        batch=batch, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, dtype=dtype
    )
    inputs = make_inputs(w, "cuda", seed=seq_q)
    out = in_tiles(side)(inputs.q, inputs.k, inputs.v)
    assert (out.shape, out.dtype) == (inputs.q.shape, inputs.q.dtype)
    require(w, Judge(w, inputs).errors((out,)))


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_any_stages_are_right(
    side: int, stages: int, make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    q, k, v, _ = make_inputs(make_case(1, 4, 2, 300, 1500, 128, rows_first=True), "cuda")
    tile = square_tile(side)._replace(num_stages=stages)
    out = square.attention(q, k, v, tiles=[tile] * 3)
    assert (out - reference.forward(q, k, v)[0]).abs().max() < 2e-3


def test_keys_of_one_head_for_all(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(2, 4, 4, 100, 130, 64), "cuda")
    k, v = (t[:1, :1].expand(2, 4, -1, -1) for t in (k, v))  # strides 0
    assert (square.attention(q, k, v) - reference.forward(q, k, v)[0]).abs().max() < 2e-3


def test_same_bits_each_run(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    """A kernel that reads what the one before has not yet written would differ between runs."""
    q, k, v, _ = make_inputs(make_case(4, 8, 2, 777, 1000, 128, False, "bfloat16"), "cuda")
    first = square.attention(q, k, v)
    assert all(torch.equal(square.attention(q, k, v), first) for _ in range(5))


@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_use_is_recorded(side: int, make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 2, 512, 512, 256, False, "bfloat16"), "cuda")
    uses: list[KernelUse] = []
    in_tiles(side)(q, k, v, uses=uses)
    assert [(use.kernel, use.block_m, use.block_n) for use in uses] == [
        (name, side, side) for name in ("square_scores", "square_statistics", "square_output")
    ]
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    for use in uses:
        assert 0 < use.registers <= 255
        assert 0 <= use.shared_bytes <= limit
        assert use.spills == 0, use
