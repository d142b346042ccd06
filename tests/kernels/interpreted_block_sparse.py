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
from perfkit.kernels.attention.listed import (  # noqa: E402
    check_spans,
    listed,
    seen_blocks,
    spans_of_blocks,
    without_stride,
)
from perfkit.kernels.attention.masks import Mask  # noqa: E402
from perfkit.kernels.attention.shape import checked_shape  # noqa: E402
from perfkit.kernels.attention.spans import Spans  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402
from perfkit.measure.correctness import Inputs, Judge, callables, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

MODERN = functools.partial(block_sparse.attention, tiles=[(32, 16, 4, 1), (16, 32, 4, 1), (32, 16, 4, 1)])
FIRST = functools.partial(sparse1.attention, tiles=[(32, 16, 4, 1), (16, 32, 4, 1)])
BOTH = pytest.mark.parametrize("attention", [MODERN, FIRST], ids=["block-sparse", "block-sparse1"])


def workload(pattern: str, n: int, **fields: Any) -> AttentionWorkload:
    sizes = {"heads": 2, "kv_heads": 2, "head_dim": 16, "dtype": "fp16", "pass_": "fwd-bwd", **fields}
    return AttentionWorkload(seq_q=n, pattern=pattern, **{"seq_k": n, **sizes})


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
        workload("bigbird:0+1+1@16", 90, kv_heads=1),
    ],
    ids=lambda w: f"{w.pattern}-{w.seq_q}",
)
def test_no_worse_than_twice_the_eager_error(attention: Any, w: AttentionWorkload) -> None:
    assert_right(attention, w)


@pytest.mark.parametrize(
    "w",
    [
        workload("window:20", 100),
        workload("window:33", 97, kv_heads=1, head_dim=40),
        workload("window:1000", 77),  # wider than the sequence
        workload("window:1", 50),
        workload("window:33", 50, seq_k=130),  # behind a cache
        workload("window:200", 33, seq_k=130, heads=4),
        workload("window:7", 130, seq_k=50),  # the first 80 rows see nothing
        workload("dilated:8+3", 99, batch=2, heads=2, kv_heads=1),
        workload("dilated:100+2", 70, head_dim=40),
        workload("dilated:3+5", 50),
        workload("sinks:4+20", 111),
        workload("sinks:40+20", 61, seq_k=160),  # whole tiles of sinks: no runs
        workload("sinks:0+0", 40),  # nobody sees anything
        workload("sinks:0+9", 70),  # the first of two spans is empty
        workload("longformer:20+5", 90, kv_heads=1, head_dim=24),
        workload("longformer:20+50", 120),
        workload("longformer:0+0", 50),
        workload("prefix:30", 111),
        workload("prefix:90", 60, seq_k=111),
        workload("prefix:0", 100, heads=4),
        workload("packed:20", 130),
        workload("packed:1", 64),
        workload("packed:1+1+1+30+1+2", 90, head_dim=40, heads=4),
    ],
    ids=lambda w: f"{w.pattern}-{w.seq_q}-{w.seq_k}",
)
def test_masks_without_blocks(w: AttentionWorkload) -> None:
    assert_right(MODERN, w)


@pytest.mark.parametrize(
    ("attention", "pattern"),
    [
        *(
            (one, f"random:50%@{block}")
            for one in (block_sparse.attention, sparse1.attention)
            for block in (64, 128)
        ),
        *((block_sparse.attention, pattern) for pattern in ("window:99", "longformer:50+70", "packed:80")),
    ],
)
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
    inputs.given["spans"] = spans_of_blocks(seen, 16, 90)
    assert_right(attention, w, inputs)


