"""FlashAttention-3 backward in Gluon, for compute capability 9.0 only.

Shah, Bikshandi, Zhang, Thakkar, Ramani, Dao, "FlashAttention-3", arXiv 2407.08608, appendix B.1. One warp
loads by TMA; two warpgroups compute, each for 64 keys (dK, dV) or 64 rows of Q (dQ) of its own. By default
one kernel gives dK, dV and, with atomic additions in float32, dQ: five matrix products, and a sum whose order
and last bits differ from run to run. Up to 64 columns a third warpgroup computes dQ, above the two that have
dK and dV. `deterministic` takes two kernels and seven products instead.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .flash_hopper import _barriers, _descriptor, served_shape
from .shape import Shape, softmax_scale
from .tile_io import (
    LOG2_E,
    can_describe,
    like_rows,
    load_rows,
    note_use,
    on_device,
    outer_strides,
    padded_width,
    rows_contiguous,
    store_rows,
)
from .tiles import (
    HOPPER_BACKWARD_WARPS,
    HOPPER_FIXED_ROWS,
    HOPPER_STATISTICS_ROWS,
    HOPPER_SUM_TILE,
    HOPPER_WIDTH,
    HopperBackwardTile,
    Tile,
    hopper_backward_tile,
    hopper_shares,
)
from .use import KernelUse

# The kernels hold HOPPER_FIXED_ROWS, and the 64 of these that are a warpgroup's, as literals. LSE and D are
# padded to a multiple of them, so that no tile of theirs is out of range.


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


@gluon.jit  # type: ignore[untyped-decorator]
def _rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL: gl.constexpr, BLOCK_M: gl.constexpr):  # type: ignore[no-untyped-def]
    """(first, first without a mask) of the blocks of rows that keys [start_n, start_n + 128) meet.

    Blocks up to the second one are masked, those from there to the last one, tiles_m - 1, are not. The keys
    beyond N_k of the last block of keys are always masked: their weights could be inf, and inf * 0 NaN in dQ.
    """
    first = 0
    full = 0
    if CAUSAL:
        first = gl.maximum(start_n - (seq_k - seq_q), 0) // BLOCK_M
        full = gl.maximum(start_n + 127 - (seq_k - seq_q), 0)
        full = gl.minimum((full + BLOCK_M - 1) // BLOCK_M, tiles_m)
    elif start_n + 128 > seq_k:
        full = tiles_m
    return first, full


@gluon.jit  # type: ignore[untyped-decorator]
def _load_queries(sources, fixed, ring, sizes, CAUSAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """The producer of the dK/dV kernel: K and V once, then Q with LSE and dO with D of the blocks of rows."""
    q_desc, g_desc, k_desc, v_desc, lse_desc, delta_desc = sources
    k_tiles, v_tiles, kv_full = fixed
    q_tiles, lse_tiles, g_tiles, delta_tiles, full_bars, empty_bars = ring
    kv_heads, group, shares, tiles_n, tiles_m, padded, seq_q, seq_k = sizes
    STAGES: gl.constexpr = q_tiles.shape[0]
    BLOCK_M: gl.constexpr = q_tiles.shape[3]
    place = gl.program_id(0)
    start_n = place % tiles_n * 128
    kv_head_all = place // tiles_n
    batch = kv_head_all // kv_heads
    kv_head = kv_head_all % kv_heads
    mbarrier.expect(kv_full, 4 * k_desc.block_type.nbytes)
    for w in gl.static_range(2):
        row = start_n + w * 64
        place_in_kv = [batch, kv_head // shares, row, 0]
        tma.async_copy_global_to_shared(k_desc, place_in_kv, kv_full, k_tiles.index(w))
        tma.async_copy_global_to_shared(v_desc, place_in_kv, kv_full, v_tiles.index(w))
    first, _ = _rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, BLOCK_M)
    count = 0
    for member in range(group):
        head = kv_head * group + member
        statistics = (kv_head_all * group + member) * padded
        for block in range(first, tiles_m):
            row = block * BLOCK_M
            stage = count % STAGES
            full = full_bars.index(stage)
            mbarrier.wait(empty_bars.index(stage), (count // STAGES & 1) ^ 1)
            mbarrier.expect(full, 2 * q_desc.block_type.nbytes + BLOCK_M * 8)
            tma.async_copy_global_to_shared(q_desc, [batch, head, row, 0], full, q_tiles.index(stage))
            tma.async_copy_global_to_shared(lse_desc, [statistics + row], full, lse_tiles.index(stage))
            tma.async_copy_global_to_shared(g_desc, [batch, head, row, 0], full, g_tiles.index(stage))
            tma.async_copy_global_to_shared(delta_desc, [statistics + row], full, delta_tiles.index(stage))
            count += 1


@gluon.jit
def _add_dq(dq_sum, part, tile):  # type: ignore[no-untyped-def]
    """Adds a 64 x 64 tile to the `part`-th 4096 numbers of dq_sum, in the order of the registers of wgmma.

    A thread holds (row, row + 8) x two columns of each 8 columns: it adds these four at once, 16 bytes, and a
    warp 512 bytes in one piece. `flash_hopper_dq_from_sum` knows the order.
    """
    # row = 16 warp + 8 half + lane / 4, column = 8 block + 2 (lane % 4) + odd
    flat = tile.reshape([4, 2, 8, 8, 4, 2]).permute([0, 3, 2, 4, 1, 5]).reshape([4096])
    offsets = gl.arange(0, 4096, flat.type.layout)
    gl.atomic_add(dq_sum + part.to(gl.int64) * 4096 + offsets, flat, sem="relaxed")


@gluon.jit  # type: ignore[untyped-decorator]
def _steps(  # type: ignore[no-untyped-def]
    dk,
    dv,
    count,
    lo,
    hi,
    first_part,
    start_n,
    arguments,
    W: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
    DQ: gl.constexpr,
    AHEAD: gl.constexpr,
):
    """The blocks of rows [lo, hi) of one query head. All but dQ is transposed: [keys, rows].

    Where dQ is computed apart there are registers for K and V, which then are not read for each block.
    AHEAD: dS^T Q of a block goes on while the next one begins. dS^T then comes from shared memory: with it in
    registers, ptxas makes all products wait for one another.
    """
    fixed, ring, exchange, sizes, scale_log2 = arguments
    k_tiles, v_tiles, _kv_full = fixed
    q_tiles, lse_tiles, g_tiles, delta_tiles, full_bars, empty_bars = ring
    dq_sum, ds_tiles, ds_full, ds_empty = exchange
    _kv_heads, _group, _shares, _tiles_n, _tiles_m, _padded, seq_q, seq_k = sizes
    STAGES: gl.constexpr = q_tiles.shape[0]
    BLOCK_M: gl.constexpr = q_tiles.shape[3]
    WIDTH: gl.constexpr = q_tiles.shape[4]
    DS_STAGES: gl.constexpr = ds_tiles.shape[0] // 2
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    DQ_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    ACC_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, ACC_LAYOUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    KEPT: gl.constexpr = gl.DotOperandLayout(0, S_LAYOUT, 2)
    if DQ == "apart":
        k_left = k_tiles.index(W).reshape([64, WIDTH]).load(KEPT)
        v_left = v_tiles.index(W).reshape([64, WIDTH]).load(KEPT)
    if AHEAD:
        dk = warpgroup_mma_init(dk)
    for block in range(lo, hi):
        # 0, but the compiler does not know it, else it keeps dozens of loop-invariant addresses and spills.
        zero_index = count >> 30
        if DQ != "apart":
            k_left = k_tiles.index(zero_index + W).reshape([64, WIDTH])
            v_left = v_tiles.index(zero_index + W).reshape([64, WIDTH])
        stage = count % STAGES
        phase = count // STAGES & 1
        q_tile = q_tiles.index(stage).reshape([BLOCK_M, WIDTH])
        g_tile = g_tiles.index(stage).reshape([BLOCK_M, WIDTH])
        zero = gl.zeros([64, BLOCK_M], gl.float32, S_LAYOUT)
        mbarrier.wait(full_bars.index(stage), phase)
        scores = warpgroup_mma(k_left, q_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        d_weights = warpgroup_mma(v_left, g_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        log_sum = lse_tiles.index(stage).load(ROW)
        if AHEAD:
            scores, dk = warpgroup_mma_wait(1, deps=(scores, dk))
            mbarrier.arrive(empty_bars.index((count + STAGES - 1) % STAGES), pred=count > 0)
        else:
            scores = warpgroup_mma_wait(1, deps=(scores,))
        weights = gl.exp2(scores * scale_log2 - log_sum[None, :])
        if MASKED:
            keys = gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT)) + (start_n + W * 64)
            if CAUSAL:
                rows = gl.arange(0, BLOCK_M, ROW) + (block * BLOCK_M + seq_k - seq_q)
                weights = gl.where(keys[:, None] <= rows[None, :], weights, 0.0)
            else:
                weights = gl.where((keys < seq_k)[:, None], weights, 0.0)
        # Is over. It keeps ptxas from moving the exponentials behind the wait for the product.
        mbarrier.wait(full_bars.index(stage), phase)
        if DQ == "apart":  # there are registers for it
            row_delta = delta_tiles.index(stage).load(ROW)
        d_weights = warpgroup_mma_wait(0, deps=(d_weights,))
        if DQ != "apart":
            row_delta = delta_tiles.index(stage).load(ROW)
        left = gl.convert_layout(weights.to(q_tile.dtype), LEFT)
        d_scores = (weights * (d_weights - row_delta[None, :])).to(q_tile.dtype)
        dv = warpgroup_mma(left, g_tile, dv, is_async=True)
        if DQ != "none":
            ds_stage = count % DS_STAGES
            ds_phase = count // DS_STAGES & 1
            mbarrier.wait(ds_empty.index(ds_stage), ds_phase ^ 1)
            ds_tiles.index(ds_stage * 2 + W).store(d_scores)
            fence_async_shared()
            mbarrier.arrive(ds_full.index(ds_stage))
        if DQ == "shared":
            mbarrier.wait(ds_full.index(ds_stage), ds_phase)
            dq = gl.zeros([64, 64], gl.float32, DQ_LAYOUT)
            for w in gl.static_range(2):
                ds_tile = ds_tiles.index(zero_index + w)
                keys_tile = k_tiles.index(zero_index + w).reshape([64, WIDTH]).slice(64 * W, 64, dim=1)
                dq = warpgroup_mma(ds_tile.permute((1, 0)), keys_tile, dq, use_acc=w > 0, is_async=True)
        if AHEAD:
            dk = warpgroup_mma(ds_tiles.index(ds_stage * 2 + W), q_tile, dk, is_async=True)
        else:
            dk = warpgroup_mma(gl.convert_layout(d_scores, LEFT), q_tile, dk, is_async=True)
        if DQ == "shared":
            dq = warpgroup_mma_wait(1, deps=(dq,))
            mbarrier.arrive(ds_empty.index(ds_stage))
            _add_dq(dq_sum, first_part + block * 2 + W, dq)
        if AHEAD:
            dv = warpgroup_mma_wait(1, deps=(dv,))
        else:
            dk, dv = warpgroup_mma_wait(0, deps=(dk, dv))
            mbarrier.arrive(empty_bars.index(stage))
        count += 1
    if AHEAD:
        dk = warpgroup_mma_wait(0, deps=(dk,))
    return dk, dv, count


@gluon.jit  # type: ignore[untyped-decorator]
def _pass_over(  # type: ignore[no-untyped-def]
    count, block, first_part, arguments, DQ: gl.constexpr, AHEAD: gl.constexpr
):
    """A block of 64 rows of which none sees a key of the second warpgroup: all that has is dS = 0 for dQ."""
    fixed, ring, exchange, _sizes, _scale_log2 = arguments
    k_tiles, _v_tiles, _kv_full = fixed
    q_tiles, _lse_tiles, _g_tiles, _delta_tiles, full_bars, empty_bars = ring
    dq_sum, ds_tiles, ds_full, ds_empty = exchange
    STAGES: gl.constexpr = q_tiles.shape[0]
    DS_STAGES: gl.constexpr = ds_tiles.shape[0] // 2
    WIDTH: gl.constexpr = q_tiles.shape[4]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    stage = count % STAGES
    # It is loaded, so all gave its buffer back: an arrival now is counted for this block.
    mbarrier.wait(full_bars.index(stage), count // STAGES & 1)
    if DQ != "none":
        ds_stage = count % DS_STAGES
        ds_phase = count // DS_STAGES & 1
        mbarrier.wait(ds_empty.index(ds_stage), ds_phase ^ 1)
        ds_tiles.index(ds_stage * 2 + 1).store(gl.zeros([64, 64], q_tiles.dtype, LAYOUT))
        fence_async_shared()
        mbarrier.arrive(ds_full.index(ds_stage))
    if DQ == "shared":
        mbarrier.wait(ds_full.index(ds_stage), ds_phase)
        ds_tile = ds_tiles.index(0).permute((1, 0))
        keys_tile = k_tiles.index(0).reshape([64, WIDTH]).slice(64, 64, dim=1)
        dq = gl.zeros([64, 64], gl.float32, LAYOUT)
        dq = warpgroup_mma(ds_tile, keys_tile, dq, use_acc=False, is_async=True)
        dq = warpgroup_mma_wait(0, deps=(dq,))
        mbarrier.arrive(ds_empty.index(ds_stage))
        _add_dq(dq_sum, first_part + block * 2 + 1, dq)
    if AHEAD:
        mbarrier.arrive(empty_bars.index((count + STAGES - 1) % STAGES), pred=count > 0)
    else:
        mbarrier.arrive(empty_bars.index(stage))


@gluon.jit  # type: ignore[untyped-decorator]
def _compute_keys(  # type: ignore[no-untyped-def]
    arguments,
    outputs,
    scale,
    W: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    DQ: gl.constexpr,
    AHEAD: gl.constexpr,
):
    """A consumer of the dK/dV kernel: the W-th warpgroup, keys [64 W, 64 W + 64) of the program's 128."""
    fixed, ring, exchange, sizes, _scale_log2 = arguments
    k_tiles, v_tiles, kv_full = fixed
    dk_desc, dv_desc = outputs
    kv_heads, group, _shares, tiles_n, tiles_m, _padded, seq_q, seq_k = sizes
    BLOCK_M: gl.constexpr = ring[0].shape[3]
    WIDTH: gl.constexpr = k_tiles.shape[4]
    DS_STAGES: gl.constexpr = exchange[1].shape[0] // 2
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    place = gl.program_id(0)
    start_n = place % tiles_n * 128
    kv_head_all = place // tiles_n
    first, full = _rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, BLOCK_M)
    dk = gl.zeros([64, WIDTH], gl.float32, LAYOUT)
    dv = gl.zeros([64, WIDTH], gl.float32, LAYOUT)
    count = 0
    mbarrier.wait(kv_full, 0)
    for member in range(group):
        first_part = (kv_head_all * group + member) * tiles_m * 2
        lo = first
        if CAUSAL and W == 1 and BLOCK_M == 64:
            last_row = lo * 64 + 63 + (seq_k - seq_q)
            if (lo < tiles_m) & (last_row < start_n + 64):
                _pass_over(count, lo, first_part, arguments, DQ, AHEAD)
                count += 1
                lo += 1
        if CAUSAL or not EVEN_N:
            dk, dv, count = _steps(
                dk, dv, count, lo, full, first_part, start_n, arguments,
                W, True, CAUSAL, DQ, AHEAD,
            )  # fmt: skip
        dk, dv, count = _steps(
            dk, dv, count, full, tiles_m, first_part, start_n, arguments,
            W, False, CAUSAL, DQ, AHEAD,
        )  # fmt: skip
    if DQ != "none":  # another warpgroup reads this one's K for its part of dQ
        last = count + DS_STAGES - 1
        mbarrier.wait(exchange[3].index(last % DS_STAGES), (last // DS_STAGES & 1) ^ 1)
    k_tile = k_tiles.index(W)
    v_tile = v_tiles.index(W)
    k_tile.reshape([64, WIDTH]).store((dk * scale).to(k_tile.dtype))
    v_tile.reshape([64, WIDTH]).store(dv.to(v_tile.dtype))
    fence_async_shared()
    where = [kv_head_all // kv_heads, kv_head_all % kv_heads, start_n + W * 64, 0]
    tma.async_copy_shared_to_global(dk_desc, where, k_tile)
    tma.async_copy_shared_to_global(dv_desc, where, v_tile)
    tma.store_wait(0)


@gluon.jit  # type: ignore[untyped-decorator]
def _compute_dq(arguments, CAUSAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """A warpgroup for dQ alone: dS K of 64 rows at a time, from what the other two wrote of dS."""
    fixed, ring, exchange, sizes, _scale_log2 = arguments
    k_tiles, _v_tiles, kv_full = fixed
    dq_sum, ds_tiles, ds_full, ds_empty = exchange
    _kv_heads, group, _shares, tiles_n, tiles_m, padded, seq_q, seq_k = sizes
    BLOCK_M: gl.constexpr = ring[0].shape[3]
    DS_STAGES: gl.constexpr = ds_tiles.shape[0] // 2
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    place = gl.program_id(0)
    start_n = place % tiles_n * 128
    kv_head_all = place // tiles_n
    first, _ = _rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, BLOCK_M)
    count = 0
    mbarrier.wait(kv_full, 0)
    for member in range(group):
        first_part = (kv_head_all * group + member) * (padded // 64)
        for block in range(first, tiles_m):
            stage = count % DS_STAGES
            mbarrier.wait(ds_full.index(stage), count // DS_STAGES & 1)
            dq = gl.zeros([64, 64], gl.float32, LAYOUT)
            for w in gl.static_range(2):
                ds_tile = ds_tiles.index(stage * 2 + w).permute((1, 0))
                keys_tile = k_tiles.index(w).reshape([64, 64])
                dq = warpgroup_mma(ds_tile, keys_tile, dq, use_acc=w > 0, is_async=True)
            dq = warpgroup_mma_wait(0, deps=(dq,))
            mbarrier.arrive(ds_empty.index(stage))
            _add_dq(dq_sum, first_part + block, dq)
            count += 1


@gluon.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["kv_heads", "group", "shares", "tiles_n", "tiles_m", "padded", "seq_q", "seq_k"]
)
def flash_hopper_dkdv(  # type: ignore[no-untyped-def]
    q_desc,
    g_desc,
    k_desc,
    v_desc,
    lse_desc,
    delta_desc,
    dk_desc,
    dv_desc,
    dq_sum,
    kv_heads,
    group,
    shares,
    tiles_n,
    tiles_m,
    padded,
    seq_q,
    seq_k,
    scale,
    scale_log2,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    DQ: gl.constexpr,
    AHEAD: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_M: gl.constexpr,
    STAGES: gl.constexpr,
):
    """dV = P^T dO and dK = scale dS^T Q for 128 keys of one key/value head, over `group` query heads of it.

    Where a head's are dealt out in `shares`, kv_heads counts those of all heads, and dK and dV are parts of
    sums.
    DQ: "none"; "shared", also adds dS K to dq_sum, 64 of 128 columns by each warpgroup; "apart", all 64
    columns by a third warpgroup. Traffic per key/value head as `flash_backward.flash_dkdv` states it, with
    BLOCK_N = 128; with dQ also adds to g sum_j r_j 4 WIDTH bytes, r_j rounded up to whole blocks.
    """
    dtype: gl.constexpr = q_desc.dtype
    k_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], v_desc.layout)
    q_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_M, WIDTH], q_desc.layout)
    g_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_M, WIDTH], g_desc.layout)
    lse_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], lse_desc.layout)
    delta_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], delta_desc.layout)
    fixed = (k_tiles, v_tiles, _barriers(1, 1).index(0))
    ring = (q_tiles, lse_tiles, g_tiles, delta_tiles, _barriers(STAGES, 1), _barriers(STAGES, 2))
    # Two, so that those that make dS can be a block ahead of the one that reads it.
    DS_STAGES: gl.constexpr = 2 if DQ == "apart" else 1
    DS_READERS: gl.constexpr = 1 if DQ == "apart" else 2
    ds_tiles = k_tiles
    if DQ != "none":
        ds_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
        ds_tiles = gl.allocate_shared_memory(dtype, [2 * DS_STAGES, 64, BLOCK_M], ds_layout)
    exchange = (dq_sum, ds_tiles, _barriers(DS_STAGES, 2), _barriers(DS_STAGES, DS_READERS))
    fence_async_shared()

    sources = (q_desc, g_desc, k_desc, v_desc, lse_desc, delta_desc)
    sizes = (kv_heads, group, shares, tiles_n, tiles_m, padded, seq_q, seq_k)
    arguments = (fixed, ring, exchange, sizes, scale_log2)
    outputs = (dk_desc, dv_desc)
    if DQ == "apart":
        gl.warp_specialize(
            [
                (_compute_keys, (arguments, outputs, scale, 0, CAUSAL, EVEN_N, DQ, AHEAD)),
                (_compute_keys, (arguments, outputs, scale, 1, CAUSAL, EVEN_N, DQ, AHEAD)),
                (_compute_dq, (arguments, CAUSAL)),
                (_load_queries, (sources, fixed, ring, sizes, CAUSAL)),
            ],
            [4, 4, 1],
            [208, 72, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_compute_keys, (arguments, outputs, scale, 0, CAUSAL, EVEN_N, DQ, AHEAD)),
                (_compute_keys, (arguments, outputs, scale, 1, CAUSAL, EVEN_N, DQ, AHEAD)),
                (_load_queries, (sources, fixed, ring, sizes, CAUSAL)),
            ],
            [4, 1],
            [240, 24],
        )


