"""Block-sparse attention in Triton's interpreter. `test_block_sparse_interpreter.py` runs this file."""

import functools
import os
from typing import Any

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_block_sparse_interpreter.py"

from perfkit.kernels.attention import (  # noqa: E402
    block_sparse,
    block_sparse_backward,
    flash_backward,
    reference,
    sparse1,
)
from perfkit.kernels.attention.block_lists import block_lists  # noqa: E402
from perfkit.kernels.attention.masks import Mask  # noqa: E402
from perfkit.kernels.attention.shape import checked_shape  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402
from perfkit.measure.correctness import Inputs, Judge, callables, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

MODERN = functools.partial(block_sparse.attention, tiles=[(32, 16, 4, 1), (16, 32, 4, 1), (32, 16, 4, 1)])
FIRST = functools.partial(sparse1.attention, tiles=[(32, 16, 4, 1), (16, 32, 4, 1)])
BOTH = pytest.mark.parametrize("attention", [MODERN, FIRST], ids=["block-sparse", "block-sparse1"])


def workload(pattern: str, n: int, **fields: Any) -> AttentionWorkload:
    sizes = {"heads": 2, "kv_heads": 2, "head_dim": 16, "dtype": "fp16", "pass_": "fwd-bwd", **fields}
    return AttentionWorkload(seq_q=n, seq_k=n, pattern=pattern, **sizes)


def assert_right(attention: Any, w: AttentionWorkload, inputs: Inputs | None = None) -> None:
    """The rule of all measurements: errors of O, dQ, dK, dV at most twice those of the eager path."""
    inputs = inputs or make_inputs(w, "cpu")
    _, result = callables(w, inputs, attention, None)
    require(w, Judge(w, inputs).errors(result()))


@BOTH
@pytest.mark.parametrize(
    "w",
    [
        workload("random:40%@32", 128),
        workload("random:40%@32", 83, batch=2, heads=4, kv_heads=2, head_dim=24),
        workload("butterfly@16", 100, head_dim=80, heads=1, kv_heads=1),
        workload("butterfly@64", 256, kv_heads=1),
        workload("local:1@32", 97),  # one row in the last block
        workload("local:0@64", 70, head_dim=40),  # the last block of queries sees nothing but itself
        workload("random:100%@16", 63),
        workload("local:2@128", 50),  # one block, partial
    ],
    ids=lambda w: f"{w.pattern}-{w.seq_q}",
)
def test_no_worse_than_twice_the_eager_error(attention: Any, w: AttentionWorkload) -> None:
    assert_right(attention, w)


@pytest.mark.parametrize("attention", [block_sparse.attention, sparse1.attention])
@pytest.mark.parametrize("pattern", ["random:50%@128", "random:50%@64"])
def test_the_table_s_own_tiles(attention: Any, pattern: str) -> None:
    assert_right(attention, workload(pattern, 300, head_dim=64))


@BOTH
def test_a_mask_that_is_no_pattern(attention: Any) -> None:
    """Not symmetric, the diagonal hidden in places, and a list of another length in each row and column."""
    w = workload("local:0@16", 90)
    seen = torch.tensor(
        [
            [0, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 1],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 1],
            [0, 0, 1, 0, 1, 1],
            [1, 0, 0, 0, 0, 0],
        ]
    ).bool()
    inputs = make_inputs(w, "cpu")
    inputs.given["blocks"] = seen
    assert_right(attention, w, inputs)


@BOTH
def test_other_strides_and_scale(attention: Any) -> None:
    w = workload("random:40%@32", 83, batch=2)
    made = make_inputs(w, "cpu")
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (made.q, made.k, made.v))
    exact = reference.forward(q, k, v, scale=0.3, mask=Mask(**made.given))[0]
    torch.testing.assert_close(attention(q, k, v, scale=0.3, **made.given).double(), exact, rtol=0, atol=2e-3)