def test_keys_and_rows_that_see_nothing() -> None:
    """O = 0 and LSE = -inf, gradients 0: rows 20 to 39 see no key, and nobody sees keys 40 to 79."""
    row = torch.arange(100)
    low = torch.where(row < 40, 0, 80)
    high = torch.where(row < 20, 40, torch.where(row < 40, 0, 100))
    ends = torch.stack([low, high], -1)[:, None].int()
    q, k, v, dout = (torch.randn(1, 2, 100, 16).half() for _ in range(4))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = MODERN(*leaves, spans=Spans(ends))
    dq, dk, dv = torch.autograd.grad(out, leaves, dout)
    assert not out[:, :, 20:40].any()
    assert not dq[:, :, 20:40].any()
    assert not dk[:, :, 40:80].any()
    assert not dv[:, :, 40:80].any()
    assert all(torch.isfinite(t).all() for t in (out, dq, dk, dv))
    _, lse = block_sparse.forward(q, k, v, Spans(ends), tile=Tile(32, 16, 4, 1))
    assert (lse[:, :, 20:40] == float("-inf")).all()
    assert torch.isfinite(lse[:, :, :20]).all()
    exact = reference.forward(q, k, v, mask=Mask(spans=Spans(ends)))[0]
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-3)


def test_blocks_that_see_nothing() -> None:
    seen = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 0]]).bool()
    q, k, v, dout = (torch.randn(1, 1, 80, 16).half() for _ in range(4))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    spans = spans_of_blocks(seen, 32, 80)
    out = MODERN(*leaves, spans=spans)
    exact = reference.attention(*leaves, spans=spans)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-3)
    assert not out[:, :, 32:64].any()
    mine, right = (torch.autograd.grad(one, leaves, dout.to(one.dtype)) for one in (out, exact))
    for one, other in zip(mine, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4e-3)
    assert not mine[1][:, :, :32].any()  # nobody sees the first and the last keys
    assert not mine[2][:, :, 64:].any()


def test_blocks_of_a_rectangle() -> None:
    """Any mask of blocks goes: 3 blocks of queries, the last of 6 rows, and 5 of keys, the last of 2."""
    seen = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    q, k, v = torch.randn(2, 2, 38, 16).half(), *(torch.randn(2, 1, 66, 16).half() for _ in range(2))
    spans = spans_of_blocks(seen, 16, 66)
    exact = reference.forward(q, k, v, mask=Mask(spans=spans))[0]
    torch.testing.assert_close(MODERN(q, k, v, spans=spans).double(), exact, rtol=0, atol=2e-3)


@BOTH
def test_other_strides_and_scale(attention: Any) -> None:
    w = workload("random:40%@32", 83, batch=2)
    made = make_inputs(w, "cpu")
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (made.q, made.k, made.v))
    exact = reference.forward(q, k, v, scale=0.3, mask=Mask(**made.given))[0]
    torch.testing.assert_close(attention(q, k, v, scale=0.3, **made.given).double(), exact, rtol=0, atol=2e-3)


def test_a_dilated_window_of_other_strides() -> None:
    """[B, N, h, d] in memory: B and h do not merge, and the tensors are copied."""
    w = workload("dilated:8+2", 60, batch=2)
    made = make_inputs(w, "cpu")
    q, k, v, dout = (
        t.transpose(1, 2).contiguous().transpose(1, 2) for t in (made.q, made.k, made.v, made.dout)
    )
    assert_right(MODERN, w, Inputs(q=q, k=k, v=v, dout=dout, given=made.given))


@pytest.mark.parametrize("pattern", ["random:40%@32", "window:30", "longformer:9+40"])
def test_descriptors_give_the_same_bits(pattern: str) -> None:
    w = workload(pattern, 83, kv_heads=1, head_dim=24)
    made = make_inputs(w, "cpu")
    q, k, v = made.q, made.k, made.v
    spans = made.given["spans"]
    found = []
    for descriptors in (False, True):
        out, lse = block_sparse.forward(q, k, v, spans, tile=Tile(32, 16, 4, 1), descriptors=descriptors)
        given = (q, k, v, made.dout, lse, flash_backward.delta(out, made.dout), spans)
        dk, dv = block_sparse_backward.dkdv(*given, tile=Tile(16, 32, 4, 1), descriptors=descriptors)
        dq = block_sparse_backward.dq(*given, tile=Tile(32, 16, 4, 1), descriptors=descriptors)
        found.append((out, lse, dk, dv, dq))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("pattern", ["butterfly@32", "window:40", "sinks:3+30"])
