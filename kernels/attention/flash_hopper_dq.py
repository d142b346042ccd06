"""dQ of the Hopper backward by a kernel of its own: where it is deterministic, and above 128 columns."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from .flash_hopper import barriers, finished
from .flash_hopper_panels import accumulate, load_panels, panel, products, zero_panels


@gluon.jit  # type: ignore[untyped-decorator]
def _keys_seen(start, seq_q, seq_k, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr):  # type: ignore[no-untyped-def]
    """Blocks of keys that rows [start, start + 128) meet, maybe none."""
    end = seq_k
    if CAUSAL:
        end = gl.maximum(gl.minimum(start + 128, seq_q) + seq_k - seq_q, 0)
    return (end + BLOCK_N - 1) // BLOCK_N


@gluon.jit  # type: ignore[untyped-decorator]
def _load_keys(sources, fixed, ring, sizes, CAUSAL: gl.constexpr, PANELS: gl.constexpr):  # type: ignore[no-untyped-def]
    """The producer of the dQ kernel: Q and dO once, then K and V of the blocks of keys."""
    q_desc, g_desc, k_desc, v_desc = sources
    q_tiles, g_tiles, q_full = fixed
    k_tiles, k_full, k_empty, v_tiles, v_full, v_empty = ring
    heads, group, tiles_m, _padded, seq_q, seq_k = sizes
    K_STAGES: gl.constexpr = k_full.shape[0]
    V_STAGES: gl.constexpr = v_full.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    tile = gl.program_id(0) % tiles_m
    if CAUSAL:
        tile = tiles_m - 1 - tile
    head_all = gl.program_id(0) // tiles_m
    batch = head_all // heads
    head = head_all % heads
    mbarrier.expect(q_full, 4 * PANELS * q_desc.block_type.nbytes)
    for w in gl.static_range(2):
        place = (batch, head, tile * 128 + w * 64)
        load_panels(q_desc, place, q_full, q_tiles, w * PANELS, PANELS)
        load_panels(g_desc, place, q_full, g_tiles, w * PANELS, PANELS)
    kv_head = head // group
    for block in range(_keys_seen(tile * 128, seq_q, seq_k, CAUSAL, BLOCK_N)):
        place = (batch, kv_head, block * BLOCK_N)
        stage = block % K_STAGES
        full = k_full.index(stage)
        mbarrier.wait(k_empty.index(stage), (block // K_STAGES & 1) ^ 1)
        mbarrier.expect(full, PANELS * k_desc.block_type.nbytes)
        load_panels(k_desc, place, full, k_tiles, stage * PANELS, PANELS)
        stage = block % V_STAGES
        full = v_full.index(stage)
        mbarrier.wait(v_empty.index(stage), (block // V_STAGES & 1) ^ 1)
        mbarrier.expect(full, PANELS * v_desc.block_type.nbytes)
        load_panels(v_desc, place, full, v_tiles, stage * PANELS, PANELS)


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
    PANELS: gl.constexpr,
):
    """The blocks of keys [lo, hi) of the W-th warpgroup's rows, of which `start` is the first."""
    fixed, ring, sizes, scale_log2 = arguments
    q_tiles, g_tiles, _q_full = fixed
    k_tiles, k_full, k_empty, v_tiles, v_full, v_empty = ring
    _heads, _group, _tiles_m, _padded, seq_q, seq_k = sizes
    K_STAGES: gl.constexpr = k_full.shape[0]
    V_STAGES: gl.constexpr = v_full.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    S_LAYOUT: gl.constexpr = log_sum.type.layout.parent
    LEFT: gl.constexpr = gl.DotOperandLayout(0, acc[0].type.layout, 2)
    for block in range(lo, hi):
        # 0, but the compiler does not know it: see `flash_hopper_dkdv._steps`.
        zero_index = block >> 30
        rows_at = zero_index + W * PANELS
        k_stage = block % K_STAGES
        v_stage = block % V_STAGES
        v_phase = block // V_STAGES & 1
        mbarrier.wait(k_full.index(k_stage), block // K_STAGES & 1)
        scores = products(q_tiles, k_tiles, rows_at, k_stage * PANELS, PANELS)
        mbarrier.wait(v_full.index(v_stage), v_phase)
        d_weights = products(g_tiles, v_tiles, rows_at, v_stage * PANELS, PANELS)
        scores = warpgroup_mma_wait(PANELS, deps=(scores,))
        weights = gl.exp2(scores * scale_log2 - log_sum[:, None])
        if MASKED:
            # The lane has bits 1 and 2 of a key. With a 0 unknown to ptxas in them it does not keep the keys
            # of a thread's registers for the whole program, and spill others.
            keys = gl.arange(0, BLOCK_N, gl.SliceLayout(0, S_LAYOUT))
            lane = keys & 6
            keys = (keys - lane) + (lane + zero_index)
            if CAUSAL:
                last = gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT))
                last = last + (start + seq_k - seq_q - block * BLOCK_N)
                weights = gl.where(keys[None, :] <= last[:, None], weights, 0.0)
            else:
                weights = gl.where((keys < seq_k - block * BLOCK_N)[None, :], weights, 0.0)
        # Is over. It keeps ptxas from moving the exponentials behind the wait for the product.
        mbarrier.wait(v_full.index(v_stage), v_phase)
        d_weights = warpgroup_mma_wait(0, deps=(d_weights,))
        mbarrier.arrive(v_empty.index(v_stage))
        d_scores = (weights * (d_weights - row_delta[:, None])).to(q_tiles.dtype)
        acc = accumulate(acc, gl.convert_layout(d_scores, LEFT), k_tiles, k_stage * PANELS, PANELS)
        acc = finished(acc)
        mbarrier.arrive(k_empty.index(k_stage))
    return acc


