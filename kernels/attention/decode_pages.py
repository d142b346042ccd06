"""Where the keys of a block lie in a K/V cache: blocks of keys over whole pages, and pages in a block.

A block of keys is a tile of BLOCK_N rows. In one piece it is the next BLOCK_N tokens. In pages it is either
PAGES > 1 whole pages, each at BLOCK_N / PAGES rows of the tile from the one before, or a part of one page; a
page of an awkward size leaves rows of the tile empty (see `tiles.decode_pages`).
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def block_count(keys, PAGE: tl.constexpr, PAGES: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Blocks that hold the first `keys` keys of a sequence."""
    if PAGES > 1:
        count = tl.cdiv(keys, PAGE * PAGES)
    elif PAGE % BLOCK_N == 0:  # in one piece as well, where PAGE is 0
        count = tl.cdiv(keys, BLOCK_N)
    else:
        count = keys // PAGE * ((PAGE + BLOCK_N - 1) // BLOCK_N) + tl.cdiv(keys % PAGE, BLOCK_N)
    return count


@triton.jit  # type: ignore[untyped-decorator]
def first_key(block, PAGE: tl.constexpr, PAGES: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The position in its sequence of a block's first key."""
    if PAGES > 1:
        start = block * (PAGE * PAGES)
    elif PAGE % BLOCK_N == 0:
        start = block * BLOCK_N
    else:
        start = block // ((PAGE + BLOCK_N - 1) // BLOCK_N) * PAGE + in_page(block, PAGE, BLOCK_N)
    return start


@triton.jit  # type: ignore[untyped-decorator]
def in_page(block, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The row of its page at which a block starts that is a part of one page."""
    return block % ((PAGE + BLOCK_N - 1) // BLOCK_N) * BLOCK_N


@triton.jit  # type: ignore[untyped-decorator]
def key_offsets(PAGE: tl.constexpr, PAGES: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """How far each row of a tile is from the block's first key, [BLOCK_N]."""
    rows = tl.arange(0, BLOCK_N)
    if PAGES > 1:
        rows = rows // (BLOCK_N // PAGES) * PAGE + rows % (BLOCK_N // PAGES)
    return rows


@triton.jit  # type: ignore[untyped-decorator]
def rows_in_use(block, PAGE: tl.constexpr, PAGES: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """True for the rows of a tile that a token of a page has, [BLOCK_N]."""
    rows = tl.arange(0, BLOCK_N)
    if PAGES > 1:
        found = rows % (BLOCK_N // PAGES) < PAGE
    elif PAGE % BLOCK_N == 0:
        found = rows < BLOCK_N
    else:
        found = rows < PAGE - in_page(block, PAGE, BLOCK_N)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def page_numbers(table, block, stop, limit, PAGE: tl.constexpr, PAGES: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The entries of a block table for one block, [PAGES] or a scalar; 0 from block `stop` on, unread.

    `table` is that of the sequence, which has `limit` tokens.
    """
    if PAGES > 1:
        at = block * PAGES + tl.arange(0, PAGES)
        numbers = tl.load(table + at, mask=at < tl.minimum(stop * PAGES, tl.cdiv(limit, PAGE)), other=0)
    else:
        numbers = tl.load(table + first_key(block, PAGE, PAGES, BLOCK_N) // PAGE, mask=block < stop, other=0)
    return numbers


@triton.jit  # type: ignore[untyped-decorator]
def page_scales(scales, numbers, block, stop, limit, stride_p, PAGE: tl.constexpr, PAGES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The scales of the pages of one block, [PAGES] or a scalar; 0 where there is no such page."""
    at = scales + tl.cast(numbers, tl.int64) * stride_p
    if PAGES > 1:
        there = block * PAGES + tl.arange(0, PAGES) < tl.minimum(stop * PAGES, tl.cdiv(limit, PAGE))
    else:
        there = block < stop
    return tl.load(at, mask=there, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def of_rows(values, PAGES: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is given for each page as of each row of the tile: [PAGES] to [BLOCK_N]."""
    return tl.reshape(tl.broadcast_to(values[:, None], [PAGES, BLOCK_N // PAGES]), [BLOCK_N])


@triton.jit  # type: ignore[untyped-decorator]
def load_pages(  # type: ignore[no-untyped-def]
    source,
    numbers,
    head,
    block,
    there,
    stride_p,
    stride_h,
    stride_n,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The rows of one block of one head as [ROWS, WIDTH], zero where not `there` and beyond HEAD_DIM.

    With DESCRIPTORS the block is a part of one page and no row of it is to be masked. Offsets inside a page
    are 32 bit, all others 64 bit.
    """
    if DESCRIPTORS:
        tile = source.load([numbers, head, in_page(block, PAGE, ROWS), 0]).reshape(ROWS, WIDTH)
    else:
        columns = tl.arange(0, WIDTH)[None, :]
        first = source + tl.cast(head, tl.int64) * stride_h
        if PAGES > 1:
            pages = tl.cast(of_rows(numbers, PAGES, ROWS), tl.int64) * stride_p
            rows = pages + tl.arange(0, ROWS) % (ROWS // PAGES) * stride_n
        else:
            first += tl.cast(numbers, tl.int64) * stride_p
            rows = (in_page(block, PAGE, ROWS) + tl.arange(0, ROWS)) * stride_n
        pointers = first + rows[:, None] + columns
        if MASKED:
            tile = tl.load(pointers, mask=there[:, None] & (columns < HEAD_DIM), other=0.0)
        elif WIDTH != HEAD_DIM:
            tile = tl.load(pointers, mask=columns < HEAD_DIM, other=0.0)
        else:
            tile = tl.load(pointers)
    return tile