def test_log_sum_exp(pattern: str) -> None:
    w = workload(pattern, 150)
    made = make_inputs(w, "cpu")
    _, lse = block_sparse.forward(made.q, made.k, made.v, made.given["spans"])
    exact = reference.forward(made.q, made.k, made.v, mask=Mask(**made.given))[1]
    torch.testing.assert_close(lse.double(), exact, rtol=1e-5, atol=1e-4)


def test_lists_are_made_once_for_a_mask() -> None:
    q = torch.zeros(1, 1, 40, 16)
    shape, tile = checked_shape(q, q, q), Tile(16, 16, 4, 1)
    seen = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0]]).bool()
    spans = spans_of_blocks(seen, 16, 40)
    assert spans.ends.tolist() == [[[0, 16], [32, 40]], [[16, 32], [0, 0]], [[0, 32], [0, 0]]]
    one = listed(spans, shape, tile)
    # The tile where keys end, block 2, comes first in its list.
    assert (one.offsets.tolist(), one.members.tolist()) == ([0, 2, 3, 5], [2, 0, 1, 0, 1])
    assert (one.spans, one.runs, one.late) == (0, False, False)
    turned = listed(spans, shape, tile, by_keys=True)
    assert (turned.offsets.tolist(), turned.members.tolist()) == ([0, 2, 4, 5], [0, 2, 1, 2, 0])
    assert {t.dtype for t in (*one[:3], *turned[:3])} == {torch.int32}
    assert seen_blocks(spans, shape).tolist() == [
        [1, 0, 1],
        [0, 2, 2],
        [2, 0, 0],
    ]  # by keys; 2: the row's last
    assert listed(spans, shape, tile) is one
    assert listed(spans._replace(), shape, tile) is one  # it is the tensor that counts
    assert listed(spans, shape, Tile(16, 32, 4, 1)) is not one
    spans.ends[0] = torch.tensor([[0, 32], [32, 40]])  # in place: the lists of before are wrong
    assert listed(spans, shape, tile).members.tolist() == [2, 0, 1, 1, 0, 1]


def test_spans_without_their_stride() -> None:
    # N 12, every third of the last two: rows m of each remainder see m - 1 and m.
    found = without_stride(window(12, 4, 3), 12)
    assert found.ends.tolist() == [[[0, 1]], [[0, 2]], [[1, 3]], [[2, 4]]]
    assert (found.step, found.stride) == (1, 1)
    made = window(12, 4, 3)
    assert without_stride(made, 12) is without_stride(made, 12)
    # Keys 3 r to 3 r + 2 are one of each remainder; a span that ends between them is not the same for all.
    torn = made._replace(ends=torch.tensor([[[0, 2]]] * 12, dtype=torch.int32))
    with pytest.raises(ValueError, match="must be the same for each of 3 rows"):
        without_stride(torn, 12)


def window(length: int, width: int, stride: int = 1) -> Spans:
    """The last `width` keys of every row."""
    row = torch.arange(length)
    return Spans(torch.stack([(row + 1 - width).clamp(0), row + 1], -1)[:, None].int(), 1, stride)