def test_descriptors_give_the_same_bits() -> None:
    w = workload("random:40%@32", 83, kv_heads=1, head_dim=24)
    made = make_inputs(w, "cpu")
    q, k, v = made.q, made.k, made.v
    lists = block_lists(checked_shape(q, k, v), made.given["blocks"], 32, False)
    found = []
    for descriptors in (False, True):
        out, lse = block_sparse.forward(q, k, v, lists, 32, tile=Tile(32, 16, 4, 1), descriptors=descriptors)
        given = (q, k, v, made.dout, lse, flash_backward.delta(out, made.dout), lists, 32)
        dk, dv = block_sparse_backward.dkdv(*given, tile=Tile(16, 32, 4, 1), descriptors=descriptors)
        dq = block_sparse_backward.dq(*given, tile=Tile(32, 16, 4, 1), descriptors=descriptors)
        found.append((out, lse, dk, dv, dq))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_log_sum_exp() -> None:
    w = workload("butterfly@32", 150)
    made = make_inputs(w, "cpu")
    lists = block_lists(checked_shape(made.q, made.k, made.v), made.given["blocks"], 32, False)
    _, lse = block_sparse.forward(made.q, made.k, made.v, lists, 32)
    exact = reference.forward(made.q, made.k, made.v, mask=Mask(**made.given))[1]
    torch.testing.assert_close(lse.double(), exact, rtol=1e-5, atol=1e-4)


def test_lists_by_hand_and_once_for_a_mask() -> None:
    q = torch.zeros(1, 1, 40, 16)
    shape = checked_shape(q, q, q)
    blocks = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0]]).bool()
    lists = block_lists(shape, blocks, 16, False)
    assert (lists.columns.offsets.tolist(), lists.columns.members.tolist()) == ([0, 2, 3, 5], [0, 2, 1, 0, 1])
    assert (lists.rows.offsets.tolist(), lists.rows.members.tolist()) == ([0, 2, 4, 5], [0, 2, 1, 2, 0])
    assert lists.seen.tolist() == [[1, 0, 1], [0, 2, 2], [2, 0, 0]]  # by block of keys; 2: the row's last
    assert {t.dtype for t in (*lists.columns, *lists.rows)} == {torch.int32}
    assert block_lists(shape, blocks, 16, False) is lists
    blocks[0, 1] = True  # in place: the lists of before are wrong
    assert block_lists(shape, blocks, 16, False).columns.members.tolist() == [0, 1, 2, 1, 0, 1]


@BOTH
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "takes a mask of blocks, and no causal mask"),
        ({"causal": True, "blocks": torch.ones(2, 2).bool(), "block": 32}, "no causal mask"),
        ({"blocks": torch.ones(2, 2).bool(), "block": 48}, "a power of two from 16 on, got 48"),
        ({"blocks": torch.ones(2, 2).bool(), "block": 8}, "a power of two from 16 on, got 8"),
        ({"blocks": torch.ones(2, 2).bool(), "block": 16}, r"bool \[4, 4\], got torch.bool \[2, 2\]"),
        ({"blocks": torch.ones(2, 2), "block": 32}, r"bool \[2, 2\], got torch.float32 \[2, 2\]"),
        ({"blocks": torch.eye(2).bool()[[0, 0]], "block": 32}, "every block of keys be seen"),
        ({"blocks": torch.eye(2).bool().T[:, [0, 0]], "block": 32}, "every block of queries must see"),
    ],
)
def test_what_is_no_mask_is_refused(attention: Any, given: dict[str, Any], message: str) -> None:
    q = torch.randn(1, 1, 64, 16).half()
    with pytest.raises(ValueError, match=message):
        attention(q, q, q, **given)


@BOTH
def test_what_it_cannot_serve_is_refused(attention: Any) -> None:
    given = {"blocks": torch.ones(2, 2).bool(), "block": 32}
    q = torch.randn(1, 2, 64, 16).half()
    with pytest.raises(ValueError, match="as many queries as keys: 64, 32"):
        attention(q, q[:, :, :32], q[:, :, :32], **given)
    with pytest.raises(ValueError, match="float16 and bfloat16"):
        attention(q.float(), q.float(), q.float(), **given)
    for head_dim in (8, 20, 264):
        wide = q.new_zeros(1, 2, 64, head_dim)
        with pytest.raises(ValueError, match="head dims 16 to 256"):
            attention(wide, wide, wide, **given)


@BOTH
def test_large_scores_do_not_overflow(attention: Any) -> None:
    w = workload("random:40%@32", 90, heads=1, kv_heads=1)
    made = make_inputs(w, "cpu")
    leaves = [t.requires_grad_() for t in (made.q * 30, made.k * 30, made.v)]
    out = attention(*leaves, **made.given)
    right = reference.forward(*leaves, mask=Mask(**made.given))[0]
    assert (out - right).norm() < 1e-3 * right.norm()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, leaves, made.dout))
