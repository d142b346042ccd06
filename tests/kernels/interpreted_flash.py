"""The flash kernels in Triton's interpreter, on CPU tensors. `test_flash_interpreter.py` runs this file."""

import itertools
import os
from collections.abc import Callable
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
import torch
import triton

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_flash_interpreter.py"

from perfkit.kernels.attention import flash, flash_backward, reference  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402

FORWARD, DKDV, DQ = Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(32, 16, 4, 1)

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


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles per head, with ragged ends, although the sequences are short."""
    monkeypatch.setattr(flash, "forward_tile", lambda *_: FORWARD)
    monkeypatch.setattr(flash_backward, "backward_tiles", lambda *_: (DKDV, DQ))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_no_worse_than_twice_the_eager_error(
    sizes: tuple[Any, ...],
    descriptors: bool,
    monkeypatch: pytest.MonkeyPatch,
    make_case: Any,
    assert_right: Any,
) -> None:
    for module in (flash, flash_backward):
        monkeypatch.setattr(module, "use_descriptors", lambda *_: descriptors)
    batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, rows_first = sizes
    case = make_case(batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, "float16", 0.2, rows_first)
    assert_right(flash.attention, case, seed=seq_q)


def test_the_table_s_own_tiles(make_case: Any, assert_right: Any) -> None:
    assert_right(flash.attention, make_case(1, 2, 1, 150, 200, 40, True))


@pytest.mark.usefixtures("small_tiles")
def test_rows_without_a_key(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    case = make_case(1, 1, 1, 50, 13, 16, True)
    q, k, v, dout = make_inputs(case)
    out, lse = flash.forward(q, k, v, causal=True)
    assert (out[:, :, :37] == 0).all()
    assert (lse[:, :, :37] == float("-inf")).all()
    torch.testing.assert_close(lse.double(), reference.forward(q, k, v, True)[1], rtol=1e-4, atol=1e-4)
    dq, dk, dv = flash_backward.backward(q, k, v, out, lse, dout, causal=True)
    assert (dq[:, :, :37] == 0).all()
    assert all(torch.isfinite(t).all() for t in (dq, dk, dv))


@pytest.mark.usefixtures("small_tiles")
def test_large_scores_do_not_overflow(make_inputs: Callable[..., Any], make_case: Any) -> None:
    q, k, v, dout = make_inputs(make_case(1, 1, 1, 40, 45, 16, False))
    leaves = [t.requires_grad_() for t in (q * 30, k * 30, v)]
    out = flash.attention(*leaves)
    right = reference.forward(*leaves)[0]
    assert (out - right).norm() < 1e-3 * right.norm()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, leaves, dout))


def test_what_it_cannot_serve_is_refused() -> None:
    q = torch.randn(1, 2, 32, 16)
    with pytest.raises(ValueError, match="float16 and bfloat16"):
        flash.attention(q, q, q)
    for head_dim in (8, 20, 264):
        wide = torch.randn(1, 1, 16, head_dim, dtype=torch.float16)
        with pytest.raises(ValueError, match="head dims 16 to 256"):
            flash.attention(wide, wide, wide)
    half = q.half()
    with pytest.raises(ValueError, match="no multiple"):
        flash.attention(half, half[:, :0].new_zeros(1, 3, 32, 16), half.new_zeros(1, 3, 32, 16))
    with pytest.raises(ValueError, match="one dtype"):
        flash.attention(half, q, q)


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


def key_rows(seq_q: int, seq_k: int, causal: bool, tile: Tile) -> int:
    """K/V rows that the Q blocks of one head visit, by the docstring of `flash_forward`."""
    if not causal:
        return ceil(seq_q / tile.block_m) * seq_k
    seen = [
        max(0, min((i + 1) * tile.block_m, seq_q) + seq_k - seq_q) for i in range(ceil(seq_q / tile.block_m))
    ]
    return sum(min(seq_k, tile.block_n * ceil(n / tile.block_n)) for n in seen)


def query_rows(seq_q: int, seq_k: int, causal: bool, tile: Tile) -> int:
    """Q rows that the K/V blocks of one head visit, by the docstring of `flash_dkdv`."""
    starts = [j * tile.block_n for j in range(ceil(seq_k / tile.block_n))]
    if not causal:
        return len(starts) * seq_q
    return sum(seq_q - tile.block_m * floor(max(0, n - (seq_k - seq_q)) / tile.block_m) for n in starts)


TRAFFIC = list(itertools.product([(96, 96), (113, 203), (90, 37), (33, 64)], [False, True], [False, True]))


@pytest.mark.parametrize(("sizes", "causal", "descriptors"), TRAFFIC)
def test_traffic_is_the_closed_form(
    sizes: tuple[int, int], causal: bool, descriptors: bool, counted: Any, make_case: Any, make_inputs: Any
) -> None:
    """Bytes that the kernels let through, against the closed forms of their docstrings, to the byte."""
    (n, m), d, e = sizes, 24, 2
    heads, kv_heads = 4, 2
    q, k, v, dout = make_inputs(make_case(1, heads, kv_heads, n, m, d, causal))
    made = {}

    def forward() -> None:
        made["forward"] = flash.forward(q, k, v, causal, tile=FORWARD, descriptors=descriptors)

    visited = key_rows(n, m, causal, FORWARD)
    assert counted(forward) == (heads * (n * d * e + 2 * visited * d * e), heads * (n * d * e + 4 * n))
    out, lse = made["forward"]

    def delta() -> None:
        made["delta"] = flash_backward.delta(out, dout)

    assert counted(delta) == (heads * 2 * n * d * e, heads * 4 * n)

    backward = (q, k, v, dout, lse, made["delta"], causal)
    visited = query_rows(n, m, causal, DKDV)
    group = heads // kv_heads
    expected = kv_heads * (2 * m * d * e + group * visited * (2 * d * e + 8)), kv_heads * 2 * m * d * e
    assert counted(lambda: flash_backward.dkdv(*backward, tile=DKDV, descriptors=descriptors)) == expected

    visited = key_rows(n, m, causal, DQ)
    expected = heads * (2 * n * d * e + 8 * n + 2 * visited * d * e), heads * n * d * e
    assert counted(lambda: flash_backward.dq(*backward, tile=DQ, descriptors=descriptors)) == expected


@pytest.mark.parametrize(("shares", "at_once"), [(2, 2), (3, 4), (11, 8)])
def test_parts_are_added_in_float32(shares: int, at_once: int) -> None:
    """Of 2 x 3 sums of 37 * 40 numbers, in two blocks of 1024."""
    from perfkit.kernels.attention import flash_hopper_backward

    parts = torch.randn(2, 3 * shares, 37, 40).half()
    sums = torch.full((2, 3, 37, 40), float("nan")).half()
    flash_hopper_backward.flash_hopper_sum_of_parts[(2, 6)](parts, sums, shares, 37 * 40, at_once, 1024)
    exact = parts.view(2, 3, shares, 37, 40).double().sum(2)
    assert (sums - exact).abs().max() <= 2**-11 * exact.abs().max()


@pytest.mark.parametrize("sizes", [(65, 40, 1), (129, 64, 2), (65, 128, 2), (200, 96, 4)], ids=str)
def test_statistics_zero_the_sum(sizes: tuple[int, int, int]) -> None:
    """Tiles of 8192 numbers: 128 rows of 64 columns, or 64 of 128. D and LSE are padded to 128 rows."""
    from perfkit.kernels.attention import flash_hopper_backward

    seq_q, head_dim, tiles = sizes
    out, dout = torch.randn(2, 2, 3, seq_q, head_dim).half()
    lse = torch.randn(2, 3, seq_q)
    total = torch.full((6 * tiles, 8192), float("nan"))
    log_sums, delta = flash_hopper_backward.statistics(out, dout, lse, total)
    assert (total == 0).all()
    exact = (out.double() * dout.double()).sum(-1).flatten(0, 1)
    torch.testing.assert_close(delta[:, :seq_q].double(), exact, rtol=1e-5, atol=1e-4)
    assert (delta[:, seq_q:] == 0).all()
    assert (log_sums[:, seq_q:] == float("inf")).all()
