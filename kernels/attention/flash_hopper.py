"""FlashAttention-3 forward in Gluon, for compute capability 9.0 only.

Shah, Bikshandi, Zhang, Thakkar, Ramani, Dao, "FlashAttention-3", arXiv 2407.08608, sections 3.1 and 3.2. One
warp loads by TMA into rings of K and V tiles; two or three warpgroups compute 64 rows of Q each. Inside a
warpgroup Q K^T of the next block and P V of this one run on the tensor cores during the softmax. The
warpgroups can take turns at issuing them, so that the softmax of one runs during the products of another.
"""

import torch
import triton
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

from .shape import Shape, checked_shape, softmax_scale
from .tile_io import (
    LOG2_E,
    can_describe,
    capability,
    check_served,
    like_rows,
    note_use,
    on_device,
    padded_width,
)
from .tiles import HOPPER_WIDTH, WARPGROUP_ROWS, HopperTile, hopper_tile, hopper_together
from .use import KernelUse


@gluon.jit
def _rounds(total):  # type: ignore[no-untyped-def]
    """How many of `total` tiles this program computes: one of every num_programs."""
    programs = gl.num_programs(0)
    full = total // programs
    place = gl.program_id(0)
    if full % 2 == 1:
        place = programs - 1 - place
    return full + (place < total - full * programs).to(gl.int32)


