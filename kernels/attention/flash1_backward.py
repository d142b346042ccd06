"""FlashAttention's Algorithm 4 as written, in Triton: the backward pass in the loop order of Algorithm 1.

arXiv 2205.14135, appendix B.4. dK and dV of a block of keys stay on chip; dQ of every row is read from device
memory and written back for each block of keys, and D = rowsum(dO o O) is computed anew each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flash1_rows import first_block, keys_seen, load_again, load_partial, load_sums
from .shape import checked_shape, softmax_scale
from .tile_io import (
    LOG2_E,
    capability,
    check_served,
    like_rows,
    note_use,
    on_device,
    outer_strides,
    padded_width,
    rows_contiguous,
    store_rows,
)
from .tiles import Tile, flash1_tiles
from .use import KernelUse


@triton.jit  # type: ignore[untyped-decorator]
def _gradients(  # type: ignore[no-untyped-def]
    dk_acc,
    dv_acc,
    q_tile,
    k_tile,
    v_tile,
    dout_tile,
    delta,
    row_sum,
    row_max,
    start_m,
    start_n,
    seq_q,
    seq_k,
    scale_log2,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(dK, dV, dS K) with one more block of rows: Algorithm 4, lines 11 to 22, without dropout and the scale.

    Everything transposed, [keys, rows], so that P^T and dS^T are left operands as they come.
    """
    # +inf makes P = 0 for rows beyond N_q and for rows that saw no key.
    row_max = tl.where(row_max == float("-inf"), float("inf"), row_max)
    share = 1.0 / tl.where(row_sum == 0.0, 1.0, row_sum)
    weights = tl.exp2(tl.dot(k_tile, q_tile.T) * scale_log2 - row_max[None, :]) * share[None, :]
    keys = tl.arange(0, BLOCK_N)
    if CAUSAL:  # a row in range sees no key beyond N_k; rows out of range have P = 0
        rows = tl.arange(0, BLOCK_M) + (start_m + seq_k - seq_q - start_n)
        seen = keys[:, None] <= rows[None, :]
    else:
        seen = (keys < seq_k - start_n)[:, None]
    weights = tl.where(seen, weights, 0.0)
    dv_acc = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_acc)
    d_scores = weights * (tl.dot(v_tile, dout_tile.T) - delta[None, :])
    d_scores = d_scores.to(q_tile.dtype)
    dk_acc = tl.dot(d_scores, q_tile, dk_acc)
    return dk_acc, dv_acc, tl.dot(d_scores.T, k_tile)


