"""Attention of one or a few query tokens over a long K/V cache, in Triton: the keys are split over programs.

Flash-decoding (Dao, Haziza, Massa, Sizov, 2023) in FlashAttention-2's arithmetic: programs walk shares of the
keys and leave partial results with their log-sum-exp, which a second kernel merges. The query heads that
share a K/V head, times the query tokens, are the rows of one tile, so that K and V are read once for all.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .shape import Shape, checked_shape, softmax_scale
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
    use_descriptors,
)
from .tiles import combine_tile, decode_splits, decode_tile, without_empty
from .use import KernelUse

#: Query tokens that the kernels are meant for; beyond them the tiles of `flash` are better.
MOST_TOKENS = 64
#: What the interpreter poses as: an H200.
SM_COUNT = 132


@triton.jit(do_not_specialize=["kv_heads", "group", "tiles_m", "share"])  # type: ignore[untyped-decorator]
def decode_split(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    out,
    partial,
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
    SPLIT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """softmax(scale Q K^T) V of one row tile of one K/V head, over one share of the keys.

    Row r of a K/V head is token r // g of its query head r % g. SPLIT: normalised partial O in fp32, and LSE
    to base 2 (-inf where a row sees no key of the share), of [shares, B, h, N_q]; else O. MASKED says that
    some block of keys has one that some row does not see.
    Traffic, e bytes per element, S shares, T = ceil(g N_q / BLOCK_M) row tiles of each K/V head: reads
    S g N_q d e of Q and 2 d e sum_t c_t of K and V a K/V head, where c_t = N_k without a mask, and causal
    c_t = min(N_k, BLOCK_N ceil(k_t / BLOCK_N)), k_t keys being seen by the last token of the tile. Writes
    g N_q d e, or S g N_q (4 d + 4) with shares.
    """
    program = tl.program_id(0)
    split = tl.program_id(1)
    start_m = program % tiles_m * BLOCK_M
    kv_head = program // tiles_m % kv_heads
    batch = program // tiles_m // kv_heads

    rows = start_m + tl.arange(0, BLOCK_M)
    tokens = rows // group
    heads = kv_head * group + rows % group
    columns = tl.arange(0, WIDTH)[None, :]
    inside = (rows < group * seq_q)[:, None] & (columns < HEAD_DIM)
    q_rows = tl.cast(batch, tl.int64) * stride_qb + tl.cast(heads, tl.int64) * stride_qh
    q_rows = q_rows + tl.cast(tokens, tl.int64) * stride_qn
    q_tile = tl.load(q + q_rows[:, None] + columns, mask=inside, other=0.0)

    lo = split * share * BLOCK_N
    hi = tl.minimum(lo + share * BLOCK_N, seq_k)
    if CAUSAL:
        last = (tl.minimum(start_m + BLOCK_M, group * seq_q) - 1) // group
        hi = tl.minimum(hi, last + 1 + seq_k - seq_q)

    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for start_n in tl.range(lo, hi, BLOCK_N):
        k_tile = load_rows(
            k, batch, kv_head, start_n, seq_k, stride_kb, stride_kh, stride_kn,
            DESCRIPTORS, MASKED, BLOCK_N, HEAD_DIM, WIDTH,
        )  # fmt: skip
        scores = tl.dot(q_tile, k_tile.T)
        if MASKED:
            keys = tl.arange(0, BLOCK_N)
            if CAUSAL:  # a row in range sees no key beyond N_k; rows out of range are not stored
                seen = keys[None, :] <= (tokens + (seq_k - seq_q - start_n))[:, None]
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

    total = tl.where(row_sum == 0.0, 1.0, row_sum)
    tile = acc / total[:, None]
    if SPLIT:
        row = (tl.cast(batch, tl.int64) * kv_heads * group + heads) * seq_q + tokens
        row = tl.cast(split, tl.int64) * rows_of_all + row
        tl.store(lse + row, row_max + tl.log2(total), mask=rows < group * seq_q)
        tl.store(partial + row[:, None] * HEAD_DIM + columns, tile, mask=inside)
    else:
        o_rows = tl.cast(batch, tl.int64) * stride_ob + tl.cast(heads, tl.int64) * stride_oh
        o_rows = o_rows + tl.cast(tokens, tl.int64) * stride_on
        tl.store(out + o_rows[:, None] + columns, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["heads"])  # type: ignore[untyped-decorator]
def decode_combine(  # type: ignore[no-untyped-def]
    partial,
    lse,
    out,
    stride_ob,
    stride_oh,
    stride_on,
    rows_of_all,
    heads,
    seq_q,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """O = sum_s 2^LSE_s O_s / sum_s 2^LSE_s of one row over its BLOCK_M shares, AT_ONCE of them at a time.

    Traffic a row: reads BLOCK_M (4 d + 4) bytes, writes d e.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    acc = tl.zeros([WIDTH], tl.float32)
    # Finite, so that shares of which a row sees no key do not make NaN of -inf - -inf.
    largest = tl.full([1], -1e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    for start in range(0, BLOCK_M, AT_ONCE):
        shares = start + tl.arange(0, AT_ONCE)
        there = shares < BLOCK_M
        at = tl.cast(shares, tl.int64) * rows_of_all + row
        log_sum = tl.load(lse + at, mask=there, other=float("-inf"))
        tile = tl.load(
            partial + at[:, None] * HEAD_DIM + columns[None, :],
            mask=there[:, None] & (columns < HEAD_DIM)[None, :],
            other=0.0,
        )
        new_largest = tl.maximum(largest, tl.max(log_sum, 0))
        weights = tl.exp2(log_sum - new_largest)
        rescale = tl.exp2(largest - new_largest)
        acc = acc * rescale + tl.sum(tile * weights[:, None], 0)
        total = total * rescale + tl.sum(weights, 0)
        largest = new_largest
    result = acc / tl.where(total == 0.0, 1.0, total)
    batch = tl.cast(row // seq_q // heads, tl.int64)
    head = tl.cast(row // seq_q % heads, tl.int64)
    to = out + batch * stride_ob + head * stride_oh + tl.cast(row % seq_q, tl.int64) * stride_on
    tl.store(to + columns, result.to(out.dtype.element_ty), mask=columns < HEAD_DIM)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    splits: int | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q. No autograd.

    `splits` asks for so many shares of the keys (fewer where some would be empty; default: what fills the
    device); `descriptors` forces TMA on or off. ValueError for what the kernels cannot serve.
    """
    shape = checked_shape(q, k, v)
    _check_served(q, splits)
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    rows = shape.group * shape.seq_q
    tile = decode_tile(shape.head_dim, rows, capability(q))
    tiles_m, key_blocks = triton.cdiv(rows, tile.block_m), triton.cdiv(shape.seq_k, tile.block_n)
    blocks = tiles_m * shape.kv_heads * shape.batch
    shares = (
        without_empty(splits, key_blocks)
        if splits is not None
        else decode_splits(blocks, key_blocks, _sm_count(q))
    )
    out, partial, lse = like_rows(q), None, None
    if shares > 1:
        partial = torch.empty((shares, *q.shape), dtype=torch.float32, device=q.device)
        lse = torch.empty((shares, *q.shape[:3]), dtype=torch.float32, device=q.device)
    described = use_descriptors(k, v) if descriptors is None else descriptors
    masked = causal and shape.seq_q > 1  # a single query at the end sees all keys
    with on_device(q):
        compiled = decode_split[(blocks, shares)](
            q,
            source(k, tile.block_n, described),
            source(v, tile.block_n, described),
            None if shares > 1 else out,
            partial,
            lse,
            *outer_strides(q),
            *outer_strides(k),
            *outer_strides(v),
            *outer_strides(out),
            shape.batch * shape.heads * shape.seq_q,
            shape.kv_heads,
            shape.group,
            tiles_m,
            triton.cdiv(key_blocks, shares),
            shape.seq_q,
            shape.seq_k,
            softmax_scale(scale, shape.head_dim) * LOG2_E,
            CAUSAL=masked,
            MASKED=masked or shape.seq_k % tile.block_n != 0,
            SPLIT=shares > 1,
            DESCRIPTORS=described,
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        note_use(uses, "decode_split", tile, compiled)
        if partial is not None and lse is not None:
            _combine(partial, lse, out, shape, uses)
        elif uses is not None and compiled is not None:
            # Not launched: said all the same, lest a model of another device's shares is taken for this run.
            uses.append(KernelUse("decode_combine", *combine_tile(1), 0, 0, 0))
    return out


def _combine(partial: Tensor, lse: Tensor, out: Tensor, shape: Shape, uses: list[KernelUse] | None) -> None:
    tile = combine_tile(partial.shape[0])
    rows = shape.batch * shape.heads * shape.seq_q
    compiled = decode_combine[(rows,)](
        partial,
        lse,
        out,
        *outer_strides(out),
        rows,
        shape.heads,
        shape.seq_q,
        HEAD_DIM=shape.head_dim,
        WIDTH=padded_width(shape.head_dim),
        BLOCK_M=tile.block_m,
        AT_ONCE=min(16, padded_width(tile.block_m)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    note_use(uses, "decode_combine", tile, compiled)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    splits: int | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N_q, d], float16 or bfloat16, N_q up to 64; without gradients.

    A causal mask is aligned to the bottom right; rows that see no key are 0. `splits` asks for so many shares
    of the keys, up to 1024. `uses` receives what the kernels used; block_m of "decode_combine" is the number
    of shares. ValueError for other dtypes, head dims outside 16..256 or no multiple of 8, and no CUDA device.
    """
    with torch.no_grad():
        return forward(q, k, v, causal, scale, splits=splits, uses=uses)


def _sm_count(q: Tensor) -> int:
    """Multiprocessors of the tensor's device."""
    return torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else SM_COUNT


def _check_served(q: Tensor, splits: int | None) -> None:
    """ValueError, with the reason, for what the kernels cannot serve."""
    check_served(q)
    if q.shape[2] > MOST_TOKENS:
        raise ValueError(f"flash-decode serves up to {MOST_TOKENS} query tokens, got {q.shape[2]}")
    if splits is not None and not 1 <= splits <= 1024:
        raise ValueError(f"splits must be from 1 to 1024, got {splits}")