@gluon.jit  # type: ignore[untyped-decorator]
def _tile(turn, tiles_m, total_heads, section, CAUSAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """(head over all batches, block of rows) of this program's `turn`, in the order that `forward` explains.

    Odd rounds go out in reverse: where tiles get shorter and shorter, all programs get the same sum.
    """
    place = gl.program_id(0)
    if turn % 2 == 1:
        place = gl.num_programs(0) - 1 - place
    index = turn * gl.num_programs(0) + place
    first = index // (section * tiles_m) * section
    heads = gl.minimum(section, total_heads - first)
    rest = index - first * tiles_m
    block = rest // heads
    if CAUSAL:
        block = tiles_m - 1 - block
    return first + rest % heads, block


@gluon.jit  # type: ignore[untyped-decorator]
def _blocks(start, rows, seq_q, seq_k, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr):  # type: ignore[no-untyped-def]
    """Blocks of keys that rows [start, start + rows) visit: at least one, so that each row has a result."""
    end = seq_k
    if CAUSAL:
        end = gl.minimum(start + rows, seq_q) + seq_k - seq_q
    return gl.maximum((end + BLOCK_N - 1) // BLOCK_N, 1)


@gluon.jit  # type: ignore[untyped-decorator]
def _load(sources, queries, rings, sizes, CAUSAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """The producer: Q of a tile, then K and V of its blocks from the last to the first."""
    q_desc, k_desc, v_desc = sources
    q_tiles, q_full, q_empty = queries
    k_tiles, k_full, k_empty, v_tiles, v_full, v_empty = rings
    heads, group, tiles_m, total_heads, section, seq_q, seq_k = sizes
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    GROUPS: gl.constexpr = q_tiles.shape[0]
    count = 0
    for turn in range(_rounds(tiles_m * total_heads)):
        head_all, block = _tile(turn, tiles_m, total_heads, section, CAUSAL)
        batch = head_all // heads
        head = head_all % heads
        kv_head = head // group
        start = block * (GROUPS * 64)
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_full, GROUPS * q_desc.block_type.nbytes)
        for w in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                q_desc, [batch, head, start + w * 64, 0], q_full, q_tiles.index(w)
            )
        blocks = _blocks(start, GROUPS * 64, seq_q, seq_k, CAUSAL, BLOCK_N)
        for done in range(blocks):
            row = (blocks - 1 - done) * BLOCK_N
            stage = count % STAGES
            free = (count // STAGES & 1) ^ 1
            mbarrier.wait(k_empty.index(stage), free)
            mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(
                k_desc, [batch, kv_head, row, 0], k_full.index(stage), k_tiles.index(stage)
            )
            mbarrier.wait(v_empty.index(stage), free)
            mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(
                v_desc, [batch, kv_head, row, 0], v_full.index(stage), v_tiles.index(stage)
            )
            count += 1


@gluon.jit  # type: ignore[untyped-decorator]
def _score(q_tile, k_tile, LAYOUT: gl.constexpr):  # type: ignore[no-untyped-def]
    """Starts Q K^T of one block."""
    BLOCK_N: gl.constexpr = k_tile.shape[2]
    keys = k_tile.reshape([BLOCK_N, q_tile.shape[1]]).permute((1, 0))
    zero = gl.zeros([64, BLOCK_N], gl.float32, LAYOUT)
    return warpgroup_mma(q_tile, keys, zero, use_acc=False, is_async=True)


@gluon.jit  # type: ignore[untyped-decorator]
def _softmax(  # type: ignore[no-untyped-def]
    scores, row_max, row_sum, diagonal, left, scale_log2, MASKED: gl.constexpr, CAUSAL: gl.constexpr
):
    """(weights, factor on what came before, row maximum, row sum) after one more block of keys.

    `diagonal` is the last key of this block that the warpgroup's first row sees, `left` how many keys from
    this block on exist.
    """
    if MASKED:
        LAYOUT: gl.constexpr = scores.type.layout
        keys = gl.arange(0, scores.shape[1], gl.SliceLayout(0, LAYOUT))
        last = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
        # A row in range sees no key beyond N_k; rows out of range are not stored.
        last = last + diagonal if CAUSAL else last * 0 + (left - 1)
        scores = gl.where(keys[None, :] <= last[:, None], scores, float("-inf"))
    new_max = gl.maximum(row_max, gl.max(scores, 1) * scale_log2)
    base = new_max
    if MASKED:  # a row that has seen no key yet: -inf - -inf would be NaN
        base = gl.where(new_max == float("-inf"), 0.0, new_max)
    weights = gl.exp2(scores * scale_log2 - base[:, None])
    rescale = gl.exp2(row_max - base)
    return weights, rescale, new_max, row_sum * rescale + gl.sum(weights, 1)


@gluon.jit  # type: ignore[untyped-decorator]
def _steps(  # type: ignore[no-untyped-def]
    acc,
    weights,
    row_max,
    row_sum,
    count,
    turns,
    blocks,
    hi,
    start,
    q_tile,
    rings,
    my_turn,
    next_turn,
    seq_q,
    seq_k,
    scale_log2,
    FIRST: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
    PINGPONG: gl.constexpr,
):
    """The next `blocks` blocks, from block hi - 1 down: Q K^T of a block beside P V of the one before."""
    k_tiles, k_full, k_empty, v_tiles, v_full, v_empty = rings
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    S_LAYOUT: gl.constexpr = row_max.type.layout.parent
    O_LAYOUT: gl.constexpr = acc.type.layout
    for done in range(blocks):
        row = (hi - 1 - done) * BLOCK_N
        stage = count % STAGES
        phase = count // STAGES & 1
        last = (count - 1) % STAGES
        mbarrier.wait(k_full.index(stage), phase)
        if PINGPONG:
            mbarrier.wait(my_turn, (turns & 1) ^ FIRST)
        scores = _score(q_tile, k_tiles.index(stage), S_LAYOUT)
        values = v_tiles.index(last).reshape([BLOCK_N, acc.shape[1]])
        acc = warpgroup_mma(weights, values, acc, is_async=True)
        if PINGPONG:
            mbarrier.arrive(next_turn)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(k_empty.index(stage))
        exps, rescale, row_max, row_sum = _softmax(
            scores, row_max, row_sum, start + seq_k - seq_q - row, seq_k - row, scale_log2, MASKED, CAUSAL
        )
        # Not needed before the next P V. Here it keeps ptxas from moving the softmax behind the wait for P V.
        mbarrier.wait(v_full.index(stage), phase)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_empty.index(last))
        acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, O_LAYOUT))[:, None]
        weights = gl.convert_layout(exps.to(q_tile.dtype), weights.type.layout)
        count += 1
        turns += 1
    return acc, weights, row_max, row_sum, count, turns


