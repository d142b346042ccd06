"""FlashAttention-2 backward in Triton, by recomputation, in three kernels and without atomics.

arXiv 2307.08691, Algorithm 2, split: D = rowsum(dO o O); dK and dV with the loop over Q inside; dQ with the
loop over K and V inside. Seven matmuls (14 N^2 d FLOPs) instead of five; each run gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from .tiles import Tile, backward_tiles, delta_tile
from .use import KernelUse


@triton.jit(do_not_specialize=["heads", "tiles_m"])  # type: ignore[untyped-decorator]
def flash_delta(  # type: ignore[no-untyped-def]
    out,
    dout,
    delta,
    stride_ob,
    stride_oh,
    stride_on,
    stride_gb,
    stride_gh,
    stride_gn,
    heads,
    tiles_m,
    seq_q,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """D = rowsum(dO o O) in float32 for one block of rows of one head.

    Traffic per head: reads 2 N_q d e bytes, writes 4 N_q bytes.
    """
    program = tl.program_id(0)
    start_m = program % tiles_m * BLOCK_M
    batch = program // tiles_m // heads
    head = program // tiles_m % heads
    out_tile = load_rows(
        out, batch, head, start_m, seq_q, stride_ob, stride_oh, stride_on,
        False, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    dout_tile = load_rows(
        dout, batch, head, start_m, seq_q, stride_gb, stride_gh, stride_gn,
        False, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    total = tl.sum(out_tile.to(tl.float32) * dout_tile.to(tl.float32), 1)
    rows = start_m + tl.arange(0, BLOCK_M)
    tl.store(delta + (program // tiles_m).to(tl.int64) * seq_q + rows, total, mask=rows < seq_q)


@triton.jit
def _load_statistics(lse, delta, rows, seq_q):  # type: ignore[no-untyped-def]
    """(LSE in base 2, D) of rows; LSE +inf makes P = 0 for rows beyond N_q and for rows that saw no key."""
    log_sum = tl.load(lse + rows, mask=rows < seq_q, other=float("inf"))
    log_sum = tl.where(log_sum == float("-inf"), float("inf"), log_sum) * 1.4426950408889634
    return log_sum, tl.load(delta + rows, mask=rows < seq_q, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _dkdv_blocks(  # type: ignore[no-untyped-def]
    dk_acc,
    dv_acc,
    k_tile,
    v_tile,
    q,
    dout,
    lse,
    delta,
    batch,
    head,
    start_n,
    lo,
    hi,
    seq_q,
    seq_k,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_gb,
    stride_gh,
    stride_gn,
    scale_log2,
    MASKED: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The blocks of Q and dO rows that start in [lo, hi), for one query head. MASKED: on the diagonal."""
    for start_m in tl.range(lo, hi, BLOCK_M):
        q_tile = load_rows(
            q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn,
            DESCRIPTORS, CHECK_ROWS, BLOCK_M, HEAD_DIM, WIDTH,
        )  # fmt: skip
        rows = start_m + tl.arange(0, BLOCK_M)
        log_sum, row_delta = _load_statistics(lse, delta, rows, seq_q)
        # Everything transposed, [keys, rows], so that P^T and dS^T are the left operands as they come.
        weights = tl.exp2(tl.dot(k_tile, q_tile.T) * scale_log2 - log_sum[None, :])
        if MASKED:
            keys = tl.arange(0, BLOCK_N) + (start_n - start_m - seq_k + seq_q)
            weights = tl.where(keys[:, None] <= tl.arange(0, BLOCK_M)[None, :], weights, 0.0)
        dout_tile = load_rows(
            dout, batch, head, start_m, seq_q, stride_gb, stride_gh, stride_gn,
            DESCRIPTORS, CHECK_ROWS, BLOCK_M, HEAD_DIM, WIDTH,
        )  # fmt: skip
        dv_acc = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_acc)
        d_weights = tl.dot(v_tile, dout_tile.T)
        d_scores = weights * (d_weights - row_delta[None, :])
        dk_acc = tl.dot(d_scores.to(q_tile.dtype), q_tile, dk_acc)
    return dk_acc, dv_acc


