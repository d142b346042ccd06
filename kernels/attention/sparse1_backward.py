"""The backward of `sparse1`, in Triton: Algorithm 4 of FlashAttention, with a check of the mask in its loop.

arXiv 2205.14135, section 3.3 and appendix B.4. dK and dV of a block of keys stay on chip; dQ of every row
that sees it is read from device memory and written back.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flash1_backward import _gradients
from .flash1_rows import load_again, load_partial, load_sums
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
from .tiles import Tile, sparse1_tiles, within
from .use import KernelUse


@triton.jit(do_not_specialize=["kv_heads", "group"])  # type: ignore[untyped-decorator]
def sparse1_backward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    out,
    dout,
    row_sum,
    row_max,
    mask,
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
    seq,
    scale,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dQ, dK and dV of one key/value head and its g query heads, over visible blocks.

    `mask`, and `partial` (of dQ here), as in `sparse1_forward`.

    Traffic per key/value head, with V, T_r and T_c as in `sparse1_forward`:
    reads 2 N d e + g (V (3 d e + 4 d + 8) + T_r T_c), writes 4 N d e + g (4 V d + N d e) bytes.
    V = s T_c N for a share s, and for g = 1 that is s T_c (5 N d + 2 N) + 7 N d elements, and the mask.
    """
    program = tl.program_id(0)
    batch = program // kv_heads
    kv_head = program % kv_heads
    first_head = kv_head * group
    blocks = tl.cdiv(seq, BLOCK)

    for start_n in tl.range(0, seq, BLOCK_N):  # line 5: dQ = 0, dK = 0, dV = 0
        zeros = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        store_rows(
            dk, zeros, batch, kv_head, start_n, seq, stride_dkb, stride_dkh, stride_dkn,
            BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        store_rows(
            dv, zeros, batch, kv_head, start_n, seq, stride_dvb, stride_dvh, stride_dvn,
            BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
    for head in tl.range(first_head, first_head + group):
        for start_m in tl.range(0, seq, BLOCK_M):
            store_rows(
                partial, tl.zeros([BLOCK_M, WIDTH], tl.float32), batch, head, start_m, seq,
                stride_pb, stride_ph, stride_pn, BLOCK_M, HEAD_DIM, WIDTH,
            )  # fmt: skip
    tl.debug_barrier()

    for start_n in tl.range(0, seq, BLOCK_N):
        k_tile = load_again(
            k, batch, kv_head, start_n, seq, stride_kb, stride_kh, stride_kn, BLOCK_N, HEAD_DIM, WIDTH
        )
        v_tile = load_again(
            v, batch, kv_head, start_n, seq, stride_vb, stride_vh, stride_vn, BLOCK_N, HEAD_DIM, WIDTH
        )
        dk_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        dv_acc = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        seen = mask + start_n // BLOCK * blocks
        end = tl.minimum((start_n // BLOCK + 1) * BLOCK, seq)
        for head in tl.range(first_head, first_head + group):
            first = (batch * kv_heads * group + head).to(tl.int64) * seq
            for start_m in tl.range(0, seq, BLOCK_M):
                state = tl.load(seen + start_m // BLOCK)
                if state != 0:
                    q_tile = load_again(
                        q, batch, head, start_m, seq, stride_qb, stride_qh, stride_qn,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
                    dout_tile = load_again(
                        dout, batch, head, start_m, seq, stride_gb, stride_gh, stride_gn,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
                    out_tile = load_again(
                        out, batch, head, start_m, seq, stride_ob, stride_oh, stride_on,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
                    delta = tl.sum(dout_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
                    sums, maxima = load_sums(row_sum + first, row_max + first, start_m, seq, BLOCK_M)
                    dk_acc, dv_acc, product = _gradients(
                        dk_acc, dv_acc, q_tile, k_tile, v_tile, dout_tile, delta, sums, maxima,
                        start_m, start_n, seq, seq, scale_log2, False, BLOCK_M, BLOCK_N,
                    )  # fmt: skip
                    old = load_partial(
                        partial, batch, head, start_m, seq, stride_pb, stride_ph, stride_pn,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
                    new = old + scale * product
                    tl.debug_barrier()  # one thread may read what another writes: all have read, before
                    if state == 1 or start_n + BLOCK_N < end:
                        store_rows(
                            partial, new, batch, head, start_m, seq, stride_pb, stride_ph, stride_pn,
                            BLOCK_M, HEAD_DIM, WIDTH,
                        )  # fmt: skip
                    else:
                        store_rows(
                            dq, new, batch, head, start_m, seq, stride_dqb, stride_dqh, stride_dqn,
                            BLOCK_M, HEAD_DIM, WIDTH,
                        )  # fmt: skip
        store_rows(
            dk, dk_acc * scale, batch, kv_head, start_n, seq, stride_dkb, stride_dkh, stride_dkn,
            BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        store_rows(
            dv, dv_acc, batch, kv_head, start_n, seq, stride_dvb, stride_dvh, stride_dvn,
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
    seen: Tensor,
    block: int,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) from what `sparse1.forward` gave; dK and dV summed over the query heads of each group.

    `tile` overrides the table of `tiles.py`, sides cut to `block`. See `sparse1_backward` for the traffic.
    """
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v, out, dout = (rows_contiguous(t) for t in (q, k, v, out, dout))
    tile = within(tile or sparse1_tiles(shape.head_dim, capability(q))[1], block)
    dq, dk, dv = like_rows(q), like_rows(k), like_rows(v)
    partial = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    factor = softmax_scale(scale, shape.head_dim)
    with on_device(q):
        compiled = sparse1_backward[(shape.kv_heads * shape.batch,)](
            q,
            k,
            v,
            out,
            dout,
            row_sum,
            row_max,
            seen,
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
            factor,
            factor * LOG2_E,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK=block,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "sparse1_backward", tile, compiled)
    return dq, dk, dv