@triton.jit(do_not_specialize=["kv_heads", "group"])  # type: ignore[untyped-decorator]
def flash1_backward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    out,
    dout,
    row_sum,
    row_max,
    partial,
    dq,
    dk,
    dv,
    stride_qb,
    stride_qh,
    stride_qn: tl.constexpr,
    stride_kb,
    stride_kh,
    stride_kn: tl.constexpr,
    stride_vb,
    stride_vh,
    stride_vn: tl.constexpr,
    stride_ob,
    stride_oh,
    stride_on: tl.constexpr,
    stride_gb,
    stride_gh,
    stride_gn: tl.constexpr,
    stride_pb,
    stride_ph,
    stride_pn: tl.constexpr,
    stride_dqb,
    stride_dqh,
    stride_dqn: tl.constexpr,
    stride_dkb,
    stride_dkh,
    stride_dkn: tl.constexpr,
    stride_dvb,
    stride_dvh,
    stride_dvn: tl.constexpr,
    kv_heads,
    group,
    seq_q,
    seq_k,
    scale,
    scale_log2,
    CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dQ, dK and dV of one key/value head and its g query heads.

    Between blocks of keys dQ is in `partial`, in float32, as O is in `flash1_forward`. The last block of keys
    that a row sees writes `dq` instead.

    Traffic per key/value head, V the rows visited per query head, as in `flash1_forward`:
    reads 2 N_k d e + g V (3 d e + 4 d + 8), writes 4 N_k d e + g (4 V d + N_q d e) bytes.
    V = T_c N without a mask, and for g = 1 that is T_c (5 N d + 2 N) + 7 N d elements, as the paper counts.
    """
    program = tl.program_id(0)
    batch = program // kv_heads
    kv_head = program % kv_heads
    first_head = kv_head * group

    for start_n in tl.range(0, seq_k, BLOCK_N):  # line 5: dQ = 0, dK = 0, dV = 0
        zeros = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        store_rows(
            dk, zeros, batch, kv_head, start_n, seq_k, stride_dkb, stride_dkh, stride_dkn,
            BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        store_rows(
            dv, zeros, batch, kv_head, start_n, seq_k, stride_dvb, stride_dvh, stride_dvn,
            BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
    for head in tl.range(first_head, first_head + group):
        for start_m in tl.range(0, seq_q, BLOCK_M):
            zeros = tl.zeros([BLOCK_M, WIDTH], tl.float32)
            if keys_seen(start_m, seq_q, seq_k, CAUSAL, BLOCK_M) > 0:
                store_rows(
                    partial, zeros, batch, head, start_m, seq_q, stride_pb, stride_ph, stride_pn,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
            else:
                store_rows(
                    dq, zeros, batch, head, start_m, seq_q, stride_dqb, stride_dqh, stride_dqn,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
    tl.debug_barrier()

    for start_n in tl.range(0, seq_k, BLOCK_N):
        k_tile = load_again(
            k, batch, kv_head, start_n, seq_k, stride_kb, stride_kh, stride_kn, BLOCK_N, HEAD_DIM, WIDTH
        )
        v_tile = load_again(
            v, batch, kv_head, start_n, seq_k, stride_vb, stride_vh, stride_vn, BLOCK_N, HEAD_DIM, WIDTH
        )
        dk_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        dv_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        for head in tl.range(first_head, first_head + group):
            first = (batch * kv_heads * group + head).to(tl.int64) * seq_q
            for start_m in tl.range(first_block(start_n, seq_q, seq_k, CAUSAL, BLOCK_M), seq_q, BLOCK_M):
                q_tile = load_again(
                    q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
                dout_tile = load_again(
                    dout, batch, head, start_m, seq_q, stride_gb, stride_gh, stride_gn,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
                out_tile = load_again(
                    out, batch, head, start_m, seq_q, stride_ob, stride_oh, stride_on,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
                delta = tl.sum(dout_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
                sums, maxima = load_sums(row_sum + first, row_max + first, start_m, seq_q, BLOCK_M)
                dk_acc, dv_acc, product = _gradients(
                    dk_acc, dv_acc, q_tile, k_tile, v_tile, dout_tile, delta, sums, maxima,
                    start_m, start_n, seq_q, seq_k, scale_log2, CAUSAL, BLOCK_M, BLOCK_N,
                )  # fmt: skip
                old = load_partial(
                    partial, batch, head, start_m, seq_q, stride_pb, stride_ph, stride_pn,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
                new = old + scale * product
                tl.debug_barrier()  # one thread may read what another writes: all have read, before
                if start_n + BLOCK_N < keys_seen(start_m, seq_q, seq_k, CAUSAL, BLOCK_M):
                    store_rows(
                        partial, new, batch, head, start_m, seq_q, stride_pb, stride_ph, stride_pn,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
                else:
                    store_rows(
                        dq, new, batch, head, start_m, seq_q, stride_dqb, stride_dqh, stride_dqn,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
        store_rows(
            dk, dk_acc * scale, batch, kv_head, start_n, seq_k, stride_dkb, stride_dkh, stride_dkn,
            BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        store_rows(
            dv, dv_acc, batch, kv_head, start_n, seq_k, stride_dvb, stride_dvh, stride_dvn,
            BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        tl.debug_barrier()  # the next block of keys reads the dQ that other threads have written


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    row_sum: Tensor,
    row_max: Tensor,
    dout: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) from what `flash1.forward` gave; dK and dV summed over the query heads of each group.

    `tile` overrides the table of `tiles.py`. See `flash1_backward` for the traffic.
    """
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v, out, dout = (rows_contiguous(t) for t in (q, k, v, out, dout))
    tile = tile or flash1_tiles(shape.head_dim, capability(q))[1]
    dq, dk, dv = like_rows(q), like_rows(k), like_rows(v)
    partial = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    factor = softmax_scale(scale, shape.head_dim)
    with on_device(q):
        compiled = flash1_backward[(shape.kv_heads * shape.batch,)](
            q,
            k,
            v,
            out,
            dout,
            row_sum,
            row_max,
            partial,
            dq,
            dk,
            dv,
            *outer_strides(q),
            *outer_strides(k),
            *outer_strides(v),
            *outer_strides(out),
            *outer_strides(dout),
            *outer_strides(partial),
            *outer_strides(dq),
            *outer_strides(dk),
            *outer_strides(dv),
            shape.kv_heads,
            shape.group,
            shape.seq_q,
            shape.seq_k,
            factor,
            factor * LOG2_E,
            CAUSAL=causal,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "flash1_backward", tile, compiled)
    return dq, dk, dv
