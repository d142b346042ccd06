"""FlashAttention-3 backward in Gluon, for compute capability 9.0 only.

Shah, Bikshandi, Zhang, Thakkar, Ramani, Dao, "FlashAttention-3", arXiv 2407.08608, section 3.1 and appendix B.
One warp loads by TMA; two warpgroups compute, each on its own 64 keys (dK, dV) or its own 64 rows of Q (dQ).
By default one kernel gives dK, dV and, with atomic additions in float32, dQ: five matrix products, and sums
whose order differs from run to run. `deterministic` takes two kernels and seven products instead.
"""

from typing import NamedTuple

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
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .flash_hopper import _barriers, _check_hopper, _check_layouts, _descriptor
from .shape import Shape, checked_shape, softmax_scale
from .tile_io import (
    LOG2_E,
    check_served,
    like_rows,
    load_rows,
    note_use,
    on_device,
    outer_strides,
    padded_width,
    store_rows,
)
from .tiles import Tile
from .use import KernelUse

PADDED_ROWS = 128
"""LSE, D and the sums of dQ reach to a multiple of this many rows: no tile of theirs is partly out of range."""


class HopperBackwardTile(NamedTuple):
    """Rows of Q and dO in one stage of the dK/dV kernel, its stages; keys in one stage of the dQ kernel, its
    stages.

    Both kernels hold 128 rows of what they do not loop over. Fused, block_m * padded head dim is 8192: the two
    warpgroups share one dQ tile, 64 x 64 each.
    """

    block_m: int
    stages: int
    block_n: int
    stages_n: int


TILES = {64: HopperBackwardTile(128, 2, 128, 2), 128: HopperBackwardTile(64, 2, 128, 2)}
"""Columns of a tile -> its default shape."""


