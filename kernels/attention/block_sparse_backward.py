"""Backward of block-sparse attention in Triton, by recomputation, in three kernels and without atomics.

As `flash_backward`: D = rowsum(dO o O); dK and dV along the list of the blocks of queries that see a block of
keys; dQ along the list of the blocks of keys that a block of queries sees. Each run gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from .block_lists import BlockLists, walk
from .flash_backward import _load_statistics, delta
from .shape import checked_shape, softmax_scale
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
from .tiles import Tile, backward_tiles, within
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
    rows,
    batch,
    head,
    first,
    steps,
    seq,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_gb,
    stride_gh,
    stride_gn,
    scale_log2,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """`steps` tiles of Q and dO, of the blocks that `rows` lists from `first` on, for one query head.

    Rows beyond N need no mask: their LSE makes P = 0. The next block is read a turn early, as in
    `block_sparse`.
    """
    TILES: tl.constexpr = BLOCK // BLOCK_M
    row = tl.load(rows + first, mask=steps > 0, other=0)
    for step in tl.range(0, steps):
        following = tl.load(rows + first + (step + 1) // TILES, mask=step + 1 < steps, other=0)
        start_m = row * BLOCK + step % TILES * BLOCK_M
        q_tile = load_rows(
            q, batch, head, start_m, seq, stride_qb, stride_qh, stride_qn,
            DESCRIPTORS, not EVEN, BLOCK_M, HEAD_DIM, WIDTH,
        )  # fmt: skip
        log_sum, row_delta = _load_statistics(lse, delta, start_m + tl.arange(0, BLOCK_M), seq)
        # Everything transposed, [keys, rows], so that P^T and dS^T are the left operands as they come.
        weights = tl.exp2(tl.dot(k_tile, q_tile.T) * scale_log2 - log_sum[None, :])
        dout_tile = load_rows(
            dout, batch, head, start_m, seq, stride_gb, stride_gh, stride_gn,
            DESCRIPTORS, not EVEN, BLOCK_M, HEAD_DIM, WIDTH,
        )  # fmt: skip
        dv_acc = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_acc)
        d_weights = tl.dot(v_tile, dout_tile.T)
        d_scores = weights * (d_weights - row_delta[None, :])
        dk_acc = tl.dot(d_scores.to(q_tile.dtype), q_tile, dk_acc)
        row = following
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
    rows,
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
    seq,
    scale,
    scale_log2,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dV = P^T dO and dK = scale dS^T Q for one tile of keys of one key/value head, over its g query heads.

    Traffic per key/value head, r_j the Q rows in the blocks that see tile j, j < ceil(N / BLOCK_N):
    reads 2 N d e + g sum_j r_j (2 d e + 8) bytes, writes 2 N d e bytes. Lists: reads 8 bytes for each tile j,
    4 more where BLOCK does not divide N, and 4 for each of the tiles of rows that it visits.
    """
    program = tl.program_id(0)
    start_n = program % tiles_n * BLOCK_N
    batch = program // tiles_n // kv_heads
    kv_head = program // tiles_n % kv_heads
    first, steps = walk(offsets, rows, start_n // BLOCK, seq, EVEN, BLOCK, BLOCK_M)

    k_tile = load_rows(
        k, batch, kv_head, start_n, seq, stride_kb, stride_kh, stride_kn,
        DESCRIPTORS, True, BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip
    v_tile = load_rows(
        v, batch, kv_head, start_n, seq, stride_vb, stride_vh, stride_vn,
        DESCRIPTORS, True, BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip
    dk_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    for member in tl.range(0, group):
        head = kv_head * group + member
        start = ((batch * kv_heads * group) + head).to(tl.int64) * seq
        dk_acc, dv_acc = _listed_rows(
            dk_acc, dv_acc, k_tile, v_tile, q, dout, lse + start, delta + start, rows, batch, head,
            first, steps, seq, stride_qb, stride_qh, stride_qn, stride_gb, stride_gh, stride_gn, scale_log2,
            EVEN, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK, BLOCK_M,
        )  # fmt: skip

    store_rows(
        dv, dv_acc, batch, kv_head, start_n, seq, stride_dvb, stride_dvh, stride_dvn,
        BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip
    store_rows(
        dk, dk_acc * scale, batch, kv_head, start_n, seq, stride_dkb, stride_dkh, stride_dkn,
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
    columns,
    batch,
    kv_head,
    first,
    steps,
    seq,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    scale_log2,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dS K over `steps` tiles of K and V, of the blocks that `columns` lists from `first` on."""
    TILES: tl.constexpr = BLOCK // BLOCK_N
    column = tl.load(columns + first, mask=steps > 0, other=0)
    for step in tl.range(0, steps):
        following = tl.load(columns + first + (step + 1) // TILES, mask=step + 1 < steps, other=0)
        start_n = column * BLOCK + step % TILES * BLOCK_N
        k_tile = load_rows(
            k, batch, kv_head, start_n, seq, stride_kb, stride_kh, stride_kn,
            DESCRIPTORS, not EVEN, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        v_tile = load_rows(
            v, batch, kv_head, start_n, seq, stride_vb, stride_vh, stride_vn,
            DESCRIPTORS, not EVEN, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        weights = tl.exp2(tl.dot(q_tile, k_tile.T) * scale_log2 - log_sum[:, None])
        if not EVEN:
            weights = tl.where((tl.arange(0, BLOCK_N) < seq - start_n)[None, :], weights, 0.0)
        d_weights = tl.dot(dout_tile, v_tile.T)
        d_scores = weights * (d_weights - row_delta[:, None])
        acc = tl.dot(d_scores.to(k_tile.dtype), k_tile, acc)
        column = following
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
    columns,
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
    seq,
    scale,
    scale_log2,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dQ = scale dS K for one tile of Q rows of one head.

    Traffic per head: reads 2 N d e + 8 N + sum_i 2 c_i d e bytes, writes N d e bytes, with c_i and the lists
    as in `block_sparse_forward` (with this kernel's own tile).
    """
    program = tl.program_id(0)
    batch = program // tiles_m // heads
    head = program // tiles_m % heads
    kv_head = head // group
    start_m = program % tiles_m * BLOCK_M
    start = (program // tiles_m).to(tl.int64) * seq
    first, steps = walk(offsets, columns, start_m // BLOCK, seq, EVEN, BLOCK, BLOCK_N)

    q_tile = load_rows(
        q, batch, head, start_m, seq, stride_qb, stride_qh, stride_qn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    dout_tile = load_rows(
        dout, batch, head, start_m, seq, stride_gb, stride_gh, stride_gn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    log_sum, row_delta = _load_statistics(lse + start, delta + start, start_m + tl.arange(0, BLOCK_M), seq)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    acc = _listed_keys(
        acc, q_tile, dout_tile, log_sum, row_delta, k, v, columns, batch, kv_head, first, steps, seq,
        stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
        EVEN, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK, BLOCK_N,
    )  # fmt: skip
    store_rows(
        dq, acc * scale, batch, head, start_m, seq, stride_dqb, stride_dqh, stride_dqn,
        BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip


def dkdv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    row_delta: Tensor,
    lists: BlockLists,
    block: int,
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
    tile = within(tile or backward_tiles(shape.head_dim, capability(q), False)[0], block)
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
            *lists.rows,
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
            shape.seq_k,
            factor,
            factor * LOG2_E,
            EVEN=shape.seq_k % block == 0,
            DESCRIPTORS=described,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK=block,
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
    lists: BlockLists,
    block: int,
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
    tile = within(tile or backward_tiles(shape.head_dim, capability(q), False)[1], block)
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
            *lists.columns,
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
            factor,
            factor * LOG2_E,
            EVEN=shape.seq_k % block == 0,
            DESCRIPTORS=described,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK=block,
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
    lists: BlockLists,
    block: int,
    scale: float | None = None,
    *,
    tiles: tuple[Tile, Tile] | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) from what `block_sparse.forward` gave; `tiles` = (dK/dV's, dQ's) overrides the table."""
    dkdv_tile, dq_tile = tiles or (None, None)
    dout = rows_contiguous(dout)
    row_delta = delta(out, dout, uses=uses)
    given = (q, k, v, dout, lse, row_delta, lists, block, scale)
    dk, dv = dkdv(*given, tile=dkdv_tile, uses=uses)
    return dq(*given, tile=dq_tile, uses=uses), dk, dv
