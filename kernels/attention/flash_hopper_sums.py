"""What surrounds the products of the Hopper backward: D and padded LSE before, sums in float32 after."""

import triton
import triton.language as tl

from .tile_io import load_rows, store_rows


@triton.jit(do_not_specialize=["heads", "tiles_m", "padded"])  # type: ignore[untyped-decorator]
def flash_hopper_statistics(  # type: ignore[no-untyped-def]
    out,
    dout,
    lse,
    log_sums,
    delta,
    dq_sum,
    stride_ob,
    stride_oh,
    stride_on,
    stride_gb,
    stride_gh,
    stride_gn,
    heads,
    tiles_m,
    padded,
    seq_q,
    numbers,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ZEROED: tl.constexpr,
):
    """D = rowsum(dO o O) and LSE in base 2, float32, for one block of rows of one head, `padded` rows a head.

    LSE +inf, hence P = 0, for rows beyond N_q and for rows that saw no key. Also zeroes `numbers` of dq_sum a
    head, ZEROED by each block of rows, none if that is 0. Traffic per head: reads 2 N_q d e + 4 N_q bytes,
    writes 8 padded + 4 numbers.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # what is read last, of dO, is read first afterwards
    start = program % tiles_m * BLOCK_M
    head_all = program // tiles_m
    out_tile = load_rows(
        out, head_all // heads, head_all % heads, start, seq_q, stride_ob, stride_oh, stride_on,
        False, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    dout_tile = load_rows(
        dout, head_all // heads, head_all % heads, start, seq_q, stride_gb, stride_gh, stride_gn,
        False, True, BLOCK_M, HEAD_DIM, WIDTH,
    )  # fmt: skip
    rows = start + tl.arange(0, BLOCK_M)
    log_sum = tl.load(lse + head_all.to(tl.int64) * seq_q + rows, mask=rows < seq_q, other=float("inf"))
    log_sum = tl.where(log_sum == float("-inf"), float("inf"), log_sum) * 1.4426950408889634
    first = head_all.to(tl.int64) * padded
    tl.store(log_sums + first + rows, log_sum)
    tl.store(delta + first + rows, tl.sum(out_tile.to(tl.float32) * dout_tile.to(tl.float32), 1))
    if ZEROED > 0:
        places = program % tiles_m * ZEROED + tl.arange(0, ZEROED)
        here = dq_sum + head_all.to(tl.int64) * numbers + places
        tl.store(here, tl.zeros([ZEROED], tl.float32), mask=places < numbers)


@triton.jit(do_not_specialize=["heads", "tiles_m"])  # type: ignore[untyped-decorator]
def flash_hopper_dq_from_sum(  # type: ignore[no-untyped-def]
    dq_sum,
    dq,
    stride_b,
    stride_h,
    stride_n,
    heads,
    tiles_m,
    seq_q,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """dQ = scale dq_sum, in dQ's type and layout, for one block of BLOCK_M rows of one head.

    Traffic per head, w = 8192 / BLOCK_M columns: reads 4 w BLOCK_M ceil(N_q / BLOCK_M), writes N_q d e bytes.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # what was added to last is still in L2
    head_all = program // tiles_m
    start = program % tiles_m * BLOCK_M
    for w in tl.static_range(2):
        flat = tl.load(dq_sum + (program.to(tl.int64) * 2 + w) * 4096 + tl.arange(0, 4096))
        # As `flash_hopper_dkdv.in_order` has it: warp, block of columns, lane / 4, lane % 4, half, odd.
        tile = flat.reshape(4, 8, 8, 4, 2, 2).permute(0, 4, 2, 1, 3, 5).reshape(64, 64) * scale
        if BLOCK_M == 128:
            store_rows(
                dq, tile, head_all // heads, head_all % heads, start + 64 * w, seq_q,
                stride_b, stride_h, stride_n, 64, HEAD_DIM, 64,
            )  # fmt: skip
        else:
            store_rows(
                dq + 64 * w, tile, head_all // heads, head_all % heads, start, seq_q,
                stride_b, stride_h, stride_n, 64, HEAD_DIM - 64 * w, 64,
            )  # fmt: skip


@triton.jit(do_not_specialize=["shares"])  # type: ignore[untyped-decorator]
def flash_hopper_sum_of_parts(  # type: ignore[no-untyped-def]
    parts, sums, shares, size, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr
):
    """The sum of `shares` parts of `size` numbers each that lie behind one another, added up in float32.

    Reads shares size e bytes for each sum and writes size e.
    """
    place = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, shares, AT_ONCE):
        share = first + tl.arange(0, AT_ONCE)
        here = parts + (place * shares + share)[:, None] * size + offsets[None, :]
        inside = (share < shares)[:, None] & (offsets < size)[None, :]
        total += tl.sum(tl.load(here, mask=inside, other=0.0).to(tl.float32), 0)
    tl.store(sums + place * size + offsets, total.to(sums.dtype.element_ty), mask=offsets < size)
