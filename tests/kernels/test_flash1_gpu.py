"""FlashAttention-1's kernels on a GPU, against the float64 oracle; above all that stores are seen in time."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import flash1, reference  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402
from perfkit.kernels.attention.use import KernelUse  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
HEAD_DIMS = [16, 24, 32, 48, 64, 72, 80, 96, 112, 128, 160, 256]
LENGTHS = [1, 2, 17, 64, 113, 128, 203, 256, 384, 511, 777, 1024]


@pytest.mark.parametrize("number", range(48))
def test_random_case(number: int, random_case: Any, assert_right: Any) -> None:
    assert_right(flash1.attention, random_case(number, HEAD_DIMS, LENGTHS), "cuda", number)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("block_n", [16, 32, 64, 128])
@pytest.mark.parametrize("block_m", [16, 64])
def test_any_tile_is_right(
    block_m: int, block_n: int, stages: int, make_case: Any, assert_right: Any
) -> None:
    """Many blocks of keys over few rows: each reads back at once what the one before has written."""
    tile = Tile(block_m, block_n, 4, stages)
    attention = functools.partial(flash1.attention, tiles=(tile, tile))
    for seq_q in (block_m, 3 * block_m):
        assert_right(attention, make_case(2, 4, 2, seq_q, 1500, 64, False, "float16"), "cuda")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_long_odd_sequence(head_dim: int, causal: bool, make_case: Any, assert_right: Any) -> None:
    case = make_case(1, 2, 1, 3001, 3001, head_dim, causal, "bfloat16", rows_first=True)
    assert_right(flash1.attention, case, "cuda")


@pytest.mark.parametrize("seq_q", [16, 777])
def test_same_bits_each_run(seq_q: int, make_case: Any, make_inputs: Callable[..., Any]) -> None:
    """A read that comes too early, or from a stale line, would differ between runs."""
    q, k, v, dout = make_inputs(make_case(4, 8, 2, seq_q, 2000, 64, False, "bfloat16"), "cuda")
    leaves = [t.requires_grad_() for t in (q, k, v)]
    runs = []
    for _ in range(5):
        out = flash1.attention(*leaves)
        runs.append((out, *torch.autograd.grad(out, leaves, dout)))
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_broadcast_gradient_and_keys(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(2, 4, 4, 100, 130, 64, False, "float16"), "cuda")
    k, v = (t[:1, :1].expand(2, 4, -1, -1) for t in (k, v))  # strides 0
    leaves = [t.requires_grad_() for t in (q, k.detach(), v.detach())]
    out = flash1.attention(*leaves)
    gradients = torch.autograd.grad(out.sum(), leaves)  # dO with strides 0
    exact = reference.backward(*leaves, torch.ones_like(out))
    for got, right in zip(gradients, exact, strict=True):
        assert (got - right).norm() <= 5e-3 * right.norm() + 1e-3


def test_sum_and_maximum(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 1, 300, 200, 96, True, "float16"), "cuda")
    _, row_sum, row_max = flash1.forward(q, k, v, causal=True)
    assert (row_max[:, :, :100] == float("-inf")).all()
    assert (row_sum[:, :, :100] == 0).all()
    log_sum = row_sum.double().log() + row_max.double() * 0.6931471805599453
    torch.testing.assert_close(log_sum, reference.forward(q, k, v, True)[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_use_is_recorded(head_dim: int, make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, dout = make_inputs(make_case(1, 2, 2, 512, 512, head_dim, False, "bfloat16"), "cuda")
    uses: list[KernelUse] = []
    out = flash1.attention(q.requires_grad_(), k, v, uses=uses)
    assert [use.kernel for use in uses] == ["flash1_forward"]
    out.backward(dout)
    assert [use.kernel for use in uses] == ["flash1_forward", "flash1_backward"]
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    for use in uses:
        assert 0 < use.registers <= 255
        assert 0 <= use.shared_bytes <= limit
        assert use.spills == 0, use
