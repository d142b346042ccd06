"""Attention in square tiles, in Triton: S goes through device memory, and for M < d^2 fewer bytes move.

Saha and Ye, "The I/O Complexity of Attention", arXiv 2402.07443, Theorem 3.1: with fast memory of M elements
attention moves Theta(min(N^2 d / sqrt(M), N^2 d^2 / M)). The second is FlashAttention's, whose programs hold
whole rows of Q and O. The first is that of plain matrix products in square tiles, which is here: M = t^2 is
the tile of t x t sums that stays on chip, in registers, while slices of the operands stream by. The slices
(and the stages of them that are in flight) are not counted in M.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flash1_rows import load_sums
from .shape import Shape, checked_shape, softmax_scale
from .tile_io import (
    DTYPES,
    capability,
    like_rows,
    note_use,
    on_device,
    outer_strides,
    rows_contiguous,
)
from .tiles import Tile, square_pitch, square_slice, square_tile
from .use import KernelUse


@triton.jit
def _rows_of(tensor, batch, head, start, stride_b, stride_h, stride_n):  # type: ignore[no-untyped-def]
    """The pointer to row `start` of one head."""
    return (
        tensor
        + tl.cast(batch, tl.int64) * stride_b
        + tl.cast(head, tl.int64) * stride_h
        + tl.cast(start, tl.int64) * stride_n
    )


@triton.jit(do_not_specialize=["heads", "group", "tiles_m", "tiles_n"])  # type: ignore[untyped-decorator]
def square_scores(  # type: ignore[no-untyped-def]
    q,
    k,
    scores,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    pitch,
    heads,
    group,
    tiles_m,
    tiles_n,
    seq_q,
    seq_k,
    scale,
    HEAD_DIM: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of S = scale Q K^T, over slices of the head dim. HEAD_DIM is a multiple of SLICE.

    Traffic per head, e bytes per element, t = BLOCK_M = BLOCK_N, P = `pitch`, N_k rounded up: reads
    N_q d e ceil(N_k / t) of Q and N_k d e ceil(N_q / t) of K, writes N_q P e bytes, -inf beyond N_k. All
    reads in this file pass L1 by: a hit there would be traffic of the algorithm that counters do not see.
    """
    program = tl.program_id(0)
    start_n = program % tiles_n * BLOCK_N
    start_m = program // tiles_n % tiles_m * BLOCK_M
    matrix = program // tiles_n // tiles_m
    batch = matrix // heads
    head = matrix % heads
    rows = tl.arange(0, BLOCK_M)[:, None]
    keys = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, SLICE)[None, :]
    q_from = _rows_of(q, batch, head, start_m, stride_qb, stride_qh, stride_qn) + rows * stride_qn + columns
    k_from = _rows_of(k, batch, head // group, start_n, stride_kb, stride_kh, stride_kn)
    k_from = k_from + keys[:, None] * stride_kn + columns
    row_inside = rows < seq_q - start_m
    key_inside = keys < seq_k - start_n

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, HEAD_DIM, SLICE):
        q_tile = tl.load(q_from + start, mask=row_inside, other=0.0, cache_modifier=".cg")
        k_tile = tl.load(k_from + start, mask=key_inside[:, None], other=0.0, cache_modifier=".cg")
        acc = tl.dot(q_tile, k_tile.T, acc)

    tile = tl.where(key_inside[None, :], acc * scale, float("-inf")).to(scores.dtype.element_ty)
    to = scores + (tl.cast(matrix, tl.int64) * seq_q + start_m) * pitch + start_n
    inside = row_inside & (keys < pitch - start_n)[None, :]
    tl.store(to + tl.cast(rows, tl.int64) * pitch + keys[None, :], tile, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _load_scores(source, start_n, inside, pitch, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns [start_n, start_n + COLUMNS) of rows of S times log2 e; -inf out of range."""
    keys = tl.arange(0, COLUMNS)[None, :]
    mask = inside & (keys < pitch - start_n)
    tile = tl.load(source + start_n + keys, mask=mask, other=float("-inf"), cache_modifier=".cg")
    return tile.to(tl.float32) * 1.4426950408889634


@triton.jit
def _folded(row_max, row_sum, tile):  # type: ignore[no-untyped-def]
    """(m, l) of rows after one more tile of scores. A row out of range has seen nothing: m = -inf, l = 0."""
    new_max = tl.maximum(row_max, tl.max(tile, 1))
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    return new_max, row_sum * tl.exp2(row_max - base) + tl.sum(tl.exp2(tile - base[:, None]), 1)


@triton.jit(do_not_specialize=["tiles_m"])  # type: ignore[untyped-decorator]
def square_statistics(  # type: ignore[no-untyped-def]
    scores,
    row_sum,
    row_max,
    pitch,
    tiles_m,
    seq_q,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """m = rowmax of S log2 e and l = rowsum of 2^(S log2 e - m), for one block of rows of one head.

    Traffic per head: reads N_q P e, writes 8 N_q bytes.
    """
    program = tl.program_id(0)
    start_m = program % tiles_m * BLOCK_M
    matrix = tl.cast(program // tiles_m, tl.int64)
    rows = tl.arange(0, BLOCK_M)
    inside = (rows < seq_q - start_m)[:, None]
    source = scores + (matrix * seq_q + start_m) * pitch + tl.cast(rows, tl.int64)[:, None] * pitch
    new_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    new_sum = tl.zeros([BLOCK_M], tl.float32)
    for start_n in tl.range(0, pitch, BLOCK_N):
        tile = _load_scores(source, start_n, inside, pitch, BLOCK_N)
        new_max, new_sum = _folded(new_max, new_sum, tile)
    at = matrix * seq_q + start_m + rows
    tl.store(row_sum + at, new_sum, mask=rows < seq_q - start_m)
    tl.store(row_max + at, new_max, mask=rows < seq_q - start_m)


@triton.jit(do_not_specialize=["heads", "group", "tiles_m", "tiles_n"])  # type: ignore[untyped-decorator]
def square_output(  # type: ignore[no-untyped-def]
    scores,
    row_sum,
    row_max,
    v,
    out,
    pitch,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_ob,
    stride_oh,
    stride_on,
    heads,
    group,
    tiles_m,
    tiles_n,
    seq_q,
    seq_k,
    HEAD_DIM: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of O = softmax(S) V: BLOCK_M rows, BLOCK_N columns of the head dim, over slices of the keys.

    Traffic per head, t = BLOCK_M = BLOCK_N, c = ceil(d / t): reads c N_q P e of S, 8 c N_q of l and m and
    N_k d e ceil(N_q / t) of V, writes N_q d e bytes. Each of the c programs of a row computes its exp anew.
    """
    program = tl.program_id(0)
    start_d = program % tiles_n * BLOCK_N
    start_m = program // tiles_n % tiles_m * BLOCK_M
    matrix = program // tiles_n // tiles_m
    batch = matrix // heads
    head = matrix % heads
    first = tl.cast(matrix, tl.int64) * seq_q
    total, base = load_sums(row_sum + first, row_max + first, start_m, seq_q, BLOCK_M)
    total = tl.where(total == 0.0, 1.0, total)  # rows out of range, which are not stored
    base = tl.where(base == float("-inf"), 0.0, base)

    rows = tl.arange(0, BLOCK_M)[:, None]
    keys = tl.arange(0, SLICE)[:, None]
    columns = tl.arange(0, BLOCK_N)[None, :]
    inside = rows < seq_q - start_m
    wide = columns < HEAD_DIM - start_d
    source = scores + (first + start_m) * pitch + tl.cast(rows, tl.int64) * pitch
    v_from = _rows_of(v, batch, head // group, 0, stride_vb, stride_vh, stride_vn) + start_d + columns

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start_n in tl.range(0, seq_k, SLICE):
        tile = _load_scores(source, start_n, inside, pitch, SLICE)
        weights = tl.exp2(tile - base[:, None]).to(v.dtype.element_ty)
        v_rows = v_from + (tl.cast(start_n, tl.int64) + keys) * stride_vn
        v_tile = tl.load(v_rows, mask=wide & (keys < seq_k - start_n), other=0.0, cache_modifier=".cg")
        acc = tl.dot(weights, v_tile, acc)

    to = _rows_of(out, batch, head, start_m, stride_ob, stride_oh, stride_on) + start_d
    tile = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(to + rows * stride_on + columns, tile, mask=inside & wide)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    *,
    tiles: tuple[Tile, Tile, Tile] | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(O, l, m): O like q; l and m float32 [B, h, N_q], m of the scores times log2 e. No autograd.

    S is rounded to q's dtype, as on the eager path. ValueError for what the kernels cannot serve.
    """
    shape = checked_shape(q, k, v)
    _check_served(q)
    factor = softmax_scale(scale, shape.head_dim)
    of_scores, of_statistics, of_output = tiles or (square_tile(),) * 3
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    size = (shape.batch * shape.heads, shape.seq_q, square_pitch(shape.seq_k))
    scores = torch.empty(size, dtype=q.dtype, device=q.device)
    row_sum = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    row_max, out = torch.empty_like(row_sum), like_rows(q)
    with on_device(q):
        _scores(q, k, scores, factor, shape, of_scores, uses)
        _statistics(scores, row_sum, row_max, shape, of_statistics, uses)
        _output(scores, row_sum, row_max, v, out, shape, of_output, uses)
    return out, row_sum, row_max


def _scores(
    q: Tensor,
    k: Tensor,
    scores: Tensor,
    scale: float,
    shape: Shape,
    tile: Tile,
    uses: list[KernelUse] | None,
) -> None:
    tiles_m, tiles_n = triton.cdiv(shape.seq_q, tile.block_m), triton.cdiv(shape.seq_k, tile.block_n)
    compiled = square_scores[(tiles_n * tiles_m * shape.heads * shape.batch,)](
        q,
        k,
        scores,
        *outer_strides(q),
        *outer_strides(k),
        scores.stride(1),
        shape.heads,
        shape.group,
        tiles_m,
        tiles_n,
        shape.seq_q,
        shape.seq_k,
        scale,
        HEAD_DIM=shape.head_dim,
        SLICE=square_slice(tile.block_m, shape.head_dim),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    note_use(uses, "square_scores", tile, compiled)


def _statistics(
    scores: Tensor, row_sum: Tensor, row_max: Tensor, shape: Shape, tile: Tile, uses: list[KernelUse] | None
) -> None:
    tiles_m = triton.cdiv(shape.seq_q, tile.block_m)
    compiled = square_statistics[(tiles_m * shape.heads * shape.batch,)](
        scores,
        row_sum,
        row_max,
        scores.stride(1),
        tiles_m,
        shape.seq_q,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    note_use(uses, "square_statistics", tile, compiled)


def _output(
    scores: Tensor,
    row_sum: Tensor,
    row_max: Tensor,
    v: Tensor,
    out: Tensor,
    shape: Shape,
    tile: Tile,
    uses: list[KernelUse] | None,
) -> None:
    tiles_m, tiles_n = triton.cdiv(shape.seq_q, tile.block_m), triton.cdiv(shape.head_dim, tile.block_n)
    compiled = square_output[(tiles_n * tiles_m * shape.heads * shape.batch,)](
        scores,
        row_sum,
        row_max,
        v,
        out,
        scores.stride(1),
        *outer_strides(v),
        *outer_strides(out),
        shape.heads,
        shape.group,
        tiles_m,
        tiles_n,
        shape.seq_q,
        shape.seq_k,
        HEAD_DIM=shape.head_dim,
        SLICE=square_slice(tile.block_m),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    note_use(uses, "square_output", tile, compiled)


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
    """O like q, [B, h, N_q, d], float16 or bfloat16; without a mask, and without gradients.

    `tiles` = (the kernel of S's, of the statistics', of O's) overrides `tiles.py`: squares, block_m rows by
    block_n columns of what the kernel computes, and M = block_m block_n elements. `uses` receives what the
    kernels used. ValueError for a causal mask, other dtypes, head dims other than multiples of 16 up to
    1024, tiles that are no squares, and no CUDA device.
    """
    if causal:
        raise ValueError("square has no causal mask")
    return forward(q, k, v, scale, tiles=_squares(tiles) if tiles else None, uses=uses)[0]


def _squares(tiles: Sequence[Sequence[int]]) -> tuple[Tile, Tile, Tile]:
    of_scores, of_statistics, of_output = (Tile(*tile) for tile in tiles)
    for tile in (of_scores, of_statistics, of_output):
        if tile.block_m != tile.block_n:
            raise ValueError(f"square tiles are as high as wide, not {tile.block_m} x {tile.block_n}")
        square_tile(tile.block_m)  # has a side that is known
    return of_scores, of_statistics, of_output


def _check_served(q: Tensor) -> None:
    """ValueError, with the reason, for tensors that the kernels cannot serve."""
    interpreted = not isinstance(square_scores, triton.JITFunction)
    head_dim = q.shape[-1]
    if q.dtype not in DTYPES:
        raise ValueError(f"square serves float16 and bfloat16, got {q.dtype}")
    if head_dim % 16 or not 16 <= head_dim <= 1024:
        raise ValueError(f"square serves head dims 16 to 1024 in steps of 16, got {head_dim}")
    if q.device.type != "cuda" and not interpreted:
        raise ValueError(f"square needs a CUDA device (or TRITON_INTERPRET=1), got {q.device}")
    if capability(q) < (8, 0):
        raise ValueError(f"square needs compute capability 8.0 (matrix instructions), got {capability(q)}")
    if interpreted and q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter multiplies bfloat16 bits as integers: take float16")
