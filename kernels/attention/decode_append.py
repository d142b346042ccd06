"""New keys and values written into the slots of a K/V cache."""

import triton
import triton.language as tl

#: The largest number of float8_e4m3fn.
LARGEST = tl.constexpr(448.0)


@triton.jit(do_not_specialize=["kv_heads", "count"])  # type: ignore[untyped-decorator]
def decode_append(  # type: ignore[no-untyped-def]
    new_k,
    new_v,
    k,
    v,
    table,
    lengths,
    k_scale,
    v_scale,
    stride_ak,
    stride_hk,
    stride_ck,
    stride_av,
    stride_hv,
    stride_cv,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_tb,
    kv_heads,
    count,
    seq_k,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The `count` new rows of K and V of one K/V head to the last `count` positions of its sequence.

    BLOCK_M rows at a time. What is None is not there (see `decode_split`). For fp8 a row is divided by the
    scale of its slot and rounded to the nearest. A sequence of fewer tokens takes the last of the new ones.
    Traffic a K/V head, n rows: reads 2 n d e, and where there are any a length, 4 n of the table, and the two
    scales, of n pages or one head; writes 2 n d e_cache.
    """
    batch = tl.cast(tl.program_id(0) // kv_heads, tl.int64)
    head = tl.cast(tl.program_id(0) % kv_heads, tl.int64)
    limit = seq_k
    if lengths is not None:
        limit = tl.minimum(tl.load(lengths + batch), seq_k)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = limit - count + rows
    there = (rows < count) & (at >= 0)
    columns = tl.arange(0, WIDTH)[None, :]
    inside = there[:, None] & (columns < HEAD_DIM)
    from_k = new_k + batch * stride_ak + head * stride_hk + tl.cast(rows, tl.int64)[:, None] * stride_ck
    from_v = new_v + batch * stride_av + head * stride_hv + tl.cast(rows, tl.int64)[:, None] * stride_cv
    k_tile = tl.load(from_k + columns, mask=inside, other=0.0)
    v_tile = tl.load(from_v + columns, mask=inside, other=0.0)

    k_to, v_to = k + head * stride_kh, v + head * stride_vh
    if table is not None:
        pages = tl.load(table + batch * stride_tb + at // PAGE, mask=there, other=0)
        pages = tl.cast(pages, tl.int64)
        slots = tl.cast(at % PAGE, tl.int64)
        k_rows = pages * stride_kb + slots * stride_kn
        v_rows = pages * stride_vb + slots * stride_vn
    else:
        k_rows = batch * stride_kb + tl.cast(at, tl.int64) * stride_kn
        v_rows = batch * stride_vb + tl.cast(at, tl.int64) * stride_vn
    if k_scale is not None:
        if table is not None:
            k_by = tl.load(k_scale + pages * kv_heads + head, mask=there, other=1.0)[:, None]
            v_by = tl.load(v_scale + pages * kv_heads + head, mask=there, other=1.0)[:, None]
        else:
            k_by, v_by = tl.load(k_scale + head), tl.load(v_scale + head)
        k_tile = tl.clamp(tl.div_rn(k_tile.to(tl.float32), k_by), -LARGEST, LARGEST)
        v_tile = tl.clamp(tl.div_rn(v_tile.to(tl.float32), v_by), -LARGEST, LARGEST)
    tl.store(k_to + k_rows[:, None] + columns, k_tile.to(k.dtype.element_ty), mask=inside)
    tl.store(v_to + v_rows[:, None] + columns, v_tile.to(v.dtype.element_ty), mask=inside)