@triton.jit(do_not_specialize=["kv_heads", "group", "tiles_n"])  # type: ignore[untyped-decorator]
def flash_dkdv(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    dout,
    lse,
    delta,
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
    CAUSAL: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dV = P^T dO and dK = scale dS^T Q for one block of keys of one key/value head, over its g query heads.

    Traffic per key/value head, T_c = ceil(N_k / BLOCK_N), r_j the Q rows that block j visits:
    reads 2 N_k d e + g sum_j r_j (2 d e + 8) bytes, writes 2 N_k d e bytes.
    r_j = N_q without a mask. Causal, with s = N_k - N_q: the first block visited holds the first row that
    sees key j BLOCK_N, so r_j = N_q - BLOCK_M floor(max(0, j BLOCK_N - s) / BLOCK_M).
    """
    program = tl.program_id(0)
    start_n = program % tiles_n * BLOCK_N  # causal: the first block has the most rows: longest first
    batch = program // tiles_n // kv_heads
    kv_head = program // tiles_n % kv_heads

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

    lo = 0
    full = 0
    if CAUSAL:
        shift = seq_k - seq_q
        last_key = tl.minimum(start_n + BLOCK_N, seq_k) - 1
        lo = tl.maximum(start_n - shift, 0) // BLOCK_M * BLOCK_M
        full = (tl.maximum(last_key - shift, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    for member in tl.range(0, group):
        head = kv_head * group + member
        first = ((batch * kv_heads * group) + head).to(tl.int64) * seq_q
        if CAUSAL:
            dk_acc, dv_acc = _dkdv_blocks(
                dk_acc, dv_acc, k_tile, v_tile, q, dout, lse + first, delta + first, batch, head, start_n,
                lo, tl.minimum(full, seq_q), seq_q, seq_k,
                stride_qb, stride_qh, stride_qn, stride_gb, stride_gh, stride_gn, scale_log2,
                True, CHECK_ROWS, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        dk_acc, dv_acc = _dkdv_blocks(
            dk_acc, dv_acc, k_tile, v_tile, q, dout, lse + first, delta + first, batch, head, start_n,
            full, seq_q, seq_q, seq_k,
            stride_qb, stride_qh, stride_qn, stride_gb, stride_gh, stride_gn, scale_log2,
            False, CHECK_ROWS, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip

    store_rows(
        dv,
        dv_acc,
        batch,
        kv_head,
        start_n,
        seq_k,
        stride_dvb,
        stride_dvh,
        stride_dvn,
        BLOCK_N,
        HEAD_DIM,
        WIDTH,
    )
    store_rows(
        dk, dk_acc * scale, batch, kv_head, start_n, seq_k, stride_dkb, stride_dkh, stride_dkn,
        BLOCK_N, HEAD_DIM, WIDTH,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _dq_blocks(  # type: ignore[no-untyped-def]
    acc,
    q_tile,
    dout_tile,
    log_sum,
    row_delta,
    k,
    v,
    batch,
    kv_head,
    start_m,
    lo,
    hi,
    seq_q,
    seq_k,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    scale_log2,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The K/V blocks that start in [lo, hi). MASKED blocks hold a key beyond N_k or above the diagonal."""
    for start_n in tl.range(lo, hi, BLOCK_N):
        k_tile = load_rows(
            k, batch, kv_head, start_n, seq_k, stride_kb, stride_kh, stride_kn,
            DESCRIPTORS, MASKED, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        v_tile = load_rows(
            v, batch, kv_head, start_n, seq_k, stride_vb, stride_vh, stride_vn,
            DESCRIPTORS, MASKED, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        weights = tl.exp2(tl.dot(q_tile, k_tile.T) * scale_log2 - log_sum[:, None])
        if MASKED:
            keys = tl.arange(0, BLOCK_N)
            if CAUSAL:  # a row in range sees no key beyond N_k; rows out of range are not stored
                rows = tl.arange(0, BLOCK_M) + (start_m + seq_k - seq_q - start_n)
                seen = keys[None, :] <= rows[:, None]
            else:
                seen = (keys < seq_k - start_n)[None, :]
            weights = tl.where(seen, weights, 0.0)
        d_weights = tl.dot(dout_tile, v_tile.T)
        d_scores = weights * (d_weights - row_delta[:, None])
        acc = tl.dot(d_scores.to(k_tile.dtype), k_tile, acc)
    return acc


@triton.jit(do_not_specialize=["heads", "group", "tiles_m"])  # type: ignore[untyped-decorator]
def flash_dq(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    dout,
    lse,
    delta,
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
    CAUSAL: tl.constexpr,
    EVEN_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dQ = scale dS K for one block of Q rows of one head.

    Traffic per head: reads 2 N_q d e + 8 N_q + sum_i 2 c_i d e bytes, writes N_q d e bytes, with the K/V
    rows c_i that block i visits as in `flash_forward` (with this kernel's own block sizes).
    """
    program = tl.program_id(0)
    tile = program % tiles_m
    if CAUSAL:  # the longest first
        tile = tiles_m - 1 - tile
    batch = program // tiles_m // heads
    head = program // tiles_m % heads
    kv_head = head // group
    start_m = tile * BLOCK_M
    first = (program // tiles_m).to(tl.int64) * seq_q

    q_tile = load_rows(
        q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    dout_tile = load_rows(
        dout, batch, head, start_m, seq_q, stride_gb, stride_gh, stride_gn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    log_sum, row_delta = _load_statistics(lse + first, delta + first, start_m + tl.arange(0, BLOCK_M), seq_q)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)

    full = seq_k // BLOCK_N * BLOCK_N
    end = seq_k
    if CAUSAL:
        shift = seq_k - seq_q
        full = tl.maximum(start_m + shift + 1, 0) // BLOCK_N * BLOCK_N
        end = tl.maximum(tl.minimum(start_m + BLOCK_M, seq_q) + shift, 0)
        full = tl.minimum(full, end)
    acc = _dq_blocks(
        acc, q_tile, dout_tile, log_sum, row_delta, k, v, batch, kv_head, start_m, 0, full, seq_q, seq_k,
        stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
        False, CAUSAL, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if CAUSAL or not EVEN_N:
        acc = _dq_blocks(
            acc, q_tile, dout_tile, log_sum, row_delta, k, v, batch, kv_head, start_m, full, end,
            seq_q, seq_k,
            stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
            True, CAUSAL, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    store_rows(
        dq,
        acc * scale,
        batch,
        head,
        start_m,
        seq_q,
        stride_dqb,
        stride_dqh,
        stride_dqn,
        BLOCK_M,
        HEAD_DIM,
        WIDTH,
    )


def delta(out: Tensor, dout: Tensor, *, uses: list[KernelUse] | None = None) -> Tensor:
    """D = rowsum(dO o O), float32 [B, h, N_q]."""
    out, dout = rows_contiguous(out), rows_contiguous(dout)
    batch, heads, seq_q, head_dim = out.shape
    tile = delta_tile(head_dim)
    result = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
    tiles_m = triton.cdiv(seq_q, tile.block_m)
    with on_device(out):
        compiled = flash_delta[(tiles_m * heads * batch,)](
            out,
            dout,
            result,
            *outer_strides(out),
            *outer_strides(dout),
            heads,
            tiles_m,
            seq_q,
            HEAD_DIM=head_dim,
            WIDTH=padded_width(head_dim),
            BLOCK_M=tile.block_m,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "flash_delta", tile, compiled)
    return result


def dkdv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    row_delta: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(dK, dV) like k and v, summed over the query heads of each group. See `flash_dkdv` for the traffic."""
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v, dout = (rows_contiguous(t) for t in (q, k, v, dout))
    tile = tile or backward_tiles(shape.head_dim, capability(q), causal)[0]
    described = use_descriptors(q, k, v, dout) if descriptors is None else descriptors
    dk, dv = like_rows(k), like_rows(v)
    tiles_n = triton.cdiv(shape.seq_k, tile.block_n)
    factor = softmax_scale(scale, shape.head_dim)
    with on_device(q):
        compiled = flash_dkdv[(tiles_n * shape.kv_heads * shape.batch,)](
            source(q, tile.block_m, described),
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
            source(dout, tile.block_m, described),
            lse,
            row_delta,
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
            CAUSAL=causal,
            CHECK_ROWS=not described and shape.seq_q % tile.block_m != 0,
            DESCRIPTORS=described,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "flash_dkdv", tile, compiled)
    return dk, dv


def dq(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    row_delta: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """dQ like q. See `flash_dq` for the traffic."""
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v, dout = (rows_contiguous(t) for t in (q, k, v, dout))
    tile = tile or backward_tiles(shape.head_dim, capability(q), causal)[1]
    described = use_descriptors(q, k, v, dout) if descriptors is None else descriptors
    result = like_rows(q)
    tiles_m = triton.cdiv(shape.seq_q, tile.block_m)
    factor = softmax_scale(scale, shape.head_dim)
    with on_device(q):
        compiled = flash_dq[(tiles_m * shape.heads * shape.batch,)](
            source(q, tile.block_m, described),
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
            source(dout, tile.block_m, described),
            lse,
            row_delta,
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
            CAUSAL=causal,
            EVEN_N=shape.seq_k % tile.block_n == 0,
            DESCRIPTORS=described,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "flash_dq", tile, compiled)
    return result


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    tiles: tuple[Tile, Tile] | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) from what `flash.forward` gave; `tiles` = (dK/dV's, dQ's) overrides `tiles.py`'s table."""
    dkdv_tile, dq_tile = tiles or (None, None)
    dout = rows_contiguous(dout)
    row_delta = delta(out, dout, uses=uses)
    dk, dv = dkdv(q, k, v, dout, lse, row_delta, causal, scale, tile=dkdv_tile, uses=uses)
    return dq(q, k, v, dout, lse, row_delta, causal, scale, tile=dq_tile, uses=uses), dk, dv
