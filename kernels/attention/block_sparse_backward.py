"""Backward of block-sparse attention in Triton, by recomputation, in three kernels and without atomics.

As `flash_backward`: D = rowsum(dO o O); dK and dV along the list of the tiles of queries that meet a tile of
keys; dQ along the list of the tiles of keys that a tile of queries meets. First the tiles that the mask cuts,
then those without any mask. Each run gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from .flash_backward import _load_statistics, delta
from .listed import check_spans, ends_of, listed, span_of, within_blocks
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
from .tiles import Tile, backward_tiles
from .use import KernelUse


@triton.jit  # type: ignore[untyped-decorator]
def _listed_rows(  # type: ignore[no-untyped-def]
    dk_acc,
    dv_acc,
    k_tile,
    v_tile,
    q,
    dout,
    lse,
    delta,
    members,
    ends,
    batch,
    head,
    start_n,
    first,
    steps,
    seq_q,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_gb,
    stride_gh,
    stride_gn,
    scale_log2,
    SPANS: tl.constexpr,
    RUNS: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`steps` tiles of Q and dO, those that `members` lists from `first` on, for one query head.

    Rows beyond N_q need no mask: their LSE makes P = 0. The next member is read a turn early, as in
    `block_sparse`, and SPANS and RUNS mean the same.
    """
    member = tl.load(members + first, mask=steps > 0, other=0)
    for step in tl.range(0, steps):
        if RUNS:
            following = member
            start_m = (member + step) * BLOCK_M
        else:
            following = tl.load(members + first + step + 1, mask=step + 1 < steps, other=0)
            start_m = member * BLOCK_M
        q_tile = load_rows(
            q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn,
            DESCRIPTORS, CHECK_ROWS, BLOCK_M, HEAD_DIM, WIDTH,
        )  # fmt: skip
        rows = start_m + tl.arange(0, BLOCK_M)
        log_sum, row_delta = _load_statistics(lse, delta, rows, seq_q)
        # Everything transposed, [keys, rows], so that P^T and dS^T are the left operands as they come.
        weights = tl.exp2(tl.dot(k_tile, q_tile.T) * scale_log2 - log_sum[None, :])
        if SPANS > 0:
            keys = (start_n + tl.arange(0, BLOCK_N))[:, None]
            low, high = span_of(ends, rows, rows < seq_q, 0, SPANS)
            seen = (low[None, :] <= keys) & (keys < high[None, :])
            if SPANS == 2:
                low, high = span_of(ends, rows, rows < seq_q, 1, SPANS)
                seen = seen | ((low[None, :] <= keys) & (keys < high[None, :]))
            weights = tl.where(seen, weights, 0.0)
        dout_tile = load_rows(
            dout, batch, head, start_m, seq_q, stride_gb, stride_gh, stride_gn,
            DESCRIPTORS, CHECK_ROWS, BLOCK_M, HEAD_DIM, WIDTH,
        )  # fmt: skip
        dv_acc = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_acc)
        d_weights = tl.dot(v_tile, dout_tile.T)
        d_scores = weights * (d_weights - row_delta[None, :])
        dk_acc = tl.dot(d_scores.to(q_tile.dtype), q_tile, dk_acc)
        member = following
    return dk_acc, dv_acc


