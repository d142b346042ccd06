"""dK, dV and, with atomic additions, dQ of the Hopper backward, for head dims up to 128.

One warp loads by TMA; two warpgroups have dK and dV of 64 keys each. Up to 64 columns a third one has dQ,
above the two share it.
"""

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

from .flash_hopper import barriers


@gluon.jit  # type: ignore[untyped-decorator]
def rows_seen(  # type: ignore[no-untyped-def]
    start_n, tiles_m, seq_q, seq_k, CAUSAL: gl.constexpr, BLOCK_M: gl.constexpr, KEYS: gl.constexpr
):
    """(first, first without a mask) of the blocks of rows that keys [start_n, start_n + KEYS) meet.

    Blocks up to the second one are masked, those from there to the last one, tiles_m - 1, are not. The keys
    beyond N_k of the last block of keys are always masked: their weights could be inf, and inf * 0 NaN in dQ.
    """
    first = 0
    full = 0
    if CAUSAL:
        first = gl.maximum(start_n - (seq_k - seq_q), 0) // BLOCK_M
        full = gl.maximum(start_n + (KEYS - 1) - (seq_k - seq_q), 0)
        full = gl.minimum((full + BLOCK_M - 1) // BLOCK_M, tiles_m)
    elif start_n + KEYS > seq_k:
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
    first, _ = rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, BLOCK_M, 128)
    count = 0
    for member in range(group):
        head = kv_head * group + member
        statistics = (kv_head_all * group + member) * (padded + (place >> 30))  # see `_compute_keys`
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
def in_order(tile):  # type: ignore[no-untyped-def]
    """The 4096 numbers of a 64 x 64 accumulator in the order in which threads hold them.

    A thread holds (row, row + 8) x two columns of each 8 columns: four in one piece, and a warp 128.
    """
    # row = 16 warp + 8 half + lane / 4, column = 8 block + 2 (lane % 4) + odd
    return tile.reshape([4, 2, 8, 8, 4, 2]).permute([0, 3, 2, 4, 1, 5]).reshape([4096])


@gluon.jit
def _add_dq(dq_sum, part, tile):  # type: ignore[no-untyped-def]
    """Adds a 64 x 64 tile to the `part`-th 4096 numbers of dq_sum: a thread 16 bytes at once, a warp 512.

    They lie `in_order`, which `flash_hopper_dq_from_sum` knows.
    """
    flat = in_order(tile)
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
        # 0, for fewer than 2^30 blocks, which the compiler does not know: else it keeps dozens of
        # loop-invariant addresses, and spills.
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
                # The lane has bits 1 and 2 of a row. Without them rows are literals, and with a 0 unknown to
                # ptxas in them not invariant: else it keeps 16 numbers for the whole program, and spills
                # others. Either form makes the other kernel slower.
                rows = gl.arange(0, BLOCK_M, ROW)
                lane = rows & 6
                keys = keys - (block * BLOCK_M + seq_k - seq_q)
                if DQ == "shared":
                    rows = (rows - lane) + (lane + zero_index)
                    seen = keys[:, None] <= rows[None, :]
                else:
                    seen = keys[:, None] - lane[None, :] <= (rows - lane)[None, :]
                weights = gl.where(seen, weights, 0.0)
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
        zero_index = count >> 30  # as in `_steps`
        ds_tile = ds_tiles.index(zero_index).permute((1, 0))
        keys_tile = k_tiles.index(zero_index).reshape([64, WIDTH]).slice(64, 64, dim=1)
        dq = gl.zeros([64, 64], gl.float32, LAYOUT)
        dq = warpgroup_mma(ds_tile, keys_tile, dq, use_acc=False, is_async=True)
        dq = warpgroup_mma_wait(0, deps=(dq,))
        mbarrier.arrive(ds_empty.index(ds_stage))
        _add_dq(dq_sum, first_part + block * 2 + 1, dq)
    if AHEAD:
        mbarrier.arrive(empty_bars.index((count + STAGES - 1) % STAGES), pred=count > 0)
    else:
        mbarrier.arrive(empty_bars.index(stage))


@gluon.jit
def _program():  # type: ignore[no-untyped-def]
    """The program's number, read anew: what is computed from the first one is kept, and spilled."""
    return gl.inline_asm_elementwise("mov.u32 $0, %ctaid.x;", "=r", [], gl.int32, is_pure=False, pack=1)


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
    first, full = rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, BLOCK_M, 128)
    dk = gl.zeros([64, WIDTH], gl.float32, LAYOUT)
    dv = gl.zeros([64, WIDTH], gl.float32, LAYOUT)
    count = 0
    mbarrier.wait(kv_full, 0)
    for member in range(group):
        # `place >> 30` is 0: there are fewer programs. Without it ptxas computes the product by `group` ahead
        # of the dispatch, and spills it.
        first_part = (kv_head_all * group + member) * (tiles_m + (place >> 30)) * 2
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
    if DQ == "apart":
        place = _program()
        kv_head_all = place // tiles_n
        start_n = place % tiles_n * 128
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
    first, _ = rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, BLOCK_M, 128)
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
    BLOCK_N = 128, but LSE and D in whole blocks, and K and V once for each share; with dQ also adds to g
    sum_j r_j 4 WIDTH bytes, r_j rounded up to whole blocks.
    """
    dtype: gl.constexpr = q_desc.dtype
    k_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, WIDTH], v_desc.layout)
    q_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_M, WIDTH], q_desc.layout)
    g_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_M, WIDTH], g_desc.layout)
    lse_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], lse_desc.layout)
    delta_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], delta_desc.layout)
    fixed = (k_tiles, v_tiles, barriers(1, 1).index(0))
    ring = (q_tiles, lse_tiles, g_tiles, delta_tiles, barriers(STAGES, 1), barriers(STAGES, 2))
    # Two, so that those that make dS can be a block ahead of the one that reads it.
    DS_STAGES: gl.constexpr = 2 if DQ == "apart" else 1
    DS_READERS: gl.constexpr = 1 if DQ == "apart" else 2
    ds_tiles = k_tiles
    if DQ != "none":
        ds_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
        ds_tiles = gl.allocate_shared_memory(dtype, [2 * DS_STAGES, 64, BLOCK_M], ds_layout)
    exchange = (dq_sum, ds_tiles, barriers(DS_STAGES, 2), barriers(DS_STAGES, DS_READERS))
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
