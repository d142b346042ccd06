"""Partial results of shares of the keys merged: by a kernel of its own, or by the last share to be ready."""

import triton
import triton.language as tl

from .decode_pages import block_count


@triton.jit  # type: ignore[untyped-decorator]
def merged(  # type: ignore[no-untyped-def]
    partial,
    lse,
    rows,
    in_range,
    shares,
    rows_of_all,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """O = sum_s 2^LSE_s O_s / sum_s 2^LSE_s of `rows` [ROWS] as [ROWS, WIDTH], AT_ONCE shares at a time.

    0 where no share saw a key. Traffic a row in range: reads 4 d + 4 bytes a share.
    """
    columns = tl.arange(0, WIDTH)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    # Finite, so that shares of which a row sees no key do not make NaN of -inf - -inf.
    largest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, shares, AT_ONCE):
        which = start + tl.arange(0, AT_ONCE)
        at = tl.cast(which, tl.int64)[:, None] * rows_of_all + rows[None, :]
        there = (which < shares)[:, None] & in_range[None, :]
        log_sum = tl.load(lse + at, mask=there, other=float("-inf"))
        tile = tl.load(
            partial + at[:, :, None] * HEAD_DIM + columns[None, None, :],
            mask=there[:, :, None] & (columns < HEAD_DIM)[None, None, :],
            other=0.0,
        )
        new_largest = tl.maximum(largest, tl.max(log_sum, 0))
        weights = tl.exp2(log_sum - new_largest[None, :])
        rescale = tl.exp2(largest - new_largest)
        acc = acc * rescale[:, None] + tl.sum(tile * weights[:, :, None], 0)
        total = total * rescale + tl.sum(weights, 0)
        largest = new_largest
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["heads", "share"])  # type: ignore[untyped-decorator]
def decode_combine(  # type: ignore[no-untyped-def]
    partial,
    lse,
    out,
    lengths,
    stride_ob,
    stride_oh,
    stride_on,
    rows_of_all,
    heads,
    share,
    seq_q,
    seq_k,
    OVERLAP: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """O of one row from its BLOCK_M partial results, those of blocks of KEYS keys in shares of `share`.

    With `lengths` fewer of them: of as many shares as start before the end of the sequence. Traffic a row:
    reads (4 d + 4) bytes a share, and a length, writes d e.
    """
    row = tl.program_id(0)
    batch = row // seq_q // heads
    shares = BLOCK_M
    if lengths is not None:
        limit = tl.minimum(tl.load(lengths + batch), seq_k)
        shares = tl.maximum(tl.cdiv(block_count(limit, PAGE, PAGES, KEYS), share), 1)
    if OVERLAP:  # started while the shares are still being walked
        tl.extra.cuda.gdc_wait()
    one = tl.arange(0, 1)
    tile = merged(partial, lse, row + one, one == 0, shares, rows_of_all, HEAD_DIM, WIDTH, 1, AT_ONCE)
    to = out + tl.cast(batch, tl.int64) * stride_ob + tl.cast(row // seq_q % heads, tl.int64) * stride_oh
    to += tl.cast(row % seq_q, tl.int64) * stride_on
    columns = tl.arange(0, WIDTH)[None, :]
    tl.store(to + columns, tile.to(out.dtype.element_ty), mask=columns < HEAD_DIM)
