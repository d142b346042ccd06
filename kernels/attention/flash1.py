"""FlashAttention's Algorithm 1 as written, in Triton: slow by design, to show the law N^2 d^2 / M.

Dao et al., "FlashAttention", arXiv 2205.14135. The outer loop is over blocks of K and V, the inner one over
blocks of Q, so that O, l and m of every row are read from device memory and written back for each block of
keys. One program owns a head, as one thread block did in the code of 2022.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .flash1_backward import backward
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
def _updated(  # type: ignore[no-untyped-def]
    old,
    old_sum,
    old_max,
    q_tile,
    k_tile,
    v_tile,
    start_m,
    start_n,
    seq_q,
    seq_k,
    scale_log2,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(O_i, l_i, m_i) after one more block of keys: Algorithm 1, lines 9 to 13. O_i stays normalised."""
    scores = tl.dot(q_tile, k_tile.T) * scale_log2
    keys = tl.arange(0, BLOCK_N)
    if CAUSAL:  # a row in range sees no key beyond N_k; rows out of range are not stored
        rows = tl.arange(0, BLOCK_M) + (start_m + seq_k - seq_q - start_n)
        seen = keys[None, :] <= rows[:, None]
    else:
        seen = (keys < seq_k - start_n)[None, :]
    scores = tl.where(seen, scores, float("-inf"))

    block_max = tl.max(scores, 1)
    new_max = tl.maximum(old_max, block_max)
    # A row that sees no key has -inf here, and -inf - -inf would be NaN.
    block_base = tl.where(block_max == float("-inf"), 0.0, block_max)
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores - block_base[:, None])
    of_old, of_block = tl.exp2(old_max - base), tl.exp2(block_max - base)
    new_sum = of_old * old_sum + of_block * tl.sum(weights, 1)
    product = tl.dot(weights.to(v_tile.dtype), v_tile)
    new = (old_sum * of_old)[:, None] * old + of_block[:, None] * product
    return new / tl.where(new_sum == 0.0, 1.0, new_sum)[:, None], new_sum, new_max


