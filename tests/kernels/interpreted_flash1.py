"""FlashAttention-1 in Triton's interpreter, on CPU tensors. `test_flash1_interpreter.py` runs this file."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_flash1_interpreter.py"

from perfkit.kernels.attention import flash1, flash1_backward, reference  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402
from perfkit.ops.attention_flash1 import flash1_ledger  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402
from perfkit.ops.base import KernelUse, total  # noqa: E402

FORWARD, BACKWARD = Tile(32, 16, 4, 1), Tile(16, 32, 4, 1)
small = functools.partial(flash1.attention, tiles=(FORWARD, BACKWARD))

CASES = [  # batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, rows_first
    (1, 2, 2, 64, 64, 16, False, False),
    (1, 2, 2, 64, 64, 16, True, False),
    (2, 2, 1, 113, 203, 24, False, True),
    (1, 4, 2, 50, 83, 16, True, True),
    (1, 3, 3, 83, 50, 16, True, False),
    (2, 4, 1, 33, 17, 32, True, False),
    (1, 1, 1, 1, 70, 16, True, False),
    (1, 1, 1, 70, 1, 16, True, False),
    (1, 2, 2, 31, 65, 80, False, False),
]


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_no_worse_than_twice_the_eager_error(
    sizes: tuple[Any, ...], make_case: Any, assert_right: Any
) -> None:
    batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, rows_first = sizes
    case = make_case(batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, "float16", 0.2, rows_first)
    assert_right(small, case, seed=seq_q)


def test_the_table_s_own_tiles(make_case: Any, assert_right: Any) -> None:
    assert_right(flash1.attention, make_case(1, 2, 1, 150, 200, 40, True))


@pytest.mark.parametrize("block_n", [16, 64, 128])
def test_any_block_of_keys_gives_the_same(block_n: int, make_case: Any, assert_right: Any) -> None:
    """One block of keys holds all of 113 at 128: nothing is read back but zeros."""
    tiles = (Tile(32, block_n, 4, 1), Tile(32, block_n, 4, 1))
    attention = functools.partial(flash1.attention, tiles=tiles)
    assert_right(attention, make_case(1, 2, 2, 90, 113, 16, False))


def test_rows_without_a_key(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, dout = make_inputs(make_case(1, 1, 1, 50, 13, 16, True))
    out, row_sum, row_max = flash1.forward(q, k, v, causal=True, tile=Tile(16, 16, 4, 1))
    # Rows 0 to 36 see nothing. Blocks 0-15 and 16-31 are never visited, block 32-47 is.
    assert (out[:, :, :37] == 0).all()
    assert (row_sum[:, :, :37] == 0).all()
    assert (row_max[:, :, :37] == float("-inf")).all()
    dq, dk, dv = flash1_backward.backward(
        q, k, v, out, row_sum, row_max, dout, causal=True, tile=Tile(16, 16, 4, 1)
    )
    assert (dq[:, :, :37] == 0).all()
    assert all(torch.isfinite(t).all() for t in (dq, dk, dv))


def test_sum_and_maximum_are_those_of_the_softmax(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 1, 50, 83, 16, True))
    _, row_sum, row_max = flash1.forward(q, k, v, causal=True, tile=FORWARD)
    log_sum = row_sum.double().log() + row_max.double() * np.log(2)  # m is of scores times log2 e
    torch.testing.assert_close(log_sum, reference.forward(q, k, v, True)[1], rtol=1e-4, atol=1e-4)


def test_large_scores_do_not_overflow(make_inputs: Callable[..., Any], make_case: Any) -> None:
    q, k, v, dout = make_inputs(make_case(1, 1, 1, 40, 45, 16, False))
    leaves = [t.requires_grad_() for t in (q * 30, k * 30, v)]
    out = small(*leaves)
    right = reference.forward(*leaves)[0]
    assert (out - right).norm() < 1e-3 * right.norm()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, leaves, dout))


def test_what_it_cannot_serve_is_refused() -> None:
    q = torch.randn(1, 2, 32, 16)
    with pytest.raises(ValueError, match="float16 and bfloat16"):
        flash1.attention(q, q, q)
    for head_dim in (8, 20, 264):
        wide = torch.randn(1, 1, 16, head_dim, dtype=torch.float16)
        with pytest.raises(ValueError, match="head dims 16 to 256"):
            flash1.attention(wide, wide, wide)
    half = q.half()
    with pytest.raises(ValueError, match="no multiple"):
        flash1.attention(half, half.new_zeros(1, 3, 32, 16), half.new_zeros(1, 3, 32, 16))
    with pytest.raises(ValueError, match="scale must be positive"):
        flash1.attention(half, half, half, scale=0.0)


class _Counted:
    """Stands for the interpreter's memory and counts the bytes that masks let through."""

    def __init__(self, memory: Any) -> None:
        self.memory, self.read, self.written = memory, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.read += int(np.broadcast_to(mask, pointers.shape).sum()) * np.dtype(dtype).itemsize
        return self.memory.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self.written += int(np.broadcast_to(mask, pointers.shape).sum()) * value.dtype.itemsize
        return self.memory.store(pointers, value, mask)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, int]]:
    """call -> (bytes read, bytes written) by the kernels that it launches."""

    def count(call: Callable[[], Any]) -> tuple[int, int]:
        memory = _Counted(triton.runtime.interpreter._interpreter)
        with monkeypatch.context() as patch:
            patch.setattr(triton.runtime.interpreter, "_interpreter", memory)
            call()
        return memory.read, memory.written

    return count


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(64, 64), (50, 83), (90, 37), (1, 50)])
def test_traffic_is_the_ledger(
    sizes: tuple[int, int], causal: bool, counted: Any, make_case: Any, make_inputs: Any
) -> None:
    """Bytes that the kernels let through, against the model, to the byte."""
    (n, m), d, heads, kv_heads = sizes, 24, 4, 2
    q, k, v, dout = make_inputs(make_case(2, heads, kv_heads, n, m, d, causal))
    made: dict[str, Any] = {}

    def forward() -> None:
        made["forward"] = flash1.forward(q, k, v, causal, tile=FORWARD)

    def backward() -> None:
        flash1_backward.backward(q, k, v, *made["forward"], dout, causal, tile=BACKWARD)

    calls: tuple[tuple[Any, str, Tile, Any], ...] = (
        ("fwd", "flash1_forward", FORWARD, forward),
        ("bwd", "flash1_backward", BACKWARD, backward),
    )
    for pass_, kernel, tile, call in calls:
        w = AttentionWorkload(
            batch=2, heads=heads, kv_heads=kv_heads, seq_q=n, seq_k=m, head_dim=d, dtype="fp16",
            causal=causal, pass_=pass_,
        )  # fmt: skip
        modelled = total(flash1_ledger(w, (KernelUse(kernel=kernel, block_m=tile[0], block_n=tile[1]),)))
        assert counted(call) == (modelled.read_bytes, modelled.write_bytes)
