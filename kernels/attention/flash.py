"""FlashAttention-2 forward in Triton, and attention that autograd can differentiate.

Dao, "FlashAttention-2", arXiv 2307.08691, Algorithm 1: the outer loop over blocks of Q is the grid, the inner
loop over blocks of K and V is the program's, with the online softmax of Milakov and Gimelshein.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .flash_backward import backward
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
from .tiles import Tile, forward_tile
from .use import KernelUse


@triton.jit  # type: ignore[untyped-decorator]
def _forward_blocks(  # type: ignore[no-untyped-def]
    acc,
    row_max,
    row_sum,
    q_tile,
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
        scores = tl.dot(q_tile, k_tile.T)
        if MASKED:
            keys = tl.arange(0, BLOCK_N)
            if CAUSAL:  # a row in range sees no key beyond N_k; rows out of range are not stored
                rows = tl.arange(0, BLOCK_M) + (start_m + seq_k - seq_q - start_n)
                seen = keys[None, :] <= rows[:, None]
            else:
                seen = (keys < seq_k - start_n)[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        base = new_max
        if MASKED:  # a row that has seen no key yet: -inf - -inf would be NaN
            base = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores * scale_log2 - base[:, None])
        rescale = tl.exp2(row_max - base)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None]
        v_tile = load_rows(
            v, batch, kv_head, start_n, seq_k, stride_vb, stride_vh, stride_vn,
            DESCRIPTORS, MASKED, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["heads", "group", "tiles_m"])  # type: ignore[untyped-decorator]
def flash_forward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
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
    CAUSAL: tl.constexpr,
    EVEN_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """O = softmax(scale Q K^T) V and LSE = log sum exp(scale Q K^T) for one block of Q rows of one head.

    Traffic per head, e bytes per element, blocks i < ceil(N_q / BLOCK_M), c_i the K/V rows block i visits:
    reads N_q d e + sum_i 2 c_i d e bytes, writes N_q d e + 4 N_q bytes.
    c_i = N_k without a mask. Causal, with s = N_k - N_q, the block's last row sees
    k_i = max(0, min((i+1) BLOCK_M, N_q) + s) keys, and c_i = min(N_k, BLOCK_N ceil(k_i / BLOCK_N)).
    Query heads do not share tiles: with grouped heads all counts stay per query head.
    """
    program = tl.program_id(0)
    tile = program % tiles_m
    if CAUSAL:  # the longest first
        tile = tiles_m - 1 - tile
    batch = program // tiles_m // heads
    head = program // tiles_m % heads
    kv_head = head // group
    start_m = tile * BLOCK_M

    q_tile = load_rows(
        q, batch, head, start_m, seq_q, stride_qb, stride_qh, stride_qn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)

    full = seq_k // BLOCK_N * BLOCK_N
    end = seq_k
    if CAUSAL:
        shift = seq_k - seq_q
        full = tl.maximum(start_m + shift + 1, 0) // BLOCK_N * BLOCK_N
        end = tl.maximum(tl.minimum(start_m + BLOCK_M, seq_q) + shift, 0)
        full = tl.minimum(full, end)
    acc, row_max, row_sum = _forward_blocks(
        acc, row_max, row_sum, q_tile, k, v, batch, kv_head, start_m, 0, full, seq_q, seq_k,
        stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
        False, CAUSAL, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if CAUSAL or not EVEN_N:
        acc, row_max, row_sum = _forward_blocks(
            acc, row_max, row_sum, q_tile, k, v, batch, kv_head, start_m, full, end, seq_q, seq_k,
            stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
            True, CAUSAL, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip

    total = tl.where(row_sum == 0.0, 1.0, row_sum)
    rows = start_m + tl.arange(0, BLOCK_M)
    log_sum = (row_max + tl.log2(total)) * 0.6931471805599453
    tl.store(lse + (program // tiles_m).to(tl.int64) * seq_q + rows, log_sum, mask=rows < seq_q)
    store_rows(
        out, acc / total[:, None], batch, head, start_m, seq_q, stride_ob, stride_oh, stride_on,
        BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE): O like q, LSE float32 [B, h, N_q]. No autograd.

    `tile` overrides the table of `tiles.py`; `descriptors` forces TMA on or off (default: where it works).
    ValueError for what the kernel cannot serve. See `flash_forward` for the traffic.
    """
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    tile = tile or forward_tile(shape.head_dim, capability(q), causal)
    described = use_descriptors(q, k, v) if descriptors is None else descriptors
    out = like_rows(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tiles_m = triton.cdiv(shape.seq_q, tile.block_m)
    with on_device(q):
        compiled = flash_forward[(tiles_m * shape.heads * shape.batch,)](
            source(q, tile.block_m, described),
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
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
    note_use(uses, "flash_forward", tile, compiled)
    return out, lse


class _Flash(torch.autograd.Function):
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
        out, lse = forward(q, k, v, causal, scale, tile=chosen[0] if chosen else None, uses=uses)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.scale, ctx.uses = causal, scale, uses
        ctx.tiles = (chosen[1], chosen[2]) if chosen else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = backward(q, k, v, out, lse, dout, ctx.causal, ctx.scale, tiles=ctx.tiles, uses=ctx.uses)
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

    `tiles` = (the forward kernel's, the dK/dV kernel's, the dQ kernel's) overrides the table of `tiles.py`.
    `uses` receives what the forward kernel used at call, and the three backward kernels when autograd runs.
    ValueError for other dtypes, head dims outside 16..256 or no multiple of 8, and no CUDA device.
    """
    out: Tensor = _Flash.apply(q, k, v, causal, scale, tiles, uses)  # type: ignore[no-untyped-call]
    return out