@triton.jit(do_not_specialize=["heads", "group"])  # type: ignore[untyped-decorator]
def flash1_forward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    partial,
    row_sum,
    row_max,
    out,
    stride_qb,
    stride_qh,
    stride_qn: tl.constexpr,
    stride_kb,
    stride_kh,
    stride_kn: tl.constexpr,
    stride_vb,
    stride_vh,
    stride_vn: tl.constexpr,
    stride_pb,
    stride_ph,
    stride_pn: tl.constexpr,
    stride_ob,
    stride_oh,
    stride_on: tl.constexpr,
    heads,
    group,
    seq_q,
    seq_k,
    scale_log2,
    CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """O = softmax(scale Q K^T) V of one head, with l = rowsum of exp and m = rowmax (m in base 2).

    Between blocks of keys O is in `partial`, in float32: rounded to 16 bits T_c times it would lose what the
    result may lose once. The last block of keys that a row sees writes `out` instead.

    Traffic per head, e bytes per element, T_c = ceil(N_k / BLOCK_N), r_j the Q rows that block j visits, as
    in `flash_dkdv`, and V = sum_j r_j:
    reads 2 N_k d e + V (d e + 4 d + 8), writes V (4 d + 8) + N_q (d e + 8) bytes.
    V = T_c N_q without a mask: 2 N d + T_c (3 N d + 4 N) + N d + 2 N elements, as the paper counts.
    """
    program = tl.program_id(0)
    batch = program // heads
    head = program % heads
    kv_head = head // group
    row_sum += program.to(tl.int64) * seq_q
    row_max += program.to(tl.int64) * seq_q

    for start_m in tl.range(0, seq_q, BLOCK_M):  # line 2: O = 0, l = 0, m = -inf
        rows = start_m + tl.arange(0, BLOCK_M)
        tl.store(row_sum + rows, tl.zeros([BLOCK_M], tl.float32), mask=rows < seq_q)
        tl.store(row_max + rows, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=rows < seq_q)
        zeros = tl.zeros([BLOCK_M, WIDTH], tl.float32)
        if keys_seen(start_m, seq_q, seq_k, CAUSAL, BLOCK_M) > 0:
            store_rows(
                partial, zeros, batch, head, start_m, seq_q, stride_pb, stride_ph, stride_pn,
                BLOCK_M, HEAD_DIM, WIDTH,
            )  # fmt: skip
        else:
            store_rows(
                out, zeros, batch, head, start_m, seq_q, stride_ob, stride_oh, stride_on,
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
        for start_m in tl.range(first_block(start_n, seq_q, seq_k, CAUSAL, BLOCK_M), seq_q, BLOCK_M):
            q_tile = load_again(
                q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn, BLOCK_M, HEAD_DIM, WIDTH
            )
            old = load_partial(
                partial, batch, head, start_m, seq_q, stride_pb, stride_ph, stride_pn,
                BLOCK_M, HEAD_DIM, WIDTH,
            )  # fmt: skip
            old_sum, old_max = load_sums(row_sum, row_max, start_m, seq_q, BLOCK_M)
            new, new_sum, new_max = _updated(
                old, old_sum, old_max, q_tile, k_tile, v_tile, start_m, start_n, seq_q, seq_k, scale_log2,
                CAUSAL, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            tl.debug_barrier()  # one thread may read what another writes: all have read, before one writes
            rows = start_m + tl.arange(0, BLOCK_M)
            tl.store(row_sum + rows, new_sum, mask=rows < seq_q)
            tl.store(row_max + rows, new_max, mask=rows < seq_q)
            if start_n + BLOCK_N < keys_seen(start_m, seq_q, seq_k, CAUSAL, BLOCK_M):
                store_rows(
                    partial, new, batch, head, start_m, seq_q, stride_pb, stride_ph, stride_pn,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
            else:
                store_rows(
                    out, new, batch, head, start_m, seq_q, stride_ob, stride_oh, stride_on,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
        tl.debug_barrier()  # the next block of keys reads what other threads have written


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(O, l, m): O like q; l and m float32 [B, h, N_q], m of the scores times log2 e. No autograd.

    `tile` overrides the table of `tiles.py`. ValueError for what the kernel cannot serve. See
    `flash1_forward` for the traffic.
    """
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    tile = tile or flash1_tiles(shape.head_dim, capability(q))[0]
    out = like_rows(q)
    partial = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    row_sum = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    row_max = torch.empty_like(row_sum)
    with on_device(q):
        compiled = flash1_forward[(shape.heads * shape.batch,)](
            q,
            k,
            v,
            partial,
            row_sum,
            row_max,
            out,
            *outer_strides(q),
            *outer_strides(k),
            *outer_strides(v),
            *outer_strides(partial),
            *outer_strides(out),
            shape.heads,
            shape.group,
            shape.seq_q,
            shape.seq_k,
            softmax_scale(scale, shape.head_dim) * LOG2_E,
            CAUSAL=causal,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "flash1_forward", tile, compiled)
    return out, row_sum, row_max


class _Flash1(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool,
        scale: float | None,
        tiles: Sequence[Sequence[int]] | None,
        uses: list[KernelUse] | None,
    ) -> Tensor:
        chosen = [Tile(*tile) for tile in tiles] if tiles else None
        out, row_sum, row_max = forward(q, k, v, causal, scale, tile=chosen[0] if chosen else None, uses=uses)
        ctx.save_for_backward(q, k, v, out, row_sum, row_max)
        ctx.causal, ctx.scale, ctx.tile, ctx.uses = causal, scale, chosen[1] if chosen else None, uses
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        q, k, v, out, row_sum, row_max = ctx.saved_tensors
        dq, dk, dv = backward(
            q, k, v, out, row_sum, row_max, dout, ctx.causal, ctx.scale, tile=ctx.tile, uses=ctx.uses
        )
        return dq, dk, dv, None, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    tiles: Sequence[Sequence[int]] | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N_q, d], float16 or bfloat16. Rows that see no key are 0.

    `tiles` = (the forward kernel's, the backward kernel's) overrides the table of `tiles.py`: the rows of
    K/V, `block_n`, are the paper's B_c = M / 4d. `uses` receives what the forward kernel used at call, and
    the backward kernel when autograd runs. ValueError for other dtypes, head dims outside 16..256 or no
    multiple of 8, and no CUDA device.
    """
    out: Tensor = _Flash1.apply(q, k, v, causal, scale, tiles, uses)  # type: ignore[no-untyped-call]
    return out