@triton.jit(do_not_specialize=["heads", "tiles_m", "padded"])  # type: ignore[untyped-decorator]
def flash_hopper_statistics(  # type: ignore[no-untyped-def]
    out,
    dout,
    lse,
    log_sums,
    delta,
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
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """D = rowsum(dO o O) and LSE in base 2, float32, for one block of rows of one head, `padded` rows a head.

    LSE +inf, hence P = 0, for rows beyond N_q and for rows that saw no key. Traffic per head: reads
    2 N_q d e + 4 N_q bytes, writes 8 padded bytes.
    """
    program = tl.program_id(0)
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
    q_tiles, lse_tiles, q_full, q_empty, g_tiles, delta_tiles, g_full, g_empty = ring
    kv_heads, group, tiles_n, tiles_m, padded, seq_q, seq_k = sizes
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
        tma.async_copy_global_to_shared(k_desc, [batch, kv_head, row, 0], kv_full, k_tiles.index(w))
        tma.async_copy_global_to_shared(v_desc, [batch, kv_head, row, 0], kv_full, v_tiles.index(w))
    first, _ = _rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, BLOCK_M)
    count = 0
    for member in range(group):
        head = kv_head * group + member
        statistics = (kv_head_all * group + member) * padded
        for block in range(first, tiles_m):
            row = block * BLOCK_M
            stage = count % STAGES
            free = (count // STAGES & 1) ^ 1
            full = q_full.index(stage)
            mbarrier.wait(q_empty.index(stage), free)
            mbarrier.expect(full, q_desc.block_type.nbytes + BLOCK_M * 4)
            tma.async_copy_global_to_shared(q_desc, [batch, head, row, 0], full, q_tiles.index(stage))
            tma.async_copy_global_to_shared(lse_desc, [statistics + row], full, lse_tiles.index(stage))
            full = g_full.index(stage)
            mbarrier.wait(g_empty.index(stage), free)
            mbarrier.expect(full, g_desc.block_type.nbytes + BLOCK_M * 4)
            tma.async_copy_global_to_shared(g_desc, [batch, head, row, 0], full, g_tiles.index(stage))
            tma.async_copy_global_to_shared(delta_desc, [statistics + row], full, delta_tiles.index(stage))
            count += 1


@gluon.jit  # type: ignore[untyped-decorator]
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
    FUSED: gl.constexpr,
    EARLY: gl.constexpr,
):
    """The blocks of rows [lo, hi) of one query head. All but dQ is transposed: [keys, rows].

    EARLY: P^T dO starts before dS is computed, at the price of the registers of one more P^T.
    """
    fixed, ring, exchange, sizes, scale_log2 = arguments
    k_tiles, v_tiles, kv_full = fixed
    q_tiles, lse_tiles, q_full, q_empty, g_tiles, delta_tiles, g_full, g_empty = ring
    dq_sum, ds_tiles, ds_full, ds_empty = exchange
    kv_heads, group, tiles_n, tiles_m, padded, seq_q, seq_k = sizes
    STAGES: gl.constexpr = q_tiles.shape[0]
    BLOCK_M: gl.constexpr = q_tiles.shape[3]
    WIDTH: gl.constexpr = q_tiles.shape[4]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    DQ_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    ROW: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    k_tile = k_tiles.index(W).reshape([64, WIDTH])
    v_tile = v_tiles.index(W).reshape([64, WIDTH])
    for block in range(lo, hi):
        stage = count % STAGES
        phase = count // STAGES & 1
        q_tile = q_tiles.index(stage).reshape([BLOCK_M, WIDTH])
        g_tile = g_tiles.index(stage).reshape([BLOCK_M, WIDTH])
        zero = gl.zeros([64, BLOCK_M], gl.float32, S_LAYOUT)
        mbarrier.wait(q_full.index(stage), phase)
        scores = warpgroup_mma(k_tile, q_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(g_full.index(stage), phase)
        d_weights = warpgroup_mma(v_tile, g_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        log_sum = lse_tiles.index(stage).load(ROW)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        weights = gl.exp2(scores * scale_log2 - log_sum[None, :])
        if MASKED:
            keys = gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT)) + (start_n + W * 64)
            if CAUSAL:
                rows = gl.arange(0, BLOCK_M, ROW) + (block * BLOCK_M + seq_k - seq_q)
                weights = gl.where(keys[:, None] <= rows[None, :], weights, 0.0)
            else:
                weights = gl.where((keys < seq_k)[:, None], weights, 0.0)
        left = gl.convert_layout(weights.to(q_tile.dtype), LEFT)
        if EARLY:
            dv = warpgroup_mma(left, g_tile, dv, is_async=True)
            row_delta = delta_tiles.index(stage).load(ROW)
            d_weights = warpgroup_mma_wait(1, deps=(d_weights,))
        else:
            row_delta = delta_tiles.index(stage).load(ROW)
            d_weights = warpgroup_mma_wait(0, deps=(d_weights,))
        d_scores = (weights * (d_weights - row_delta[None, :])).to(q_tile.dtype)
        if not EARLY:
            dv = warpgroup_mma(left, g_tile, dv, is_async=True)
        if FUSED:
            mbarrier.wait(ds_empty, (count & 1) ^ 1)
            ds_tiles.index(W).store(d_scores)
            fence_async_shared()
            mbarrier.arrive(ds_full)
            mbarrier.wait(ds_full, count & 1)
            dq = gl.zeros([64, 64], gl.float32, DQ_LAYOUT)
            for w in gl.static_range(2):
                ds_tile = ds_tiles.index(w)
                keys_tile = k_tiles.index(w).reshape([64, WIDTH])
                if BLOCK_M == 128:
                    ds_tile = ds_tile.slice(64 * W, 64, dim=1)
                else:
                    keys_tile = keys_tile.slice(64 * W, 64, dim=1)
                dq = warpgroup_mma(ds_tile.permute((1, 0)), keys_tile, dq, use_acc=w > 0, is_async=True)
            dk = warpgroup_mma(gl.convert_layout(d_scores, LEFT), q_tile, dk, is_async=True)
            dv = warpgroup_mma_wait(3, deps=(dv,))
            mbarrier.arrive(g_empty.index(stage))
            dq = warpgroup_mma_wait(1, deps=(dq,))
            mbarrier.arrive(ds_empty)
            _add_dq(dq_sum, first_part + block * 2 + W, dq)
        else:
            dk = warpgroup_mma(gl.convert_layout(d_scores, LEFT), q_tile, dk, is_async=True)
            dv = warpgroup_mma_wait(1, deps=(dv,))
            mbarrier.arrive(g_empty.index(stage))
        dk = warpgroup_mma_wait(0, deps=(dk,))
        mbarrier.arrive(q_empty.index(stage))
        count += 1
    return dk, dv, count