TWO = spans_of_blocks(torch.ones(2, 2).bool(), 32, 64)
NO_SPANS: list[tuple[dict[str, Any], str]] = [
    ({}, "takes spans, and no causal mask"),
    ({"causal": True, "spans": TWO}, "no causal mask"),
    ({"spans": TWO._replace(step=48)}, "a power of two from 16 on, got 48"),
    ({"spans": Spans(torch.zeros(8, 1, 2).int(), 8)}, "a power of two from 16 on, got 8"),
    ({"spans": TWO._replace(step=16)}, "64 queries by 16 have 4 rows of spans, not 2"),
    ({"spans": TWO._replace(ends=TWO.ends.long())}, r"int32 \[R, K, 2\], got torch.int64 \[2, 1, 2\]"),
    ({"spans": TWO._replace(ends=TWO.ends[:, 0])}, r"int32 \[R, K, 2\], got torch.int32 \[2, 2\]"),
    ({"spans": TWO._replace(ends=TWO.ends + 1)}, "within 0 and the 64 keys, got 1 to 65"),
    ({"spans": TWO._replace(ends=TWO.ends - 1)}, "within 0 and the 64 keys, got -1 to 63"),
    ({"spans": TWO._replace(ends=TWO.ends // 2 + 4)}, "must end at multiples of 32, or at the last key"),
    ({"spans": Spans(torch.zeros(64, 3, 2).int())}, "at most 2 a row, got 3"),
    ({"spans": TWO._replace(stride=2)}, "a stride wants spans row by row, not of 32 rows together"),
    ({"spans": window(64, 6, 3)}, "a stride of 3 must divide as many queries as keys, not 64 and 64"),
]


@BOTH
@pytest.mark.parametrize(("given", "message"), NO_SPANS)
def test_what_is_no_mask_is_refused(attention: Any, given: dict[str, Any], message: str) -> None:
    q = torch.randn(1, 1, 64, 16).half()
    with pytest.raises(ValueError, match=message):
        attention(q, q, q, **given)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (window(64, 9), "spans of blocks: of `step` rows together"),
        (spans_of_blocks(torch.eye(2).bool()[[0, 0]], 32, 64), "each block of keys be seen"),
        (spans_of_blocks(torch.eye(2).bool().T[:, [0, 0]], 32, 64), "each block of queries must see"),
    ],
)
def test_what_the_first_order_refuses(spans: Spans, message: str) -> None:
    q = torch.randn(1, 1, 64, 16).half()
    with pytest.raises(ValueError, match=message):
        FIRST(q, q, q, spans=spans)
    assert torch.isfinite(MODERN(q, q, q, spans=spans)).all()


def test_a_stride_wants_as_many_queries_as_keys() -> None:
    q = torch.randn(1, 1, 64, 16).half()
    with pytest.raises(ValueError, match="a stride of 2 must divide as many queries as keys, not 32 and 64"):
        MODERN(q[:, :, :32], q, q, spans=window(32, 6, 2))


def test_spans_are_checked_again_for_other_keys() -> None:
    spans = window(64, 9)
    q = torch.randn(1, 1, 64, 16).half()
    shape = checked_shape(q, q, q)
    assert check_spans(spans, shape, False) is spans
    short = checked_shape(q, q[:, :, :50], q[:, :, :50])
    with pytest.raises(ValueError, match="within 0 and the 50 keys, got 0 to 64"):
        check_spans(spans, short, False)


@BOTH
def test_what_it_cannot_serve_is_refused(attention: Any) -> None:
    given = {"spans": TWO}
    q = torch.randn(1, 2, 64, 16).half()
    with pytest.raises(ValueError, match="float16 and bfloat16"):
        attention(q.float(), q.float(), q.float(), **given)
    for head_dim in (8, 20, 264):
        wide = q.new_zeros(1, 2, 64, head_dim)
        with pytest.raises(ValueError, match="head dims 16 to 256"):
            attention(wide, wide, wide, **given)


def test_the_first_order_wants_as_many_queries_as_keys() -> None:
    q = torch.randn(1, 2, 64, 16).half()
    spans = spans_of_blocks(torch.ones(2, 1).bool(), 32, 32)
    with pytest.raises(ValueError, match="as many queries as keys: 64, 32"):
        FIRST(q, q[:, :, :32], q[:, :, :32], spans=spans)


@pytest.mark.parametrize(
    ("attention", "pattern"), [(MODERN, "random:40%@32"), (FIRST, "random:40%@32"), (MODERN, "window:30")]
)
def test_large_scores_do_not_overflow(attention: Any, pattern: str) -> None:
    w = workload(pattern, 90, heads=1, kv_heads=1)
    made = make_inputs(w, "cpu")
    leaves = [t.requires_grad_() for t in (made.q * 30, made.k * 30, made.v)]
    out = attention(*leaves, **made.given)
    right = reference.forward(leaves[0], leaves[1], leaves[2], mask=Mask(**made.given))[0]
    assert (out - right).norm() < 1e-3 * right.norm()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, leaves, made.dout))
