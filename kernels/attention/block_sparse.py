"""Block-sparse attention in the loop order of FlashAttention-2, in Triton, and its gradients by autograd.

Block-sparse FlashAttention is section 3.3 of Dao et al., arXiv 2205.14135: blocks of the mask that are 0 are
never visited. Here the outer loop is over blocks of Q, as in arXiv 2307.08691, and the program of such a
block walks the list of the blocks of keys that it sees. Every listed block is seen whole: nothing is masked
but what lies beyond the last key.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .block_lists import BlockLists, block_lists, walk
from .block_sparse_backward import backward
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
from .tiles import Tile, forward_tile, within
from .use import KernelUse


@triton.jit  # type: ignore[untyped-decorator]
def _listed_keys(  # type: ignore[no-untyped-def]
    acc,
    row_max,
    row_sum,
    q_tile,
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
    """`steps` tiles of K and V, of the blocks that `columns` lists from `first` on.

    One flat loop over all tiles, so that it is pipelined across blocks. The next column is read a turn early:
    the address of the next tile waits for it. Unless EVEN every tile is masked: a second loop for those of
    the last block would spill registers.
    """
    TILES: tl.constexpr = BLOCK // BLOCK_N
    column = tl.load(columns + first, mask=steps > 0, other=0)
    for step in tl.range(0, steps):
        following = tl.load(columns + first + (step + 1) // TILES, mask=step + 1 < steps, other=0)
        start_n = column * BLOCK + step % TILES * BLOCK_N
        k_tile = load_rows(
            k, batch, kv_head, start_n, seq, stride_kb, stride_kh, stride_kn,
            DESCRIPTORS, not EVEN, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        scores = tl.dot(q_tile, k_tile.T)
        if not EVEN:  # the first key of every tile is in range, so that no row is without one
            seen = tl.arange(0, BLOCK_N) < seq - start_n
            scores = tl.where(seen[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None]
        v_tile = load_rows(
            v, batch, kv_head, start_n, seq, stride_vb, stride_vh, stride_vn,
            DESCRIPTORS, not EVEN, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
        row_max = new_max
        column = following
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["heads", "group", "tiles_m"])  # type: ignore[untyped-decorator]
def block_sparse_forward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    offsets,
    columns,
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
    seq,
    scale_log2,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """O and LSE over the visible blocks, for one tile of Q rows of one head; tiles do not cross blocks.

    Traffic per head, e bytes per element, c_i the keys in the blocks that tile i sees, i < ceil(N / BLOCK_M):
    reads N d e + sum_i 2 c_i d e bytes, writes N d e + 4 N bytes. Lists: reads 8 bytes for each tile i, 4
    more where BLOCK does not divide N, and 4 for each of the tiles of keys that it visits.
    With a share s of the blocks visible, sum_i c_i = s N ceil(N / BLOCK_M) for N a multiple of BLOCK.
    """
    program = tl.program_id(0)
    batch = program // tiles_m // heads
    head = program // tiles_m % heads
    kv_head = head // group
    start_m = program % tiles_m * BLOCK_M
    first, steps = walk(offsets, columns, start_m // BLOCK, seq, EVEN, BLOCK, BLOCK_N)

    q_tile = load_rows(
        q, batch, head, start_m, seq, stride_qb, stride_qh, stride_qn,
        DESCRIPTORS, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc, row_max, row_sum = _listed_keys(
        acc, row_max, row_sum, q_tile, k, v, columns, batch, kv_head, first, steps, seq,
        stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, scale_log2,
        EVEN, DESCRIPTORS, HEAD_DIM, WIDTH, BLOCK, BLOCK_N,
    )  # fmt: skip

    rows = start_m + tl.arange(0, BLOCK_M)
    log_sum = (row_max + tl.log2(row_sum)) * 0.6931471805599453
    tl.store(lse + (program // tiles_m).to(tl.int64) * seq + rows, log_sum, mask=rows < seq)
    store_rows(
        out, acc / row_sum[:, None], batch, head, start_m, seq, stride_ob, stride_oh, stride_on,
        BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    block: int,
    scale: float | None = None,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE): O like q, LSE float32 [B, h, N]; `lists` is what `block_lists` gives. No autograd.

    `tile` overrides the table of `tiles.py`, its sides divide `block`; `descriptors` forces TMA on or off.
    See `block_sparse_forward` for the traffic.
    """
    shape = checked_shape(q, k, v)
    check_served(q)
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    tile = within(tile or forward_tile(shape.head_dim, capability(q), False), block)
    described = use_descriptors(q, k, v) if descriptors is None else descriptors
    out = like_rows(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tiles_m = triton.cdiv(shape.seq_q, tile.block_m)
    with on_device(q):
        compiled = block_sparse_forward[(tiles_m * shape.heads * shape.batch,)](
            source(q, tile.block_m, described),
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
            *lists.columns,
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
            softmax_scale(scale, shape.head_dim) * LOG2_E,
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
    note_use(uses, "block_sparse_forward", tile, compiled)
    return out, lse


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lists: BlockLists,
        block: int,
        scale: float | None,
        tiles: Sequence[Sequence[int]] | None,
        uses: list[KernelUse] | None,
    ) -> Tensor:
        chosen = [Tile(*tile) for tile in tiles] if tiles else None
        out, lse = forward(q, k, v, lists, block, scale, tile=chosen[0] if chosen else None, uses=uses)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lists, ctx.block, ctx.scale, ctx.uses = lists, block, scale, uses
        ctx.tiles = (chosen[1], chosen[2]) if chosen else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        gradients = backward(
            q, k, v, out, lse, dout, ctx.lists, ctx.block, ctx.scale, tiles=ctx.tiles, uses=ctx.uses
        )
        return *gradients, None, None, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    blocks: Tensor | None = None,
    block: int = 0,
    tiles: Sequence[Sequence[int]] | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N, d], float16 or bfloat16, over the keys in visible blocks.

    `blocks` is bool [T, T], T = ceil(N / block): True where a block of queries (row) sees a block of keys.
    Each sees one, and each is seen. Its lists are made once, at the first call with this tensor (see
    `block_lists`).
    `tiles` = (the forward kernel's, the dK/dV kernel's, the dQ kernel's) overrides the table of `tiles.py`;
    sides larger than `block` are cut to it. `uses` receives what the forward kernel used at call, and the
    three backward kernels when autograd runs. ValueError for a causal mask, for blocks that are none, other
    dtypes, head dims outside 16..256 or no multiple of 8, and no CUDA device.
    """
    lists = block_lists(checked_shape(q, k, v), blocks, block, causal)
    out: Tensor = _BlockSparse.apply(q, k, v, lists, block, scale, tiles, uses)  # type: ignore[no-untyped-call]
    return out