@gluon.jit  # type: ignore[untyped-decorator]
def _compute_keys(  # type: ignore[no-untyped-def]
    arguments,
    outputs,
    scale,
    W: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    FUSED: gl.constexpr,
    EARLY: gl.constexpr,
):
    """A consumer of the dK/dV kernel: the W-th warpgroup, keys [64 W, 64 W + 64) of the program's 128."""
    fixed, ring, exchange, sizes, scale_log2 = arguments
    k_tiles, v_tiles, kv_full = fixed
    dk_desc, dv_desc = outputs
    kv_heads, group, tiles_n, tiles_m, padded, seq_q, seq_k = sizes
    BLOCK_M: gl.constexpr = ring[0].shape[3]
    WIDTH: gl.constexpr = k_tiles.shape[4]
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
        if CAUSAL or not EVEN_N:
            dk, dv, count = _steps(
                dk, dv, count, first, full, first_part, start_n, arguments, W, True, CAUSAL, FUSED, EARLY
            )
        dk, dv, count = _steps(
            dk, dv, count, full, tiles_m, first_part, start_n, arguments, W, False, CAUSAL, FUSED, EARLY
        )
    if FUSED:  # the other warpgroup reads this one's K for its part of dQ
        mbarrier.wait(exchange[3], (count & 1) ^ 1)
    k_tile = k_tiles.index(W)
    v_tile = v_tiles.index(W)
    k_tile.reshape([64, WIDTH]).store((dk * scale).to(k_tile.dtype))
    v_tile.reshape([64, WIDTH]).store(dv.to(v_tile.dtype))
    fence_async_shared()
    where = [kv_head_all // kv_heads, kv_head_all % kv_heads, start_n + W * 64, 0]
    tma.async_copy_shared_to_global(dk_desc, where, k_tile)
    tma.async_copy_shared_to_global(dv_desc, where, v_tile)
    tma.store_wait(0)


@gluon.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["kv_heads", "group", "tiles_n", "tiles_m", "padded", "seq_q", "seq_k"]
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
    tiles_n,
    tiles_m,
    padded,
    seq_q,
    seq_k,
    scale,
    scale_log2,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    FUSED: gl.constexpr,
    EARLY: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_M: gl.constexpr,
    STAGES: gl.constexpr,
):
    """dV = P^T dO and dK = scale dS^T Q for 128 keys of one key/value head, over its g query heads.

    FUSED: also adds dS K to dq_sum, in device memory. Traffic per key/value head as `flash_backward.flash_dkdv`
    states it, with BLOCK_N = 128; FUSED adds to g sum_j r_j 4 WIDTH bytes, r_j rounded up to whole blocks.
    """
    dtype: gl.constexpr = q_desc.dtype
    k_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], v_desc.layout)
    q_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_M, WIDTH], q_desc.layout)
    g_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_M, WIDTH], g_desc.layout)
    lse_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], lse_desc.layout)
    delta_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], delta_desc.layout)
    fixed = (k_tiles, v_tiles, _barriers(1, 1).index(0))
    ring = (
        q_tiles, lse_tiles, _barriers(STAGES, 1), _barriers(STAGES, 2),
        g_tiles, delta_tiles, _barriers(STAGES, 1), _barriers(STAGES, 2),
    )  # fmt: skip
    ds_tiles = k_tiles
    if FUSED:
        ds_tiles = gl.allocate_shared_memory(dtype, [2, 64, BLOCK_M], gl.NVMMASharedLayout(128, 16, rank=2))
    exchange = (dq_sum, ds_tiles, _barriers(1, 2).index(0), _barriers(1, 2).index(0))
    fence_async_shared()

    sources = (q_desc, g_desc, k_desc, v_desc, lse_desc, delta_desc)
    sizes = (kv_heads, group, tiles_n, tiles_m, padded, seq_q, seq_k)
    arguments = (fixed, ring, exchange, sizes, scale_log2)
    outputs = (dk_desc, dv_desc)
    gl.warp_specialize(
        [
            (_compute_keys, (arguments, outputs, scale, 0, CAUSAL, EVEN_N, FUSED, EARLY)),
            (_compute_keys, (arguments, outputs, scale, 1, CAUSAL, EVEN_N, FUSED, EARLY)),
            (_load_queries, (sources, fixed, ring, sizes, CAUSAL)),
        ],
        [4, 1],
        [240, 24],
    )