@gluon.jit  # type: ignore[untyped-decorator]
def _keys_seen(start, seq_q, seq_k, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr):  # type: ignore[no-untyped-def]
    """Blocks of keys that rows [start, start + 128) meet, maybe none."""
    end = seq_k
    if CAUSAL:
        end = gl.maximum(gl.minimum(start + 128, seq_q) + seq_k - seq_q, 0)
    return (end + BLOCK_N - 1) // BLOCK_N


@gluon.jit  # type: ignore[untyped-decorator]
def _load_keys(sources, fixed, ring, sizes, CAUSAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """The producer of the dQ kernel: Q and dO once, then K and V of the blocks of keys."""
    q_desc, g_desc, k_desc, v_desc = sources
    q_tiles, g_tiles, q_full = fixed
    k_tiles, k_full, k_empty, v_tiles, v_full, v_empty = ring
    heads, group, tiles_m, _padded, seq_q, seq_k = sizes
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    tile = gl.program_id(0) % tiles_m
    if CAUSAL:
        tile = tiles_m - 1 - tile
    head_all = gl.program_id(0) // tiles_m
    batch = head_all // heads
    head = head_all % heads
    mbarrier.expect(q_full, 4 * q_desc.block_type.nbytes)
    for w in gl.static_range(2):
        row = tile * 128 + w * 64
        tma.async_copy_global_to_shared(q_desc, [batch, head, row, 0], q_full, q_tiles.index(w))
        tma.async_copy_global_to_shared(g_desc, [batch, head, row, 0], q_full, g_tiles.index(w))
    kv_head = head // group
    for block in range(_keys_seen(tile * 128, seq_q, seq_k, CAUSAL, BLOCK_N)):
        row = block * BLOCK_N
        stage = block % STAGES
        free = (block // STAGES & 1) ^ 1
        full = k_full.index(stage)
        mbarrier.wait(k_empty.index(stage), free)
        mbarrier.expect(full, k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [batch, kv_head, row, 0], full, k_tiles.index(stage))
        full = v_full.index(stage)
        mbarrier.wait(v_empty.index(stage), free)
        mbarrier.expect(full, v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [batch, kv_head, row, 0], full, v_tiles.index(stage))


@gluon.jit  # type: ignore[untyped-decorator]
def _query_steps(  # type: ignore[no-untyped-def]
    acc,
    log_sum,
    row_delta,
    lo,
    hi,
    start,
    arguments,
    W: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
):
    """The blocks of keys [lo, hi) of the W-th warpgroup's rows, of which `start` is the first."""
    fixed, ring, sizes, scale_log2 = arguments
    q_tiles, g_tiles, _q_full = fixed
    k_tiles, k_full, k_empty, v_tiles, v_full, v_empty = ring
    _heads, _group, _tiles_m, _padded, seq_q, seq_k = sizes
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    WIDTH: gl.constexpr = k_tiles.shape[4]
    S_LAYOUT: gl.constexpr = log_sum.type.layout.parent
    LEFT: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    q_tile = q_tiles.index(W).reshape([64, WIDTH])
    g_tile = g_tiles.index(W).reshape([64, WIDTH])
    for block in range(lo, hi):
        stage = block % STAGES
        phase = block // STAGES & 1
        k_tile = k_tiles.index(stage).reshape([BLOCK_N, WIDTH])
        v_tile = v_tiles.index(stage).reshape([BLOCK_N, WIDTH])
        zero = gl.zeros([64, BLOCK_N], gl.float32, S_LAYOUT)
        mbarrier.wait(k_full.index(stage), phase)
        scores = warpgroup_mma(q_tile, k_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(stage), phase)
        d_weights = warpgroup_mma(g_tile, v_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        weights = gl.exp2(scores * scale_log2 - log_sum[:, None])
        if MASKED:
            keys = gl.arange(0, BLOCK_N, gl.SliceLayout(0, S_LAYOUT)) + block * BLOCK_N
            if CAUSAL:
                last = gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT)) + (start + seq_k - seq_q)
                weights = gl.where(keys[None, :] <= last[:, None], weights, 0.0)
            else:
                weights = gl.where((keys < seq_k)[None, :], weights, 0.0)
        # Is over. It keeps ptxas from moving the exponentials behind the wait for the product.
        mbarrier.wait(v_full.index(stage), phase)
        d_weights = warpgroup_mma_wait(0, deps=(d_weights,))
        mbarrier.arrive(v_empty.index(stage))
        d_scores = (weights * (d_weights - row_delta[:, None])).to(q_tile.dtype)
        acc = warpgroup_mma(gl.convert_layout(d_scores, LEFT), k_tile, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(k_empty.index(stage))
    return acc


@gluon.jit  # type: ignore[untyped-decorator]
def _compute_queries(  # type: ignore[no-untyped-def]
    arguments, outputs, scale, W: gl.constexpr, CAUSAL: gl.constexpr, EVEN_N: gl.constexpr
):
    """A consumer of the dQ kernel: the W-th warpgroup, rows [64 W, 64 W + 64) of the program's 128."""
    fixed, ring, sizes, _scale_log2 = arguments
    q_tiles, _g_tiles, q_full = fixed
    dq_desc, log_sums, delta = outputs
    heads, _group, tiles_m, padded, seq_q, seq_k = sizes
    BLOCK_N: gl.constexpr = ring[0].shape[3]
    WIDTH: gl.constexpr = q_tiles.shape[4]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    tile = gl.program_id(0) % tiles_m
    if CAUSAL:  # the longest first
        tile = tiles_m - 1 - tile
    head_all = gl.program_id(0) // tiles_m
    start = tile * 128 + W * 64
    hi = _keys_seen(tile * 128, seq_q, seq_k, CAUSAL, BLOCK_N)
    full = seq_k // BLOCK_N  # blocks before the first one that needs a mask
    if CAUSAL:
        full = gl.minimum(gl.maximum(start + seq_k - seq_q + 1, 0) // BLOCK_N, hi)
    rows = head_all.to(gl.int64) * padded + start + gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT))
    log_sum = gl.load(log_sums + rows)
    row_delta = gl.load(delta + rows)
    acc = gl.zeros([64, WIDTH], gl.float32, LAYOUT)
    mbarrier.wait(q_full, 0)
    acc = _query_steps(acc, log_sum, row_delta, 0, full, start, arguments, W, False, CAUSAL)
    if CAUSAL or not EVEN_N:
        acc = _query_steps(acc, log_sum, row_delta, full, hi, start, arguments, W, True, CAUSAL)
    q_tile = q_tiles.index(W)
    q_tile.reshape([64, WIDTH]).store((acc * scale).to(q_tile.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(dq_desc, [head_all // heads, head_all % heads, start, 0], q_tile)
    tma.store_wait(0)


@gluon.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["heads", "group", "tiles_m", "padded", "seq_q", "seq_k"]
)
def flash_hopper_dq(  # type: ignore[no-untyped-def]
    q_desc,
    g_desc,
    k_desc,
    v_desc,
    dq_desc,
    log_sums,
    delta,
    heads,
    group,
    tiles_m,
    padded,
    seq_q,
    seq_k,
    scale,
    scale_log2,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """dQ = scale dS K for 128 rows of Q of one head. Traffic per head: see `flash_backward.flash_dq`."""
    dtype: gl.constexpr = q_desc.dtype
    q_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], q_desc.layout)
    g_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], g_desc.layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, WIDTH], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, WIDTH], v_desc.layout)
    fixed = (q_tiles, g_tiles, _barriers(1, 1).index(0))
    ring = (
        k_tiles, _barriers(STAGES, 1), _barriers(STAGES, 2),
        v_tiles, _barriers(STAGES, 1), _barriers(STAGES, 2),
    )  # fmt: skip
    fence_async_shared()

    sources = (q_desc, g_desc, k_desc, v_desc)
    sizes = (heads, group, tiles_m, padded, seq_q, seq_k)
    arguments = (fixed, ring, sizes, scale_log2)
    outputs = (dq_desc, log_sums, delta)
    gl.warp_specialize(
        [
            (_compute_queries, (arguments, outputs, scale, 0, CAUSAL, EVEN_N)),
            (_compute_queries, (arguments, outputs, scale, 1, CAUSAL, EVEN_N)),
            (_load_keys, (sources, fixed, ring, sizes, CAUSAL)),
        ],
        [4, 1],
        [240, 24],
    )


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
        # The order that `_add_dq` wrote: warp, block of columns, lane / 4, lane % 4, half, odd.
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