@gluon.jit  # type: ignore[untyped-decorator]
def _compute_queries(  # type: ignore[no-untyped-def]
    arguments,
    outputs,
    scale,
    W: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    PANELS: gl.constexpr,
):
    """A consumer of the dQ kernel: the W-th warpgroup, rows [64 W, 64 W + 64) of the program's 128."""
    fixed, ring, sizes, _scale_log2 = arguments
    q_tiles, _g_tiles, q_full = fixed
    dq_desc, log_sums, delta = outputs
    heads, _group, tiles_m, padded, seq_q, seq_k = sizes
    BLOCK_N: gl.constexpr = ring[0].shape[3]
    COLUMNS: gl.constexpr = q_tiles.shape[4]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
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
    acc = zero_panels(COLUMNS, PANELS)
    mbarrier.wait(q_full, 0)
    acc = _query_steps(acc, log_sum, row_delta, 0, full, start, arguments, W, False, CAUSAL, PANELS)
    if CAUSAL or not EVEN_N:
        acc = _query_steps(acc, log_sum, row_delta, full, hi, start, arguments, W, True, CAUSAL, PANELS)
    for p in gl.static_range(PANELS):
        panel(q_tiles, W * PANELS + p).store((acc[p] * scale).to(q_tiles.dtype))
    fence_async_shared()
    for p in gl.static_range(PANELS):
        where = [head_all // heads, head_all % heads, start, p * COLUMNS]
        tma.async_copy_shared_to_global(dq_desc, where, q_tiles.index(W * PANELS + p))
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
    COLUMNS: gl.constexpr,
    PANELS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """dQ = scale dS K for 128 rows of Q of one head, whose columns are PANELS of COLUMNS.

    Traffic per head as `flash_backward.flash_dq` states it, but all that LSE and D are padded to.
    """
    dtype: gl.constexpr = q_desc.dtype
    q_tiles = gl.allocate_shared_memory(dtype, [2 * PANELS, 1, 1, 64, COLUMNS], q_desc.layout)
    g_tiles = gl.allocate_shared_memory(dtype, [2 * PANELS, 1, 1, 64, COLUMNS], g_desc.layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES * PANELS, 1, 1, BLOCK_N, COLUMNS], k_desc.layout)
    V_STAGES: gl.constexpr = STAGES if PANELS * COLUMNS < 256 else 1  # there is no room for more
    v_tiles = gl.allocate_shared_memory(dtype, [V_STAGES * PANELS, 1, 1, BLOCK_N, COLUMNS], v_desc.layout)
    fixed = (q_tiles, g_tiles, barriers(1, 1).index(0))
    ring = (
        k_tiles, barriers(STAGES, 1), barriers(STAGES, 2),
        v_tiles, barriers(V_STAGES, 1), barriers(V_STAGES, 2),
    )  # fmt: skip
    fence_async_shared()

    sources = (q_desc, g_desc, k_desc, v_desc)
    sizes = (heads, group, tiles_m, padded, seq_q, seq_k)
    arguments = (fixed, ring, sizes, scale_log2)
    outputs = (dq_desc, log_sums, delta)
    gl.warp_specialize(
        [
            (_compute_queries, (arguments, outputs, scale, 0, CAUSAL, EVEN_N, PANELS)),
            (_compute_queries, (arguments, outputs, scale, 1, CAUSAL, EVEN_N, PANELS)),
            (_load_keys, (sources, fixed, ring, sizes, CAUSAL, PANELS)),
        ],
        [4, 1],
        [240, 24],
    )