@gluon.jit  # type: ignore[untyped-decorator]
def _compute(  # type: ignore[no-untyped-def]
    arguments,
    W: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    PINGPONG: gl.constexpr,
    SHARED_OUT: gl.constexpr,
):
    """A consumer: the W-th warpgroup, rows [64 W, 64 W + 64) of each tile."""
    outputs, queries, rings, turn_bars, sizes, scale_log2 = arguments
    out_desc, lse, out_tiles = outputs
    q_tiles, q_full, q_empty = queries
    k_tiles, k_full, k_empty, v_tiles, v_full, v_empty = rings
    heads, _group, tiles_m, total_heads, section, seq_q, seq_k = sizes
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    GROUPS: gl.constexpr = q_tiles.shape[0]
    WIDTH: gl.constexpr = q_tiles.shape[4]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    my_turn = turn_bars.index(W)
    next_turn = turn_bars.index((W + 1) % GROUPS)
    q_tile = q_tiles.index(W).reshape([64, WIDTH])
    count = 0
    turns = 0
    for turn in range(_rounds(tiles_m * total_heads)):
        head_all, block = _tile(turn, tiles_m, total_heads, section, CAUSAL)
        start = block * (GROUPS * 64) + W * 64
        hi = _blocks(block * (GROUPS * 64), GROUPS * 64, seq_q, seq_k, CAUSAL, BLOCK_N)
        full = hi - 1  # blocks below the first one that need no mask
        if CAUSAL:
            full = gl.minimum(gl.maximum(start + seq_k - seq_q + 1, 0) // BLOCK_N, hi - 1)

        stage = count % STAGES
        phase = count // STAGES & 1
        mbarrier.wait(q_full, turn & 1)
        mbarrier.wait(k_full.index(stage), phase)
        scores = _score(q_tile, k_tiles.index(stage), S_LAYOUT)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        mbarrier.arrive(k_empty.index(stage))
        row = (hi - 1) * BLOCK_N
        row_max = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
        row_sum = gl.zeros([64], gl.float32, gl.SliceLayout(1, S_LAYOUT))
        exps, _, row_max, row_sum = _softmax(
            scores, row_max, row_sum, start + seq_k - seq_q - row, seq_k - row, scale_log2,
            CAUSAL or not EVEN_N, CAUSAL,
        )  # fmt: skip
        weights = gl.convert_layout(exps.to(q_tile.dtype), P_LAYOUT)
        acc = gl.zeros([64, WIDTH], gl.float32, O_LAYOUT)
        mbarrier.wait(v_full.index(stage), phase)
        count += 1
        if CAUSAL:
            acc, weights, row_max, row_sum, count, turns = _steps(
                acc, weights, row_max, row_sum, count, turns, hi - 1 - full, hi - 1, start, q_tile, rings,
                my_turn, next_turn, seq_q, seq_k, scale_log2, W == 0, True, CAUSAL, PINGPONG,
            )  # fmt: skip
        acc, weights, row_max, row_sum, count, turns = _steps(
            acc, weights, row_max, row_sum, count, turns, full, full, start, q_tile, rings,
            my_turn, next_turn, seq_q, seq_k, scale_log2, W == 0, False, CAUSAL, PINGPONG,
        )  # fmt: skip
        if not SHARED_OUT:
            mbarrier.arrive(q_empty)

        last = (count - 1) % STAGES
        acc = warpgroup_mma(weights, v_tiles.index(last).reshape([BLOCK_N, WIDTH]), acc, is_async=True)
        total = gl.where(row_sum == 0.0, 1.0, row_sum)
        log_sum = (row_max + gl.log2(total)) * 0.6931471805599453
        rows = start + gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT))
        gl.store(lse + head_all.to(gl.int64) * seq_q + rows, log_sum, mask=rows < seq_q)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_empty.index(last))
        acc = acc * gl.convert_layout(1.0 / total, gl.SliceLayout(1, O_LAYOUT))[:, None]

        out_tile = out_tiles.index(W)
        if not SHARED_OUT:  # the store of the tile before may still read it
            tma.store_wait(0)
        out_tile.reshape([64, WIDTH]).store(acc.to(q_tile.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [head_all // heads, head_all % heads, start, 0], out_tile)
        if SHARED_OUT:
            tma.store_wait(0)
            mbarrier.arrive(q_empty)
    tma.store_wait(0)


@gluon.jit  # type: ignore[untyped-decorator]
def _barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):  # type: ignore[no-untyped-def]
    """COUNT barriers, each complete after ARRIVALS arrivals."""
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars


@gluon.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["heads", "group", "tiles_m", "total_heads", "section", "seq_q", "seq_k"]
)
def flash_hopper_forward(  # type: ignore[no-untyped-def]
    q_desc,
    k_desc,
    v_desc,
    out_desc,
    lse,
    heads,
    group,
    tiles_m,
    total_heads,
    section,
    seq_q,
    seq_k,
    scale_log2,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    PINGPONG: gl.constexpr,
    SHARED_OUT: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    GROUPS: gl.constexpr,
):
    """O = softmax(scale Q K^T) V and LSE = log sum exp(scale Q K^T).

    Traffic per head as `flash.flash_forward` states it, with BLOCK_M = 64 GROUPS: reads N_q d e + sum_i 2 c_i
    d e bytes, writes N_q d e + 4 N_q. One difference: c_i is at least one block of keys.
    SHARED_OUT: O goes out through the shared memory of Q, for tiles that leave no room for its own.
    """
    dtype: gl.constexpr = q_desc.dtype
    q_tiles = gl.allocate_shared_memory(dtype, [GROUPS, 1, 1, 64, WIDTH], q_desc.layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, WIDTH], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, WIDTH], v_desc.layout)
    if SHARED_OUT:
        out_tiles = q_tiles
    else:
        out_tiles = gl.allocate_shared_memory(dtype, [GROUPS, 1, 1, 64, WIDTH], out_desc.layout)
    queries = (q_tiles, _barriers(1, 1).index(0), _barriers(1, GROUPS).index(0))
    k_full, k_empty = _barriers(STAGES, 1), _barriers(STAGES, GROUPS)
    v_full, v_empty = _barriers(STAGES, 1), _barriers(STAGES, GROUPS)
    turn_bars = _barriers(GROUPS, 1)
    fence_async_shared()

    sources = (q_desc, k_desc, v_desc)
    outputs = (out_desc, lse, out_tiles)
    rings = (k_tiles, k_full, k_empty, v_tiles, v_full, v_empty)
    sizes = (heads, group, tiles_m, total_heads, section, seq_q, seq_k)
    compute = (outputs, queries, rings, turn_bars, sizes, scale_log2)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_compute, (compute, 0, CAUSAL, EVEN_N, PINGPONG, SHARED_OUT)),
                (_compute, (compute, 1, CAUSAL, EVEN_N, PINGPONG, SHARED_OUT)),
                (_load, (sources, queries, rings, sizes, CAUSAL)),
            ],
            [4, 1],
            [240, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_compute, (compute, 0, CAUSAL, EVEN_N, PINGPONG, SHARED_OUT)),
                (_compute, (compute, 1, CAUSAL, EVEN_N, PINGPONG, SHARED_OUT)),
                (_compute, (compute, 2, CAUSAL, EVEN_N, PINGPONG, SHARED_OUT)),
                (_load, (sources, queries, rings, sizes, CAUSAL)),
            ],
            [4, 4, 1],
            [160, 160, 24],
        )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    tile: HopperTile | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE): O like q, LSE float32 [B, h, N_q]. No autograd. See `flash_hopper_forward` for the traffic.

    Tiles go out head by head, which keeps one head's K and V in the L2. Causal ones, of unequal length, go
    out the longest first, over as many heads at a time as share the L2.
    ValueError for what the kernel cannot serve: other than float16 and bfloat16, other GPUs than compute
    capability 9.0, layouts that TMA cannot address.
    """
    shape = checked_shape(q, k, v)
    _check_hopper(q)
    check_served(q)
    _check_layouts(q, k, v)
    width = max(HOPPER_WIDTH, padded_width(shape.head_dim))
    tile = tile or hopper_tile(shape.head_dim, causal)
    if tile.groups not in (2, 3) or tile.stages < 2:
        raise ValueError(f"flash_hopper needs 2 or 3 warpgroups and at least 2 stages, got {tile}")
    out = like_rows(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tiles_m = triton.cdiv(shape.seq_q, WARPGROUP_ROWS * tile.groups)
    total_heads = shape.batch * shape.heads
    programs = tiles_m * total_heads
    if tile.persistent:
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count)
    with on_device(q):
        compiled = flash_hopper_forward[(programs,)](
            _descriptor(q, WARPGROUP_ROWS, width),
            _descriptor(k, tile.block_n, width),
            _descriptor(v, tile.block_n, width),
            _descriptor(out, WARPGROUP_ROWS, width),
            lse,
            shape.heads,
            shape.group,
            tiles_m,
            total_heads,
            _section(shape, q.element_size()) if causal else 1,
            shape.seq_q,
            shape.seq_k,
            softmax_scale(scale, shape.head_dim) * LOG2_E,
            CAUSAL=causal,
            EVEN_N=causal or shape.seq_k % tile.block_n == 0,
            PINGPONG=tile.pingpong,
            SHARED_OUT=width == 256,
            WIDTH=width,
            BLOCK_N=tile.block_n,
            STAGES=tile.stages,
            GROUPS=tile.groups,
            num_warps=4,
        )
    note_use(uses, "flash_hopper_forward", tile.held, compiled)
    return out, lse


def _check_hopper(tensor: Tensor) -> None:
    """ValueError, with the reason, on any device but one of compute capability 9.0."""
    if tensor.device.type != "cuda":
        raise ValueError(f"flash_hopper needs a GPU of compute capability 9.0, got {tensor.device}")
    if (found := capability(tensor)) != (9, 0):
        raise ValueError(f"flash_hopper needs compute capability 9.0 (wgmma), got {found[0]}.{found[1]}")


def _check_layouts(*tensors: Tensor) -> None:
    if not all(t.stride(-1) == 1 and can_describe(t) for t in tensors):
        raise ValueError("flash_hopper loads by TMA: it needs 16-byte aligned bases and strides, none 0")


def _section(shape: Shape, element_size: int) -> int:
    """Query heads whose causal tiles go out together, a multiple of the group."""
    return hopper_together(2 * shape.seq_k * shape.head_dim * element_size) * shape.group


def _descriptor(tensor: Tensor, rows: int, width: int) -> TensorDescriptor:
    """TMA descriptor of [B, h, N, d] with blocks of [1, 1, rows, width]; what lies outside reads as zero."""
    row = tensor.shape[3]
    # The stride of a dimension of one element is arbitrary, and a descriptor wants a legal one.
    strides = [s if n > 1 else row for s, n in zip(tensor.stride()[:3], tensor.shape[:3], strict=True)]
    layout = gl.NVMMASharedLayout(128, 16, rank=4)
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], [1, 1, rows, width], layout)