class _Call(NamedTuple):
    """One call, checked: its tensors, sizes and what both kernels share."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    log_sums: Tensor
    delta: Tensor
    shape: Shape
    causal: bool
    factor: float
    tile: HopperBackwardTile
    width: int
    uses: list[KernelUse] | None


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    deterministic: bool = False,
    tile: HopperBackwardTile | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) like q, k and v, from what `flash_hopper.forward` or `flash.forward` gave.

    dK and dV are summed over the query heads of each group, in a fixed order; the order in which dQ is summed
    is fixed only if `deterministic`. ValueError for what the kernels cannot serve: as `flash_hopper.forward`,
    and head dims above 128.
    """
    shape = served_shape(q, k, v)
    if shape.head_dim > 128:
        raise ValueError(f"flash_hopper's backward serves head dims up to 128, got {shape.head_dim}")
    width = max(HOPPER_WIDTH, padded_width(shape.head_dim))
    tile = tile or hopper_backward_tile(shape.head_dim, causal, deterministic)
    _check_tile(tile, width, deterministic)
    dout = _addressable(dout)
    factor = softmax_scale(scale, shape.head_dim)
    dq_sum = None
    if not deterministic:
        total = shape.batch * shape.heads * triton.cdiv(shape.seq_q, HOPPER_SUM_TILE // width)
        dq_sum = torch.empty((total, HOPPER_SUM_TILE), dtype=torch.float32, device=q.device)
    log_sums, delta = statistics(out, dout, lse, dq_sum, uses=uses)
    call = _Call(q, k, v, dout, log_sums, delta, shape, causal, factor, tile, width, uses)
    dk, dv = _dkdv(call, dq_sum)
    return _dq(call) if dq_sum is None else _dq_from_sum(call, dq_sum), dk, dv


def _check_tile(tile: HopperBackwardTile, width: int, deterministic: bool) -> None:
    """ValueError for what the kernels cannot compute with."""
    wrong = None
    if deterministic:
        if tile.apart or tile.ahead:
            wrong = "only a call that is not deterministic has dQ apart or a block ahead"
    elif tile.block_m != 64 or tile.apart != (width == 64):
        wrong = "dQ is added 64 rows at a time, apart up to 64 columns and not above"
    elif tile.ahead and (tile.apart or tile.stages < 2):
        wrong = "a block ahead takes two stages, and dQ not apart"
    if wrong:
        raise ValueError(f"{wrong}: got {tile} for {width} columns")


def _addressable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a dense copy where TMA cannot address it: the gradient of a sum has strides of 0.

    A copy even of a dense tensor, which `contiguous` would return, if its base is not aligned.
    """
    if tensor.stride(-1) == 1 and can_describe(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def statistics(
    out: Tensor,
    dout: Tensor,
    lse: Tensor,
    dq_sum: Tensor | None = None,
    *,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(LSE in base 2, D), float32 [B h, N_q rounded up to 128], and zeros in dq_sum."""
    out = rows_contiguous(out)
    batch, heads, seq_q, head_dim = out.shape
    padded = triton.cdiv(seq_q, HOPPER_FIXED_ROWS) * HOPPER_FIXED_ROWS
    log_sums, delta = (
        torch.empty((batch * heads, padded), dtype=torch.float32, device=out.device) for _ in range(2)
    )
    tiles_m = padded // HOPPER_STATISTICS_ROWS
    width = max(HOPPER_WIDTH, padded_width(head_dim))
    with on_device(out):
        compiled = flash_hopper_statistics[(tiles_m * batch * heads,)](
            out,
            dout,
            lse.contiguous(),
            log_sums,
            delta,
            delta if dq_sum is None else dq_sum,
            *outer_strides(out),
            *outer_strides(dout),
            heads,
            tiles_m,
            padded,
            seq_q,
            0 if dq_sum is None else dq_sum.numel() // (batch * heads),
            HEAD_DIM=head_dim,
            WIDTH=padded_width(head_dim),
            BLOCK_M=HOPPER_STATISTICS_ROWS,
            ZEROED=0 if dq_sum is None else HOPPER_STATISTICS_ROWS * width,
            num_warps=4,
        )
    note_use(uses, "flash_hopper_statistics", Tile(HOPPER_STATISTICS_ROWS, 0, 4, 1), compiled)
    return log_sums, delta


def _dkdv(call: _Call, dq_sum: Tensor | None) -> tuple[Tensor, Tensor]:
    """(dK, dV); adds dQ / scale to dq_sum unless None."""
    shape, tile, width = call.shape, call.tile, call.width
    tiles_n = triton.cdiv(shape.seq_k, HOPPER_FIXED_ROWS)
    shares = hopper_shares(tiles_n * shape.kv_heads * shape.batch, shape.group)
    parts = None
    if shares == 1:
        dk, dv = like_rows(call.k), like_rows(call.v)
    else:
        sizes = (2, shape.batch, shape.kv_heads * shares, shape.seq_k, shape.head_dim)
        parts = torch.empty(sizes, dtype=call.k.dtype, device=call.k.device)
        dk, dv = parts
    with on_device(call.q):
        compiled = flash_hopper_dkdv[(tiles_n * shape.kv_heads * shares * shape.batch,)](
            _descriptor(call.q, tile.block_m, width),
            _descriptor(call.dout, tile.block_m, width),
            *(_descriptor(tensor, 64, width) for tensor in (call.k, call.v)),
            *(_numbers(tensor, tile.block_m) for tensor in (call.log_sums, call.delta)),
            *(_descriptor(tensor, 64, width) for tensor in (dk, dv)),
            call.delta if dq_sum is None else dq_sum,
            shape.kv_heads * shares,
            shape.group // shares,
            shares,
            tiles_n,
            triton.cdiv(shape.seq_q, tile.block_m),
            call.delta.shape[1],
            shape.seq_q,
            shape.seq_k,
            call.factor,
            call.factor * LOG2_E,
            CAUSAL=call.causal,
            EVEN_N=shape.seq_k % HOPPER_FIXED_ROWS == 0,
            DQ="none" if dq_sum is None else "apart" if tile.apart else "shared",
            AHEAD=tile.ahead,
            WIDTH=width,
            BLOCK_M=tile.block_m,
            STAGES=tile.stages,
            num_warps=4,
        )
    note_use(call.uses, "flash_hopper_dkdv", tile.held, compiled)
    return (dk, dv) if parts is None else _sum_of_parts(call, parts, shares)


def _sum_of_parts(call: _Call, parts: Tensor, shares: int) -> tuple[Tensor, Tensor]:
    """(dK, dV), dense, from [2, B, h_kv shares, N_k, d]."""
    sums = parts.new_empty((2, *call.k.shape))
    size, block = call.shape.seq_k * call.shape.head_dim, 1024
    with on_device(parts):
        compiled = flash_hopper_sum_of_parts[(triton.cdiv(size, block), sums[..., 0, 0].numel())](
            parts, sums, shares, size,
            AT_ONCE=min(8, triton.next_power_of_2(shares)), BLOCK=block, num_warps=4,
        )  # fmt: skip
    note_use(call.uses, "flash_hopper_sum_of_parts", Tile(0, 0, 4, 1), compiled)
    dk, dv = sums
    return dk, dv


def _dq(call: _Call) -> Tensor:
    """dQ by a kernel of its own."""
    shape, tile, width = call.shape, call.tile, call.width
    dq = like_rows(call.q)
    tiles_m = triton.cdiv(shape.seq_q, HOPPER_FIXED_ROWS)
    with on_device(dq):
        compiled = flash_hopper_dq[(tiles_m * shape.heads * shape.batch,)](
            *(_descriptor(tensor, 64, width) for tensor in (call.q, call.dout)),
            *(_descriptor(tensor, tile.block_n, width) for tensor in (call.k, call.v)),
            _descriptor(dq, 64, width),
            call.log_sums,
            call.delta,
            shape.heads,
            shape.group,
            tiles_m,
            call.delta.shape[1],
            shape.seq_q,
            shape.seq_k,
            call.factor,
            call.factor * LOG2_E,
            CAUSAL=call.causal,
            EVEN_N=shape.seq_k % tile.block_n == 0,
            WIDTH=width,
            BLOCK_N=tile.block_n,
            STAGES=tile.stages_n,
            num_warps=4,
        )
    held = Tile(HOPPER_FIXED_ROWS, tile.block_n, HOPPER_BACKWARD_WARPS, tile.stages_n)
    note_use(call.uses, "flash_hopper_dq", held, compiled)
    return dq


def _dq_from_sum(call: _Call, dq_sum: Tensor) -> Tensor:
    shape, block_m = call.shape, HOPPER_SUM_TILE // call.width
    dq = like_rows(call.q)
    with on_device(dq):
        compiled = flash_hopper_dq_from_sum[(dq_sum.shape[0],)](
            dq_sum,
            dq,
            *outer_strides(dq),
            shape.heads,
            triton.cdiv(shape.seq_q, block_m),
            shape.seq_q,
            call.factor,
            HEAD_DIM=shape.head_dim,
            BLOCK_M=block_m,
            num_warps=4,
        )
    note_use(call.uses, "flash_hopper_dq_from_sum", Tile(block_m, 0, 4, 1), compiled)
    return dq


def _numbers(tensor: Tensor, count: int) -> Any:
    """TMA descriptor of all numbers of a float32 tensor in a row, in blocks of `count`."""
    layout = gl.NVMMASharedLayout(0, 32, rank=1)
    return TensorDescriptor(tensor, [tensor.numel()], [1], [count], layout)
