"""The kernel of decoding: one row tile of one K/V head over one share of its keys."""

import triton
import triton.language as tl

from .decode_combine import merged
from .decode_pages import (
    block_count,
    first_key,
    key_offsets,
    load_pages,
    of_rows,
    page_numbers,
    page_scales,
    rows_in_use,
)
from .tile_io import load_rows

#: What scales of pages are multiplied by, and O divided by.
LIFT = tl.constexpr(128.0)


@triton.jit(do_not_specialize=["kv_heads", "group", "tiles_m", "share"])  # type: ignore[untyped-decorator]
def decode_split(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    out,
    partial,
    lse,
    arrivals,
    table,
    lengths,
    k_scale,
    v_scale,
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
    stride_tb,
    rows_of_all,
    kv_heads,
    group,
    tiles_m,
    share,
    seq_q,
    seq_k,
    scale_log2,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    OVERLAP: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """softmax(scale Q K^T) V of one row tile of one K/V head, over one share of the keys.

    Row r of a K/V head is token r // g of its query head r % g. What is None is not there: `partial` and
    `lse` are for several shares, normalised partial O in fp32, and LSE to base 2 (-inf where a row sees no
    key of the share), of [shares, B, h, N_q], and `out` is for one; with `arrivals`, zeros of the row tiles,
    `out` is given as well, and the last share of a row tile merges them all (ROWS rows and AT_ONCE shares at
    a time) and leaves a zero. `table` is for pages of PAGE tokens (see `decode_pages`), `lengths` for
    sequences shorter than N_k, `k_scale` and `v_scale` for fp8. A share that starts behind the end of its
    sequence does nothing.
    MASKED says that some block of keys has one that some row does not see, or a row without one.
    Traffic, e bytes per element, S shares, T = ceil(g N_q / BLOCK_M) row tiles of each K/V head: reads
    S g N_q d e of Q and 2 d e sum_t c_t of K and V a K/V head, where c_t = N_k without a mask, and causal
    c_t = min(N_k, BLOCK_N ceil(k_t / BLOCK_N)), k_t keys being seen by the last token of the tile. Writes
    g N_q d e, or S g N_q (4 d + 4) with shares. N_k is the sequence's length, and S its shares, where there
    are lengths; in pages c_t is what whole blocks hold, and 4 bytes are read for each page of each block, and
    4 more for each scale.
    """
    program = tl.program_id(0)
    split = tl.program_id(1)
    start_m = program % tiles_m * BLOCK_M
    kv_head = program // tiles_m % kv_heads
    batch = program // tiles_m // kv_heads

    limit = seq_k
    if lengths is not None:
        limit = tl.minimum(tl.load(lengths + batch), seq_k)
        idle = (split > 0) & (split * share >= block_count(limit, PAGE, PAGES, BLOCK_N))
        if idle:
            return

    rows = start_m + tl.arange(0, BLOCK_M)
    tokens = rows // group
    heads = kv_head * group + rows % group
    columns = tl.arange(0, WIDTH)[None, :]
    inside = (rows < group * seq_q)[:, None] & (columns < HEAD_DIM)
    q_rows = tl.cast(batch, tl.int64) * stride_qb + tl.cast(heads, tl.int64) * stride_qh
    q_rows = q_rows + tl.cast(tokens, tl.int64) * stride_qn
    q_tile = tl.load(q + q_rows[:, None] + columns, mask=inside, other=0.0)

    visible = limit
    if CAUSAL:
        last = (tl.minimum(start_m + BLOCK_M, group * seq_q) - 1) // group
        visible = tl.maximum(tl.minimum(limit, last + 1 + limit - seq_q), 0)
    lo = split * share
    hi = tl.minimum(lo + share, block_count(visible, PAGE, PAGES, BLOCK_N))

    if k_scale is not None and table is None:
        scale_log2 = scale_log2 * tl.load(k_scale + kv_head)
    if table is not None:
        # The table is read a block ahead, so that no load of keys waits for another load.
        own_table = table + tl.cast(batch, tl.int64) * stride_tb
        numbers = page_numbers(own_table, lo, hi, limit, PAGE, PAGES, BLOCK_N)

    if OVERLAP:  # the kernel that merges may be brought in: it waits for this one's end
        tl.extra.cuda.gdc_launch_dependents()
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    offsets = key_offsets(PAGE, PAGES, BLOCK_N)
    for block in tl.range(lo, hi):
        start_n = first_key(block, PAGE, PAGES, BLOCK_N)
        there = offsets < limit - start_n
        if MASKED and table is not None:
            there = there & rows_in_use(block, PAGE, PAGES, BLOCK_N)
        if table is None:
            k_tile = load_rows(
                k, batch, kv_head, start_n, limit, stride_kb, stride_kh, stride_kn,
                DESCRIPTORS, MASKED, BLOCK_N, HEAD_DIM, WIDTH,
            )  # fmt: skip
        else:
            k_tile = load_pages(
                k, numbers, kv_head, block, there, stride_kb, stride_kh, stride_kn,
                DESCRIPTORS, MASKED, PAGE, PAGES, BLOCK_N, HEAD_DIM, WIDTH,
            )  # fmt: skip
        scores = tl.dot(q_tile, k_tile.to(q_tile.dtype).T)
        if k_scale is not None and table is not None:
            k_by = page_scales(k_scale + kv_head, numbers, block, hi, limit, kv_heads, PAGE, PAGES)
            scores = scores * (of_rows(k_by, PAGES, BLOCK_N)[None, :] if PAGES > 1 else k_by)
        if MASKED:
            if CAUSAL:  # a row in range sees no key beyond the end; rows out of range are not stored
                seen = offsets[None, :] <= (tokens + (limit - seq_q - start_n))[:, None]
                if table is not None:
                    seen = seen & there[None, :]
            else:
                seen = there[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        base = new_max
        if MASKED:  # a row that has seen no key yet: -inf - -inf would be NaN
            base = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores * scale_log2 - base[:, None])
        rescale = tl.exp2(row_max - base)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None]
        if table is None:
            v_tile = load_rows(
                v, batch, kv_head, start_n, limit, stride_vb, stride_vh, stride_vn,
                DESCRIPTORS, MASKED, BLOCK_N, HEAD_DIM, WIDTH,
            )  # fmt: skip
        else:
            v_tile = load_pages(
                v, numbers, kv_head, block, there, stride_vb, stride_vh, stride_vn,
                DESCRIPTORS, MASKED, PAGE, PAGES, BLOCK_N, HEAD_DIM, WIDTH,
            )  # fmt: skip
            if v_scale is not None:
                v_by = page_scales(v_scale + kv_head, numbers, block, hi, limit, kv_heads, PAGE, PAGES)
                # fp16 weights times a scale alone would be subnormal: an element of fp8 is up to 448.
                v_by = (of_rows(v_by, PAGES, BLOCK_N)[None, :] if PAGES > 1 else v_by) * LIFT
                weights = weights * v_by
            numbers = page_numbers(own_table, block + 1, hi, limit, PAGE, PAGES, BLOCK_N)
        acc = tl.dot(weights.to(q_tile.dtype), v_tile.to(q_tile.dtype), acc)
        row_max = new_max

    total = tl.where(row_sum == 0.0, 1.0, row_sum)
    tile = acc / total[:, None]
    if v_scale is not None:
        tile = tile * (tl.load(v_scale + kv_head) if table is None else 1.0 / LIFT)
    first_row = tl.cast(batch, tl.int64) * kv_heads * group * seq_q
    if partial is not None:
        row = first_row + heads * seq_q + tokens
        at = tl.cast(split, tl.int64) * rows_of_all + row
        tl.store(lse + at, row_max + tl.log2(total), mask=rows < group * seq_q)
        tl.store(partial + at[:, None] * HEAD_DIM + columns, tile, mask=inside)
        if arrivals is not None:
            shares = tl.cdiv(block_count(limit, PAGE, PAGES, BLOCK_N), share)
            tl.debug_barrier()  # all warps have written before one thread says so
            if tl.atomic_add(arrivals + program, 1, sem="acq_rel") == tl.maximum(shares, 1) - 1:
                few = start_m + tl.arange(0, ROWS)
                in_range = few < tl.minimum(start_m + BLOCK_M, group * seq_q)
                of_head = kv_head * group + few % group
                result = merged(
                    partial, lse, first_row + of_head * seq_q + few // group, in_range, shares, rows_of_all,
                    HEAD_DIM, WIDTH, ROWS, AT_ONCE,
                )  # fmt: skip
                o_few = tl.cast(batch, tl.int64) * stride_ob + tl.cast(of_head, tl.int64) * stride_oh
                o_few = o_few + tl.cast(few // group, tl.int64) * stride_on
                tl.store(
                    out + o_few[:, None] + columns,
                    result.to(out.dtype.element_ty),
                    mask=in_range[:, None] & (columns < HEAD_DIM),
                )
                tl.store(arrivals + program, 0)
    else:
        o_rows = tl.cast(batch, tl.int64) * stride_ob + tl.cast(heads, tl.int64) * stride_oh
        o_rows = o_rows + tl.cast(tokens, tl.int64) * stride_on
        tl.store(out + o_rows[:, None] + columns, tile.to(out.dtype.element_ty), mask=inside)
