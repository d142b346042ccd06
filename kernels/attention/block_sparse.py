"""Attention under any mask given as spans, in the loop order of FlashAttention-2, in Triton; with gradients.

Block-sparse FlashAttention is section 3.3 of Dao et al., arXiv 2205.14135: tiles without a visible pair are
never visited. Here the outer loop is over tiles of Q, as in arXiv 2307.08691, and the program of such a tile
walks the list of the tiles of keys that it meets: first those that the mask cuts, where each pair is looked
at, then those that it sees whole, without any mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .block_sparse_backward import backward
from .listed import check_spans, ends_of, listed, span_of, within_blocks, without_stride
from .shape import checked_shape, softmax_scale
from .spans import Spans
from .tile_io import (
    LOG2_E,
    capability,
    check_served,
    like_rows,
    load_rows,
    note_use,
    on_device,
    outer_strides,
    padded_width,
    rows_contiguous,
    source,
    store_rows,
    use_descriptors,
)
from .tiles import Tile, forward_tile
from .use import KernelUse


@triton.jit  # type: ignore[untyped-decorator]
def _listed_keys(  # type: ignore[no-untyped-def]
    acc,
    row_max,
    row_sum,
    q_tile,
    k,
    v,
    members,
    ends,
    batch,
    kv_head,
    start_m,
    first,
    steps,
    seq_q,
    seq_k,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    scale_log2,
    SPANS: tl.constexpr,
    EDGE: tl.constexpr,
    RUNS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`steps` tiles of K and V, those that `members` lists from `first` on; with RUNS they are neighbours.

    One flat loop, so that it is pipelined. The next member is read a turn early: the address of the next tile
    waits for it. A row sees the keys of its SPANS spans, all of the tile where SPANS is 0; with EDGE the keys
    may end within a tile.
    """
    if SPANS > 0:
        rows = start_m + tl.arange(0, BLOCK_M)
        present = rows < tl.where(steps > 0, seq_q, 0)
        low, high = span_of(ends, rows, present, 0, SPANS)
        if SPANS == 2:
            low_2, high_2 = span_of(ends, rows, present, 1, SPANS)
    member = tl.load(members + first, mask=steps > 0, other=0)
    for step in tl.range(0, steps):
        if RUNS:
            following = member
            start_n = (member + step) * BLOCK_N
        else:
            following = tl.load(members + first + step + 1, mask=step + 1 < steps, other=0)
            start_n = member * BLOCK_N
        k_tile = load_rows(
            k, batch, kv_head, start_n, seq_k, stride_kb, stride_kh, stride_kn,
            DESCRIPTORS, EDGE, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        scores = tl.dot(q_tile, k_tile.T)
        keys = (start_n + tl.arange(0, BLOCK_N))[None, :]
        if SPANS > 0:  # no span goes beyond the keys
            seen = (low[:, None] <= keys) & (keys < high[:, None])
            if SPANS == 2:
                seen = seen | ((low_2[:, None] <= keys) & (keys < high_2[:, None]))
            scores = tl.where(seen, scores, float("-inf"))
        elif EDGE:  # the first key of every tile is in range, so that no row is without one
            scores = tl.where(keys < seq_k, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None]
        v_tile = load_rows(
            v, batch, kv_head, start_n, seq_k, stride_vb, stride_vh, stride_vn,
            DESCRIPTORS, EDGE, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
        row_max = new_max
        member = following
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["heads", "group", "tiles_m"])  # type: ignore[untyped-decorator]
def block_sparse_forward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    offsets,
    partial,
    members,
    ends,
    out,
    lse,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_ob,
    stride_oh,
    stride_on,
    heads,
    group,
    tiles_m,
    seq_q,
    seq_k,
    scale_log2,
    SPANS: tl.constexpr,
    EDGE: tl.constexpr,
    RUNS: tl.constexpr,
    LATE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """O and LSE over the visible keys, for one tile of Q rows of one head. A row that sees none: 0 and -inf.

    Traffic per head, e bytes per element, c_i the keys in the tiles that tile i meets,
    i < T = ceil(N_q / BLOCK_M): reads N_q d e + sum_i 2 c_i d e bytes, writes N_q d e + 4 N_q bytes.
    Lists: reads 8 T bytes and 4 for each tile of keys that is met; with RUNS, of those of a list that are met
    in full, for the first alone. With SPANS 4 T more, and 8 SPANS for each row of a tile that meets any in
    part.
    """
    program = tl.program_id(0)
    tile = program % tiles_m
    if LATE:  # the longest first
        tile = tiles_m - 1 - tile
    batch = program // tiles_m // heads
    head = program // tiles_m % heads
    kv_head = head // group
    start_m = tile * BLOCK_M
    first, parts, rest = ends_of(offsets, partial, tile, SPANS)

    q_tile = load_rows(
        q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    row_max = tl.full([BLOCK_M], -3.0e38, tl.float32)  # not -inf: rows may see no key of a tile that is met
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if SPANS > 0:
        acc, row_max, row_sum = _listed_keys(
            acc, row_max, row_sum, q_tile, k, v, members, ends, batch, kv_head, start_m, first, parts,
            seq_q, seq_k, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
            SPANS, EDGE, False, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    acc, row_max, row_sum = _listed_keys(
        acc, row_max, row_sum, q_tile, k, v, members, ends, batch, kv_head, start_m, first + parts, rest,
        seq_q, seq_k, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
        0, EDGE and SPANS == 0, RUNS, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
    )  # fmt: skip

    total = tl.where(row_sum == 0.0, 1.0, row_sum)
    rows = start_m + tl.arange(0, BLOCK_M)
    log_sum = tl.where(row_sum == 0.0, float("-inf"), (row_max + tl.log2(total)) * 0.6931471805599453)
    tl.store(lse + (program // tiles_m).to(tl.int64) * seq_q + rows, log_sum, mask=rows < seq_q)
    store_rows(
        out, acc / total[:, None], batch, head, start_m, seq_q, stride_ob, stride_oh, stride_on,
        BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE): O like q, LSE float32 [B, h, N_q]; `spans` have no stride. No autograd.

    `tile` overrides the table of `tiles.py`; sides larger than a block are cut to it. `descriptors` forces
    TMA on or off. See `block_sparse_forward` for the traffic.
    """
    shape = checked_shape(q, k, v)
    check_served(q)
    check_spans(spans, shape, False)
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    tile = within_blocks(tile or forward_tile(shape.head_dim, capability(q), spans.step == 1), spans)
    lists = listed(spans, shape, tile)
    described = use_descriptors(q, k, v) if descriptors is None else descriptors
    out = like_rows(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tiles_m = triton.cdiv(shape.seq_q, tile.block_m)
    with on_device(q):
        compiled = block_sparse_forward[(tiles_m * shape.heads * shape.batch,)](
            source(q, tile.block_m, described),
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
            lists.offsets,
            lists.partial,
            lists.members,
            spans.ends.contiguous(),
            out,
            lse,
            *outer_strides(q),
            *outer_strides(k),
            *outer_strides(v),
            *outer_strides(out),
            shape.heads,
            shape.group,
            tiles_m,
            shape.seq_q,
            shape.seq_k,
            softmax_scale(scale, shape.head_dim) * LOG2_E,
            SPANS=lists.spans,
            EDGE=shape.seq_k % tile.block_n != 0,
            RUNS=lists.runs,
            LATE=lists.late,
            DESCRIPTORS=described,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "block_sparse_forward", tile, compiled)
    return out, lse


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spans: Spans,
        scale: float | None,
        tiles: Sequence[Sequence[int]] | None,
        uses: list[KernelUse] | None,
    ) -> Tensor:
        chosen = [Tile(*tile) for tile in tiles] if tiles else None
        out, lse = forward(q, k, v, spans, scale, tile=chosen[0] if chosen else None, uses=uses)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.spans, ctx.scale, ctx.uses = spans, scale, uses
        ctx.tiles = (chosen[1], chosen[2]) if chosen else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        gradients = backward(q, k, v, out, lse, dout, ctx.spans, ctx.scale, tiles=ctx.tiles, uses=ctx.uses)
        return *gradients, None, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    spans: Spans | None = None,
    tiles: Sequence[Sequence[int]] | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N_q, d], float16 or bfloat16, over the keys in the spans. Rows that see no key are 0.

    `spans.ends` is int32 [ceil(N_q / step), K, 2] on the device of q. K is 1 or 2, or the spans are those of
    blocks: `step`, a power of two from 16 on, divides all ends but the last key's. What is derived of `ends`
    is made at the first call with this tensor, and kept while it lives and is not written to (see `listed`).
    `tiles` = (the forward kernel's, the dK/dV kernel's, the dQ kernel's) overrides the table of `tiles.py`;
    sides larger than a block are cut to it. `uses` receives what the forward kernel used at call, and the
    three backward kernels when autograd runs. ValueError for a causal mask, for spans that are none, other
    dtypes, head dims outside 16..256 or no multiple of 8, and no CUDA device.
    """
    shape = checked_shape(q, k, v)
    spans = check_spans(spans, shape, causal)
    if (stride := spans.stride) > 1:
        # Rows and keys of other remainders do not meet: each remainder is attention of its own.
        spans = without_stride(spans, shape.seq_q)
        q, k, v = (_by_remainder(tensor, stride) for tensor in (q, k, v))
    out: Tensor = _BlockSparse.apply(q, k, v, spans, scale, tiles, uses)  # type: ignore[no-untyped-call]
    if stride > 1:
        out = out.permute(1, 2, 0, 3).reshape(shape.batch, shape.heads, shape.seq_q, shape.head_dim)
    return out


def _by_remainder(tensor: Tensor, stride: int) -> Tensor:
    """[B, h, N, d] -> [D, B h, N / D, d], a view where the strides of B and h allow."""
    batch, heads, rows, width = tensor.shape
    parted = tensor.reshape(batch, heads, rows // stride, stride, width).permute(3, 0, 1, 2, 4)
    return parted.reshape(stride, batch * heads, rows // stride, width)
