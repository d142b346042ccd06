"""Block-sparse FlashAttention as FlashAttention-1 has it, in Triton: slow by design, as `flash1` is.

Algorithm 5 of Dao et al., arXiv 2205.14135: Algorithm 1 with a check of the mask in its inner loop. Its
traffic is that of Algorithm 1 times the share s of visible blocks, Theta(N d + N^2 d^2 s / M) elements
(Proposition 4). One program owns a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .flash1 import _updated
from .flash1_rows import load_again, load_partial, load_sums
from .listed import check_spans, seen_blocks
from .shape import checked_shape, softmax_scale
from .spans import Spans
from .sparse1_backward import backward
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


@triton.jit(do_not_specialize=["heads", "group"])  # type: ignore[untyped-decorator]
def sparse1_forward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    mask,
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
    seq,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """O = softmax(scale Q K^T) V of one head over visible blocks, with l and m as in `flash1_forward`.

    `mask` is what `seen_blocks` gives: a turn of the inner loop is taken where it is not 0. Between blocks of
    keys O is in `partial`, in float32; the last tile of keys that a row sees writes `out` instead.

    Traffic per head, e bytes per element, T_r and T_c the tiles of rows and of keys, r_j the Q rows in the
    blocks that see tile j, V = sum_j r_j:
    reads 2 N d e + V (d e + 4 d + 8) + T_r T_c bytes, writes V (4 d + 8) + N (d e + 8) bytes.
    V = s T_c N for a share s and N a multiple of BLOCK: 2 N d + s T_c (3 N d + 4 N) + N d + 2 N elements, as
    the paper counts, and a byte of the mask for each pair of tiles.
    """
    program = tl.program_id(0)
    batch = program // heads
    head = program % heads
    kv_head = head // group
    blocks = tl.cdiv(seq, BLOCK)
    row_sum += program.to(tl.int64) * seq
    row_max += program.to(tl.int64) * seq

    for start_m in tl.range(0, seq, BLOCK_M):  # line 2: O = 0, l = 0, m = -inf
        rows = start_m + tl.arange(0, BLOCK_M)
        tl.store(row_sum + rows, tl.zeros([BLOCK_M], tl.float32), mask=rows < seq)
        tl.store(row_max + rows, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=rows < seq)
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
        seen = mask + start_n // BLOCK * blocks
        end = tl.minimum((start_n // BLOCK + 1) * BLOCK, seq)
        for start_m in tl.range(0, seq, BLOCK_M):
            state = tl.load(seen + start_m // BLOCK)
            if state != 0:
                q_tile = load_again(
                    q, batch, head, start_m, seq, stride_qb, stride_qh, stride_qn, BLOCK_M, HEAD_DIM, WIDTH
                )
                old = load_partial(
                    partial, batch, head, start_m, seq, stride_pb, stride_ph, stride_pn,
                    BLOCK_M, HEAD_DIM, WIDTH,
                )  # fmt: skip
                old_sum, old_max = load_sums(row_sum, row_max, start_m, seq, BLOCK_M)
                new, new_sum, new_max = _updated(
                    old, old_sum, old_max, q_tile, k_tile, v_tile, start_m, start_n, seq, seq, scale_log2,
                    False, BLOCK_M, BLOCK_N,
                )  # fmt: skip
                tl.debug_barrier()  # one thread may read what another writes: all have read, before
                rows = start_m + tl.arange(0, BLOCK_M)
                tl.store(row_sum + rows, new_sum, mask=rows < seq)
                tl.store(row_max + rows, new_max, mask=rows < seq)
                if state == 1 or start_n + BLOCK_N < end:
                    store_rows(
                        partial, new, batch, head, start_m, seq, stride_pb, stride_ph, stride_pn,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
                else:
                    store_rows(
                        out, new, batch, head, start_m, seq, stride_ob, stride_oh, stride_on,
                        BLOCK_M, HEAD_DIM, WIDTH,
                    )  # fmt: skip
        tl.debug_barrier()  # the next block of keys reads what other threads have written


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    block: int,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(O, l, m): O like q; l and m float32 [B, h, N], m of the scores times log2 e. No autograd.

    `seen` is what `seen_blocks` gives for blocks of `block` rows. `tile` overrides the table of `tiles.py`,
    its sides cut to `block`. See `sparse1_forward` for the traffic.
    """
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    tile = within(tile or sparse1_tiles(shape.head_dim, capability(q))[0], block)
    out = like_rows(q)
    partial = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    row_sum = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    row_max = torch.empty_like(row_sum)
    with on_device(q):
        compiled = sparse1_forward[(shape.heads * shape.batch,)](
            q,
            k,
            v,
            seen,
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
            softmax_scale(scale, shape.head_dim) * LOG2_E,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK=block,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    note_use(uses, "sparse1_forward", tile, compiled)
    return out, row_sum, row_max


class _Sparse1(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        seen: Tensor,
        block: int,
        scale: float | None,
        tiles: Sequence[Sequence[int]] | None,
        uses: list[KernelUse] | None,
    ) -> Tensor:
        chosen = [Tile(*tile) for tile in tiles] if tiles else None
        out, row_sum, row_max = forward(
            q, k, v, seen, block, scale, tile=chosen[0] if chosen else None, uses=uses
        )
        ctx.save_for_backward(q, k, v, out, row_sum, row_max)
        ctx.seen, ctx.block, ctx.scale, ctx.uses = seen, block, scale, uses
        ctx.tile = chosen[1] if chosen else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, row_sum, row_max = ctx.saved_tensors
        gradients = backward(
            q,
            k,
            v,
            out,
            row_sum,
            row_max,
            dout,
            ctx.seen,
            ctx.block,
            ctx.scale,
            tile=ctx.tile,
            uses=ctx.uses,
        )
        return *gradients, None, None, None, None, None


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
    """O like q, [B, h, N, d], float16 or bfloat16, over the keys in visible blocks.

    `spans` as in `block_sparse.attention`, but of blocks: each block of queries sees one, and each of keys is
    seen. `tiles` = (the forward kernel's, the backward kernel's) overrides the table of `tiles.py`, sides cut
    to the block. `uses` receives what the forward kernel used at call, and the backward kernel when autograd
    runs. ValueError for a causal mask, for spans of other masks, other dtypes, head dims outside 16..256 or
    no multiple of 8, and no CUDA device.
    """
    shape = checked_shape(q, k, v)
    spans = check_spans(spans, shape, causal)
    seen = seen_blocks(spans, shape)
    out: Tensor = _Sparse1.apply(q, k, v, seen, spans.step, scale, tiles, uses)  # type: ignore[no-untyped-call]
    return out
