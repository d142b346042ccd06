"""Rows that a FlashAttention-1 program reads again and again: from L2 each time, never from L1.

O, l, m and dQ are written by the program that reads them back, Q and dO come round once for each block of
keys. L1 of another multiprocessor plays no part, because one program owns a head; but a hit in L1 would be
traffic that the algorithm has and the counters at SM<->L2 do not.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def load_again(  # type: ignore[no-untyped-def]
    source,
    batch,
    head,
    start,
    length,
    stride_b,
    stride_h,
    stride_n: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Rows [start, start + ROWS) of one head as [ROWS, WIDTH], zero beyond `length` and HEAD_DIM.

    A row stride that is a constant keeps the addresses of a tile out of registers, which would spill.
    """
    first = (
        source
        + tl.cast(batch, tl.int64) * stride_b
        + tl.cast(head, tl.int64) * stride_h
        + tl.cast(start, tl.int64) * stride_n
    )
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    mask = (rows < length - start) & (columns < HEAD_DIM)
    return tl.load(first + rows * stride_n + columns, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit  # type: ignore[untyped-decorator]
def load_partial(  # type: ignore[no-untyped-def]
    source,
    batch,
    head,
    start,
    length,
    stride_b,
    stride_h,
    stride_n: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """`load_again` of float32, in half rows.

    To a tile of the shape of a 16-bit one the compiler gives that one's layout: 8 elements a thread, which
    are two loads of half of each 32-byte sector. Without L1 every sector would be fetched twice.
    """
    first = (
        source
        + tl.cast(batch, tl.int64) * stride_b
        + tl.cast(head, tl.int64) * stride_h
        + tl.cast(start, tl.int64) * stride_n
    )
    halves = tl.arange(0, 2 * ROWS)[:, None]
    rows = halves // 2
    columns = halves % 2 * (WIDTH // 2) + tl.arange(0, WIDTH // 2)[None, :]
    mask = (rows < length - start) & (columns < HEAD_DIM)
    tile = tl.load(first + rows * stride_n + columns, mask=mask, other=0.0, cache_modifier=".cg")
    return tile.reshape(ROWS, WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _load_once(source, start, length, absent, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[ROWS] float32 from row `start` on, `absent` beyond `length`; each element read by one thread.

    Of a tensor with fewer elements than threads the compiler lets every warp load its own copy, and trusts L1
    to serve them. So the elements are the first of 16 rows, of which the others are masked.
    """
    copies = tl.arange(0, 16)[:, None]
    rows = start + tl.arange(0, ROWS)
    mask = (copies == 0) & (rows < length)[None, :]
    tile = tl.load(source + rows[None, :] + 0 * copies, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.where(rows < length, tl.sum(tile, 0), absent)


@triton.jit  # type: ignore[untyped-decorator]
def load_sums(row_sum, row_max, start, length, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(l, m) of ROWS rows; a row beyond `length` has seen nothing: l = 0, m = -inf."""
    sums = _load_once(row_sum, start, length, 0.0, ROWS)
    return sums, _load_once(row_max, start, length, float("-inf"), ROWS)


@triton.jit  # type: ignore[untyped-decorator]
def keys_seen(start_m, seq_q, seq_k, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Keys that a block of rows sees, by its last row; not positive where it sees none."""
    seen = seq_k
    if CAUSAL:
        seen = tl.minimum(start_m + BLOCK_M, seq_q) + seq_k - seq_q
    return seen


@triton.jit  # type: ignore[untyped-decorator]
def first_block(start_n, seq_q, seq_k, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The start of the first block of rows that sees key `start_n`: there is one for each key."""
    first = 0
    if CAUSAL:
        first = tl.maximum(start_n - (seq_k - seq_q), 0) // BLOCK_M * BLOCK_M
    return first