@triton.jit(do_not_specialize=["kv_heads", "group", "tiles_n"])  # type: ignore[untyped-decorator]
def block_sparse_dkdv(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    dout,
    lse,
    delta,
    offsets,
    partial,
    members,
    ends,
    dk,
    dv,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_gb,
    stride_gh,
    stride_gn,
    stride_dkb,
    stride_dkh,
    stride_dkn,
    stride_dvb,
    stride_dvh,
    stride_dvn,
    kv_heads,
    group,
    tiles_n,
    seq_q,
    seq_k,
    scale,
    scale_log2,
    SPANS: tl.constexpr,
    RUNS: tl.constexpr,
    LATE: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dV = P^T dO and dK = scale dS^T Q for one tile of keys of one key/value head, over its g query heads.

    Traffic per key/value head, r_j the Q rows in the tiles that tile j meets, j < T = ceil(N_k / BLOCK_N):
    reads 2 N_k d e + g sum_j r_j (2 d e + 8) bytes, writes 2 N_k d e bytes. Lists: reads 8 T bytes, and for
    each query head 4 for each tile of rows that is met; with RUNS, of those of a list that are met in full,
    for the first alone. With SPANS 4 T more, and 8 SPANS for each row of a tile that is met in part.
    """
    program = tl.program_id(0)
    tile = program % tiles_n
    if LATE:  # the longest first
        tile = tiles_n - 1 - tile
    start_n = tile * BLOCK_N
    batch = program // tiles_n // kv_heads
    kv_head = program // tiles_n % kv_heads
    first, parts, rest = ends_of(offsets, partial, tile, SPANS)

    k_tile = load_rows(
        k, batch, kv_head, start_n, seq_k, stride_kb, stride_kh, stride_kn,
        DESCRIPTORS, True, BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip
    v_tile = load_rows(
        v, batch, kv_head, start_n, seq_k, stride_vb, stride_vh, stride_vn,
        DESCRIPTORS, True, BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip
    dk_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    for one in tl.range(0, group):
        head = kv_head * group + one
        start = ((batch * kv_heads * group) + head).to(tl.int64) * seq_q
        if SPANS > 0:
            dk_acc, dv_acc = _listed_rows(
                dk_acc, dv_acc, k_tile, v_tile, q, dout, lse + start, delta + start, members, ends, batch,
                head, start_n, first, parts, seq_q,
                stride_qb, stride_qh, stride_qn, stride_gb, stride_gh, stride_gn, scale_log2,
                SPANS, False, CHECK_ROWS, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        dk_acc, dv_acc = _listed_rows(
            dk_acc, dv_acc, k_tile, v_tile, q, dout, lse + start, delta + start, members, ends, batch,
            head, start_n, first + parts, rest, seq_q,
            stride_qb, stride_qh, stride_qn, stride_gb, stride_gh, stride_gn, scale_log2,
            0, RUNS, CHECK_ROWS, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip

    store_rows(
        dv, dv_acc, batch, kv_head, start_n, seq_k, stride_dvb, stride_dvh, stride_dvn,
        BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip
    store_rows(
        dk, dk_acc * scale, batch, kv_head, start_n, seq_k, stride_dkb, stride_dkh, stride_dkn,
        BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _listed_keys(  # type: ignore[no-untyped-def]
    acc,
    q_tile,
    dout_tile,
    log_sum,
    row_delta,
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
    """dS K over `steps` tiles of K and V, those that `members` lists from `first` on, as forward."""
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
        v_tile = load_rows(
            v, batch, kv_head, start_n, seq_k, stride_vb, stride_vh, stride_vn,
            DESCRIPTORS, EDGE, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        weights = tl.exp2(tl.dot(q_tile, k_tile.T) * scale_log2 - log_sum[:, None])
        keys = (start_n + tl.arange(0, BLOCK_N))[None, :]
        if SPANS > 0:
            seen = (low[:, None] <= keys) & (keys < high[:, None])
            if SPANS == 2:
                seen = seen | ((low_2[:, None] <= keys) & (keys < high_2[:, None]))
            weights = tl.where(seen, weights, 0.0)
        elif EDGE:
            weights = tl.where(keys < seq_k, weights, 0.0)
        d_weights = tl.dot(dout_tile, v_tile.T)
        d_scores = weights * (d_weights - row_delta[:, None])
        acc = tl.dot(d_scores.to(k_tile.dtype), k_tile, acc)
        member = following
    return acc


@triton.jit(do_not_specialize=["heads", "group", "tiles_m"])  # type: ignore[untyped-decorator]
def block_sparse_dq(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    dout,
    lse,
    delta,
    offsets,
    partial,
    members,
    ends,
    dq,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_gb,
    stride_gh,
    stride_gn,
    stride_dqb,
    stride_dqh,
    stride_dqn,
    heads,
    group,
    tiles_m,
    seq_q,
    seq_k,
    scale,
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
    """dQ = scale dS K for one tile of Q rows of one head.

    Traffic per head: reads 2 N_q d e + 8 N_q + sum_i 2 c_i d e bytes, writes N_q d e bytes, with c_i, the
    lists and the spans as in `block_sparse_forward` (with this kernel's own tile).
    """
    program = tl.program_id(0)
    tile = program % tiles_m
    if LATE:  # the longest first
        tile = tiles_m - 1 - tile
    batch = program // tiles_m // heads
    head = program // tiles_m % heads
    kv_head = head // group
    start_m = tile * BLOCK_M
    start = (program // tiles_m).to(tl.int64) * seq_q
    first, parts, rest = ends_of(offsets, partial, tile, SPANS)

    q_tile = load_rows(
        q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    dout_tile = load_rows(
        dout, batch, head, start_m, seq_q, stride_gb, stride_gh, stride_gn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    log_sum, row_delta = _load_statistics(lse + start, delta + start, start_m + tl.arange(0, BLOCK_M), seq_q)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    if SPANS > 0:
        acc = _listed_keys(
            acc, q_tile, dout_tile, log_sum, row_delta, k, v, members, ends, batch, kv_head, start_m, first,
            parts, seq_q, seq_k, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
            SPANS, EDGE, False, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    acc = _listed_keys(
        acc, q_tile, dout_tile, log_sum, row_delta, k, v, members, ends, batch, kv_head, start_m,
        first + parts, rest, seq_q, seq_k,
        stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
        0, EDGE and SPANS == 0, RUNS, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_rows(
        dq, acc * scale, batch, head, start_m, seq_q, stride_dqb, stride_dqh, stride_dqn,
        BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip


def dkdv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    row_delta: Tensor,
    spans: Spans,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(dK, dV) like k and v, summed over the query heads of each group. Traffic: `block_sparse_dkdv`."""
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v, dout = (rows_contiguous(t) for t in (q, k, v, dout))
    check_spans(spans, shape, False)
    tile = within_blocks(tile or backward_tiles(shape.head_dim, capability(q), spans.step == 1)[0], spans)
    lists = listed(spans, shape, tile, by_keys=True)
    described = use_descriptors(q, k, v, dout) if descriptors is None else descriptors
    dk, dv = like_rows(k), like_rows(v)
    tiles_n = triton.cdiv(shape.seq_k, tile.block_n)
    factor = softmax_scale(scale, shape.head_dim)
    with on_device(q):
        compiled = block_sparse_dkdv[(tiles_n * shape.kv_heads * shape.batch,)](
            source(q, tile.block_m, described),
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
            source(dout, tile.block_m, described),
            lse,
            row_delta,
            lists.offsets,
            lists.partial,
            lists.members,
            spans.ends.contiguous(),
            dk,
            dv,
            *outer_strides(q),
            *outer_strides(k),
            *outer_strides(v),
            *outer_strides(dout),
            *outer_strides(dk),
            *outer_strides(dv),
            shape.kv_heads,
            shape.group,
            tiles_n,
            shape.seq_q,
            shape.seq_k,
            factor,
            factor * LOG2_E,
            SPANS=lists.spans,
            RUNS=lists.runs,
            LATE=lists.late,
            CHECK_ROWS=not described and shape.seq_q % tile.block_m != 0,
            DESCRIPTORS=described,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "block_sparse_dkdv", tile, compiled)
    return dk, dv


def dq(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    row_delta: Tensor,
    spans: Spans,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """dQ like q. See `block_sparse_dq` for the traffic."""
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v, dout = (rows_contiguous(t) for t in (q, k, v, dout))
    check_spans(spans, shape, False)
    tile = within_blocks(tile or backward_tiles(shape.head_dim, capability(q), spans.step == 1)[1], spans)
    lists = listed(spans, shape, tile)
    described = use_descriptors(q, k, v, dout) if descriptors is None else descriptors
    result = like_rows(q)
    tiles_m = triton.cdiv(shape.seq_q, tile.block_m)
    factor = softmax_scale(scale, shape.head_dim)
    with on_device(q):
        compiled = block_sparse_dq[(tiles_m * shape.heads * shape.batch,)](
            source(q, tile.block_m, described),
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
            source(dout, tile.block_m, described),
            lse,
            row_delta,
            lists.offsets,
            lists.partial,
            lists.members,
            spans.ends.contiguous(),
            result,
            *outer_strides(q),
            *outer_strides(k),
            *outer_strides(v),
            *outer_strides(dout),
            *outer_strides(result),
            shape.heads,
            shape.group,
            tiles_m,
            shape.seq_q,
            shape.seq_k,
            factor,
            factor * LOG2_E,
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
    note_use(uses, "block_sparse_dq", tile, compiled)
    return result


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    spans: Spans,
    scale: float | None = None,
    *,
    tiles: tuple[Tile, Tile] | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) from what `block_sparse.forward` gave; `tiles` = (dK/dV's, dQ's) overrides the table."""
    dkdv_tile, dq_tile = tiles or (None, None)
    dout = rows_contiguous(dout)
    row_delta = delta(out, dout, uses=uses)
    given = (q, k, v, dout, lse, row_delta, spans, scale)
    dk, dv = dkdv(*given, tile=dkdv_tile, uses=uses)
    return dq(*given, tile=dq_tile, uses=uses), dk, dv
