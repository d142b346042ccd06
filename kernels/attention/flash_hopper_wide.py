"""dK and dV of the Hopper backward for head dims above 128.

Those of 64 keys fill the registers of two warpgroups, so these divide the work by product and not by keys:
one has S = Q K^T, P and dV, the other dP, dS and dK. P passes between them through shared memory. dQ has a
kernel of its own, `flash_hopper_dq`: added up by atomics in this one, 64 rows of 256 columns for each 64
keys, it filled the way from the multiprocessors to L2, and all was slower than with two products more.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from .flash_hopper import barriers, finished
from .flash_hopper_dkdv import in_order, rows_seen
from .flash_hopper_panels import accumulate, load_panels, panel, products, zero_panels


@gluon.jit  # type: ignore[untyped-decorator]
def _load(sources, fixed, ring, sizes, CAUSAL: gl.constexpr, PANELS: gl.constexpr):  # type: ignore[no-untyped-def]
    """The producer: K and V once, then Q with LSE and dO with D of the blocks of rows."""
    q_desc, g_desc, k_desc, v_desc, lse_desc, delta_desc = sources
    k_tiles, v_tiles, kv_full = fixed
    q_tiles, lse_tiles, g_tiles, delta_tiles, full_bars, empty_bars = ring
    kv_heads, group, shares, tiles_n, tiles_m, padded, seq_q, seq_k = sizes
    STAGES: gl.constexpr = lse_tiles.shape[0]
    place = gl.program_id(0)
    start_n = place % tiles_n * 64
    kv_head_all = place // tiles_n
    batch = kv_head_all // kv_heads
    kv_head = kv_head_all % kv_heads
    mbarrier.expect(kv_full, 2 * PANELS * k_desc.block_type.nbytes)
    where = (batch, kv_head // shares, start_n)
    load_panels(k_desc, where, kv_full, k_tiles, 0, PANELS)
    load_panels(v_desc, where, kv_full, v_tiles, 0, PANELS)
    first, _ = rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, 64, 64)
    count = 0
    for member in range(group):
        head = kv_head * group + member
        statistics = (kv_head_all * group + member) * padded
        for block in range(first, tiles_m):
            row = block * 64
            stage = count % STAGES
            full = full_bars.index(stage)
            mbarrier.wait(empty_bars.index(stage), (count // STAGES & 1) ^ 1)
            mbarrier.expect(full, 2 * PANELS * q_desc.block_type.nbytes + 64 * 8)
            load_panels(q_desc, (batch, head, row), full, q_tiles, stage * PANELS, PANELS)
            load_panels(g_desc, (batch, head, row), full, g_tiles, stage * PANELS, PANELS)
            tma.async_copy_global_to_shared(lse_desc, [statistics + row], full, lse_tiles.index(stage))
            tma.async_copy_global_to_shared(delta_desc, [statistics + row], full, delta_tiles.index(stage))
            count += 1


@gluon.jit
def _from_order(flat):  # type: ignore[no-untyped-def]
    """The inverse of `flash_hopper_dkdv.in_order`."""
    return flat.reshape([4, 8, 8, 4, 2, 2]).permute([0, 4, 2, 1, 3, 5]).reshape([64, 64])


@gluon.jit  # type: ignore[untyped-decorator]
def _steps(  # type: ignore[no-untyped-def]
    acc,
    count,
    lo,
    hi,
    start_n,
    arguments,
    W: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
    PANELS: gl.constexpr,
):
    """The blocks of rows [lo, hi) of one query head, all transposed: [keys, rows]."""
    fixed, ring, exchange, sizes, scale_log2 = arguments
    k_tiles, v_tiles, _kv_full = fixed
    q_tiles, lse_tiles, g_tiles, delta_tiles, full_bars, empty_bars = ring
    weights_tile, weights_full, weights_empty = exchange
    _kv_heads, _group, _shares, _tiles_n, _tiles_m, _padded, seq_q, seq_k = sizes
    STAGES: gl.constexpr = lse_tiles.shape[0]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, LAYOUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(0, LAYOUT)
    for block in range(lo, hi):
        # 0, but the compiler does not know it: see `flash_hopper_dkdv._steps`.
        zero_index = count >> 30
        stage = count % STAGES
        first = stage * PANELS
        mbarrier.wait(full_bars.index(stage), count // STAGES & 1)
        if W == 0:
            scores = products(k_tiles, q_tiles, zero_index, first, PANELS)
            log_sum = lse_tiles.index(stage).load(ROW)
            scores = warpgroup_mma_wait(0, deps=(scores,))
            weights = gl.exp2(scores * scale_log2 - log_sum[None, :])
            if MASKED:
                keys = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)) + start_n
                if CAUSAL:
                    # As in `flash_hopper._softmax`: rows without the lane's bits are literals.
                    rows = gl.arange(0, 64, ROW)
                    lane = rows & 6
                    keys = keys - (block * 64 + seq_k - seq_q)
                    seen = keys[:, None] - lane[None, :] <= (rows - lane)[None, :]
                    weights = gl.where(seen, weights, 0.0)
                else:
                    weights = gl.where((keys < seq_k)[:, None], weights, 0.0)
            mbarrier.wait(weights_empty, (count & 1) ^ 1)
            weights_tile.store(in_order(weights))
            mbarrier.arrive(weights_full)
            acc = accumulate(acc, gl.convert_layout(weights.to(q_tiles.dtype), LEFT), g_tiles, first, PANELS)
        else:
            d_weights = products(v_tiles, g_tiles, zero_index, first, PANELS)
            row_delta = delta_tiles.index(stage).load(ROW)
            d_weights = warpgroup_mma_wait(0, deps=(d_weights,))
            mbarrier.wait(weights_full, count & 1)
            FLAT: gl.constexpr = in_order(d_weights).type.layout
            weights = gl.convert_layout(_from_order(weights_tile.load(FLAT)), LAYOUT)
            mbarrier.arrive(weights_empty)
            d_scores = (weights * (d_weights - row_delta[None, :])).to(q_tiles.dtype)
            acc = accumulate(acc, gl.convert_layout(d_scores, LEFT), q_tiles, first, PANELS)
        acc = finished(acc)
        mbarrier.arrive(empty_bars.index(stage))
        count += 1
    return acc, count


@gluon.jit  # type: ignore[untyped-decorator]
def _compute(  # type: ignore[no-untyped-def]
    arguments,
    out_desc,
    scale,
    W: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    PANELS: gl.constexpr,
):
    """A consumer: the first warpgroup has S, P and dV, the second dP, dS and dK.

    Its result goes out through the shared memory of K or V, which it alone reads.
    """
    fixed, _ring, _exchange, sizes, _scale_log2 = arguments
    k_tiles, v_tiles, kv_full = fixed
    kv_heads, group, _shares, tiles_n, tiles_m, _padded, seq_q, seq_k = sizes
    place = gl.program_id(0)
    start_n = place % tiles_n * 64
    kv_head_all = place // tiles_n
    first, full = rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, 64, 64)
    acc = zero_panels(64, PANELS)
    count = 0
    mbarrier.wait(kv_full, 0)
    for _ in range(group):
        if CAUSAL or not EVEN_N:
            acc, count = _steps(acc, count, first, full, start_n, arguments, W, True, CAUSAL, PANELS)
        acc, count = _steps(acc, count, full, tiles_m, start_n, arguments, W, False, CAUSAL, PANELS)
    tiles = k_tiles if W == 0 else v_tiles
    for p in gl.static_range(PANELS):
        made = acc[p] * scale if W == 1 else acc[p]
        panel(tiles, p).store(made.to(k_tiles.dtype))
    fence_async_shared()
    for p in gl.static_range(PANELS):
        where = [kv_head_all // kv_heads, kv_head_all % kv_heads, start_n, p * 64]
        tma.async_copy_shared_to_global(out_desc, where, tiles.index(p))
    tma.store_wait(0)


@gluon.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["kv_heads", "group", "shares", "tiles_n", "tiles_m", "padded", "seq_q", "seq_k"]
)
def flash_hopper_dkdv_wide(  # type: ignore[no-untyped-def]
    q_desc,
    g_desc,
    k_desc,
    v_desc,
    lse_desc,
    delta_desc,
    dk_desc,
    dv_desc,
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
    PANELS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """dV = P^T dO and dK = scale dS^T Q for 64 keys of one key/value head, over `group` query heads of it.

    Descriptors have blocks of 64 rows x 64 columns, and a head dim takes PANELS of these. Where a head's are
    dealt out in `shares`, kv_heads counts those of all heads, and dK and dV are parts of sums.
    Traffic per key/value head as `flash_backward.flash_dkdv` states it, with BLOCK_N = 64, but LSE and D in
    whole blocks, and K and V once for each share.
    """
    dtype: gl.constexpr = q_desc.dtype
    k_tiles = gl.allocate_shared_memory(dtype, [PANELS, 1, 1, 64, 64], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [PANELS, 1, 1, 64, 64], v_desc.layout)
    q_tiles = gl.allocate_shared_memory(dtype, [STAGES * PANELS, 1, 1, 64, 64], q_desc.layout)
    g_tiles = gl.allocate_shared_memory(dtype, [STAGES * PANELS, 1, 1, 64, 64], g_desc.layout)
    lse_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, 64], lse_desc.layout)
    delta_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, 64], delta_desc.layout)
    fixed = (k_tiles, v_tiles, barriers(1, 1).index(0))
    ring = (q_tiles, lse_tiles, g_tiles, delta_tiles, barriers(STAGES, 1), barriers(STAGES, 2))
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    weights_tile = gl.allocate_shared_memory(gl.float32, [4096], FLAT)
    exchange = (weights_tile, barriers(1, 1).index(0), barriers(1, 1).index(0))
    fence_async_shared()

    sources = (q_desc, g_desc, k_desc, v_desc, lse_desc, delta_desc)
    sizes = (kv_heads, group, shares, tiles_n, tiles_m, padded, seq_q, seq_k)
    arguments = (fixed, ring, exchange, sizes, scale_log2)
    gl.warp_specialize(
        [
            (_compute, (arguments, dv_desc, scale, 0, CAUSAL, EVEN_N, PANELS)),
            (_compute, (arguments, dk_desc, scale, 1, CAUSAL, EVEN_N, PANELS)),
            (_load, (sources, fixed, ring, sizes, CAUSAL, PANELS)),
        ],
        [4, 1],
        [240, 24],
    )
