"""FlashAttention-3 forward in Gluon, for compute capability 9.0 only.

Shah, Bikshandi, Zhang, Thakkar, Ramani, Dao, "FlashAttention-3", arXiv 2407.08608, sections 3.1 and 3.2. One
warp loads by TMA into rings of K and V tiles; two or three warpgroups compute 64 rows of Q each, at their own
pace, so that the softmax of one runs during the products of the others. A program takes tiles until there are
none left, and starts the first product of a tile together with the last one of the tile before.

A tile's columns are held in one part or two (`tiles.hopper_parts`), each a power of two and a TMA copy of its
own: products of parts of Q and K add up, those of P and parts of V are parts of O. Tuples hold the parts.
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

from .hopper import refusal
from .shape import Shape, checked_shape, softmax_scale
from .tile_io import (
    LOG2_E,
    like_rows,
    note_use,
    on_device,
)
from .tiles import (
    WARPGROUP_ROWS,
    HopperTile,
    hopper_out_columns,
    hopper_parts,
    hopper_tile,
    hopper_together,
)
from .use import KernelUse


@gluon.jit  # type: ignore[untyped-decorator]
def _tile(index, tiles_m, total_heads, section, CAUSAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """(head over all batches, block of rows) of the index-th tile, in the order that `forward` has."""
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
def _extent(  # type: ignore[no-untyped-def]
    block, seq_q, seq_k, W: gl.constexpr, GROUPS: gl.constexpr, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr
):
    """What warpgroup W has of a tile: (first row, blocks of keys that it skips, then visits, of which need no
    mask).

    It skips what its tile loads for the rows of later warpgroups: at most one block, which is not narrower
    than these rows are many. One without any row does not skip.
    """
    tile = block * (GROUPS * 64)
    start = tile + W * 64
    visited = _blocks(tile, GROUPS * 64, seq_q, seq_k, CAUSAL, BLOCK_N)
    skipped = 0
    full = visited - 1
    if CAUSAL:
        loaded = visited
        if start < seq_q:
            visited = _blocks(start, 64, seq_q, seq_k, CAUSAL, BLOCK_N)
        skipped = loaded - visited
        full = gl.minimum(gl.maximum(start + seq_k - seq_q + 1, 0) // BLOCK_N, visited - 1)
    return start, skipped, visited, full


@gluon.jit
def _uniform(x):  # type: ignore[no-untyped-def]
    """x, which all threads of a warp have alike, in a register that they share.

    ptxas does not know it of what is loaded. It then takes branches for divergent, for which it has left the
    address of a product undefined, and keeps what loops count in registers of each thread, which are scarce.
    """
    return gl.inline_asm_elementwise(
        "redux.sync.max.s32 $0, $1, 0xffffffff;", "=r,r", [x], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _next(counter, total):  # type: ignore[no-untyped-def]
    """The tile that this program computes next, `total` or more where there is none left.

    As many tiles are taken as asked for: there are `total` calls a launch, and the last one zeroes `counter`
    for the next launch.
    """
    taken = _uniform(gl.atomic_add(counter, 1, sem="relaxed"))
    if taken == total - 1:
        gl.store(counter, 0)
    return gl.num_programs(0) + taken


@gluon.jit
def _announce(numbers, slot, batch, head, block):  # type: ignore[no-untyped-def]
    """Says which tile's Q is in `slot`: batch, head, block of rows; batch -1 says that there is no more."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    numbers.index(3 * slot).store(gl.full([1], batch, gl.int32, LAYOUT))
    numbers.index(3 * slot + 1).store(gl.full([1], head, gl.int32, LAYOUT))
    numbers.index(3 * slot + 2).store(gl.full([1], block, gl.int32, LAYOUT))


@gluon.jit
def _announced(numbers, slot):  # type: ignore[no-untyped-def]
    """(batch, head, block of rows) of the tile whose Q is in `slot`."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    batch = gl.max(numbers.index(3 * slot).load(LAYOUT), 0)
    head = gl.max(numbers.index(3 * slot + 1).load(LAYOUT), 0)
    block = gl.max(numbers.index(3 * slot + 2).load(LAYOUT), 0)
    return _uniform(batch), _uniform(head), _uniform(block)


@gluon.constexpr_function
def _bytes(descs):  # type: ignore[no-untyped-def]
    """Bytes of a tile, which are those of its parts."""
    return sum(desc.block_type.nbytes for desc in descs)


@gluon.jit
def _fetch(descs, batch, head, row, full, tiles, at, pred=True):  # type: ignore[no-untyped-def]
    """Starts to load the rows from `row` on into the tile `at`, part by part; `full` counts their bytes."""
    for p in gl.static_range(len(descs)):
        # There are two parts at most: the second begins where the first ends.
        tma.async_copy_global_to_shared(
            descs[p],
            [batch, head, row, p * descs[0].block_type.shape[3]],
            full,
            tiles[p].index(at),
            pred,
        )


@gluon.jit  # type: ignore[untyped-decorator]
def _load(  # type: ignore[no-untyped-def]
    sources, queries, rings, counter, sizes, CAUSAL: gl.constexpr, PERSISTENT: gl.constexpr
):
    """The producer: Q of a tile and which tile it is, then K and V of its blocks from the last to the first.

    K of a block and V of the one before, of whatever tile, fill a stage together: they are used together.
    """
    q_descs, k_descs, v_descs = sources
    q_tiles, q_full, q_empty, numbers = queries
    k_tiles, v_tiles, filled, emptied = rings
    heads, group, tiles_m, total_heads, section, seq_q, seq_k = sizes
    STAGES: gl.constexpr = k_tiles[0].shape[0]
    BLOCK_N: gl.constexpr = k_tiles[0].shape[3]
    Q_STAGES: gl.constexpr = q_full.shape[0]
    GROUPS: gl.constexpr = q_tiles[0].shape[0] // Q_STAGES
    total = tiles_m * total_heads
    index = gl.program_id(0)
    count = 0
    turn = 0
    batch = 0
    kv_head = 0
    row = 0
    while index < total:
        head_all, block = _tile(index, tiles_m, total_heads, section, CAUSAL)
        next_batch = head_all // heads
        head = head_all % heads
        start = block * (GROUPS * 64)
        slot = turn % Q_STAGES
        mbarrier.wait(q_empty.index(slot), (turn // Q_STAGES & 1) ^ 1)
        _announce(numbers, slot, next_batch, head, block)
        mbarrier.arrive(q_full.index(slot))
        mbarrier.expect(q_full.index(slot), GROUPS * _bytes(q_descs))
        for w in gl.static_range(GROUPS):
            _fetch(q_descs, next_batch, head, start + w * 64, q_full.index(slot), q_tiles, slot * GROUPS + w)
        blocks = _blocks(start, GROUPS * 64, seq_q, seq_k, CAUSAL, BLOCK_N)
        for done in range(blocks):
            stage = count % STAGES
            mbarrier.wait(emptied.index(stage), (count // STAGES & 1) ^ 1)
            mbarrier.expect(filled.index(stage), _bytes(k_descs) + _bytes(v_descs), pred=count > 0)
            mbarrier.expect(filled.index(stage), _bytes(k_descs), pred=count == 0)
            below = (blocks - 1 - done) * BLOCK_N
            _fetch(k_descs, next_batch, head // group, below, filled.index(stage), k_tiles, stage)
            before = (count + STAGES - 1) % STAGES
            _fetch(v_descs, batch, kv_head, row, filled.index(stage), v_tiles, before, count > 0)
            batch = next_batch
            kv_head = head // group
            row = below
            count += 1
        turn += 1
        index = total
        if PERSISTENT:
            index = _next(counter, total)
    stage = count % STAGES
    mbarrier.wait(emptied.index(stage), (count // STAGES & 1) ^ 1)
    mbarrier.expect(filled.index(stage), _bytes(v_descs))
    before = (count + STAGES - 1) % STAGES
    _fetch(v_descs, batch, kv_head, row, filled.index(stage), v_tiles, before)
    if PERSISTENT:
        slot = turn % Q_STAGES
        mbarrier.wait(q_empty.index(slot), (turn // Q_STAGES & 1) ^ 1)
        _announce(numbers, slot, -1, 0, 0)
        mbarrier.arrive(q_full.index(slot), count=2)


@gluon.jit
def _tile_of(tiles, at):  # type: ignore[no-untyped-def]
    """The parts of the tile `at` as matrices."""
    return [part.index(at).reshape([part.shape[3], part.shape[4]]) for part in tiles]


@gluon.jit  # type: ignore[untyped-decorator]
def _score(q_tile, k_tile, LAYOUT: gl.constexpr):  # type: ignore[no-untyped-def]
    """Starts Q K^T of one block: a product for each part, which add up."""
    BLOCK_N: gl.constexpr = k_tile[0].shape[0]
    scores = gl.zeros([64, BLOCK_N], gl.float32, LAYOUT)
    for p in gl.static_range(len(q_tile)):
        keys = k_tile[p].permute((1, 0))
        scores = warpgroup_mma(q_tile[p], keys, scores, use_acc=p > 0, is_async=True)
    return scores


@gluon.jit
def _weigh(accs, weights, v_tile):  # type: ignore[no-untyped-def]
    """Starts the addition of P V of one block to O: a product for each part, with columns of its own."""
    products = ()
    for p in gl.static_range(len(accs)):
        # All parts take the same registers for P.
        left = gl.convert_layout(weights, gl.DotOperandLayout(0, accs[p].type.layout, 2), assert_trivial=True)
        products += (warpgroup_mma(left, v_tile[p], accs[p], is_async=True),)  # type: ignore[assignment]
    return products


@gluon.jit
def finished(products):  # type: ignore[no-untyped-def]
    """Their results, when all are done."""
    results = warpgroup_mma_wait(0, deps=products)
    return (results,) if len(products) == 1 else results  # of one it is no tuple


@gluon.jit
def _scaled(accs, factors):  # type: ignore[no-untyped-def]
    """O with each row times its factor."""
    return [acc * gl.convert_layout(factors, gl.SliceLayout(1, acc.type.layout))[:, None] for acc in accs]


@gluon.jit
def _zero(part):  # type: ignore[no-untyped-def]
    """Zeros for 64 rows of the columns of `part`, in the layout of a product."""
    WIDTH: gl.constexpr = part.shape[4]
    return gl.zeros([64, WIDTH], gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16]))


@gluon.jit
def _zeros(tiles):  # type: ignore[no-untyped-def]
    """Zeros for each part of O."""
    return [_zero(part) for part in tiles]


@gluon.jit  # type: ignore[untyped-decorator]
def _softmax(  # type: ignore[no-untyped-def]
    scores,
    row_max,
    row_sum,
    diagonal,
    left,
    scale_log2,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
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
        # The lane has bits 1 and 2 of a key, its register the others: without the lane's, which go to the
        # row, keys are literals. With them ptxas keeps 32 numbers for all tiles, and spills others.
        lane = keys & 6
        seen = (keys - lane)[None, :] <= last[:, None] - lane[None, :]
        scores = gl.where(seen, scores, float("-inf"))
    new_max = gl.maximum(row_max, gl.max(scores, 1) * scale_log2)
    base = new_max
    if MASKED:  # a row that has seen no key yet: -inf - -inf would be NaN
        base = gl.where(new_max == float("-inf"), 0.0, new_max)
    weights = gl.exp2(scores * scale_log2 - base[:, None])
    rescale = gl.exp2(row_max - base)
    return weights, rescale, new_max, row_sum * rescale + gl.sum(weights, 1)


@gluon.jit  # type: ignore[untyped-decorator]
def _steps(  # type: ignore[no-untyped-def]
    state,
    blocks,
    hi,
    start,
    q_tile,
    rings,
    seq_q,
    seq_k,
    scale_log2,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
):
    """The next `blocks` blocks, from block hi - 1 down: Q K^T of a block beside P V of the one before.

    ptxas waits for P V ahead of the exponentials. To keep it from that, by a wait for a barrier in between,
    made every shape slower, by up to 10 %: there are other warpgroups to fill the tensor cores.
    """
    accs, weights, row_max, row_sum, count = state
    k_tiles, v_tiles, filled, emptied = rings
    STAGES: gl.constexpr = k_tiles[0].shape[0]
    BLOCK_N: gl.constexpr = k_tiles[0].shape[3]
    S_LAYOUT: gl.constexpr = row_max.type.layout.parent
    for done in range(blocks):
        row = (hi - 1 - done) * BLOCK_N
        stage = count % STAGES
        phase = count // STAGES & 1
        mbarrier.wait(filled.index(stage), phase)
        scores = _score(q_tile, _tile_of(k_tiles, stage), S_LAYOUT)
        products = _weigh(accs, weights, _tile_of(v_tiles, (count + STAGES - 1) % STAGES))
        scores = warpgroup_mma_wait(len(accs), deps=(scores,))
        exps, rescale, row_max, row_sum = _softmax(
            scores, row_max, row_sum, start + seq_k - seq_q - row, seq_k - row, scale_log2, MASKED, CAUSAL
        )
        accs = finished(products)
        mbarrier.arrive(emptied.index(stage))
        accs = _scaled(accs, rescale)
        weights = gl.convert_layout(exps.to(q_tile[0].dtype), weights.type.layout)
        count += 1
    return accs, weights, row_max, row_sum, count


@gluon.jit  # type: ignore[untyped-decorator]
def _begin(  # type: ignore[no-untyped-def]
    scores, start, visited, seq_q, seq_k, scale_log2, CAUSAL: gl.constexpr, EVEN_N: gl.constexpr
):
    """(weights, row maximum, row sum) of the first block that a warpgroup visits."""
    LAYOUT: gl.constexpr = gl.SliceLayout(1, scores.type.layout)
    row = (visited - 1) * scores.shape[1]
    row_max = gl.full([64], float("-inf"), gl.float32, LAYOUT)
    row_sum = gl.zeros([64], gl.float32, LAYOUT)
    exps, _, row_max, row_sum = _softmax(
        scores, row_max, row_sum, start + seq_k - seq_q - row, seq_k - row, scale_log2,
        CAUSAL or not EVEN_N, CAUSAL,
    )  # fmt: skip
    return exps, row_max, row_sum


@gluon.jit  # type: ignore[untyped-decorator]
def _turn_over(  # type: ignore[no-untyped-def]
    accs,
    weights,
    v_tile,
    q_tile,
    k_tile,
    start,
    visited,
    seq_q,
    seq_k,
    scale_log2,
    LAYOUT: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
):
    """(O of a tile before it is divided by its sum, then as `_begin` of the next tile)."""
    scores = _score(q_tile, k_tile, LAYOUT)
    products = _weigh(accs, weights, v_tile)
    scores = warpgroup_mma_wait(len(accs), deps=(scores,))
    exps, row_max, row_sum = _begin(scores, start, visited, seq_q, seq_k, scale_log2, CAUSAL, EVEN_N)
    return finished(products), exps, row_max, row_sum


@gluon.jit
def _half(tile, desc):  # type: ignore[no-untyped-def]
    """The first half of the memory of a tile, as a tile of `desc`, which is half as wide."""
    return tile._reinterpret(desc.dtype, [2, 1, 1, 64, desc.block_type.shape[3]], desc.layout).index(0)


@gluon.jit
def _write(descs, batch, head, row, tiles, at, accs):  # type: ignore[no-untyped-def]
    """Starts to write rows of O from `row` on, through the tile `at`, of which all was read.

    Where there is memory for the first part only, the second goes out after it.
    """
    for p in gl.static_range(len(accs)):
        if p < len(tiles):
            tile = tiles[p].index(at)
        else:
            tma.store_wait(0)  # the part before goes out through the same memory
            tile = _half(tiles[0].index(at), descs[p])
        tile.reshape([64, accs[p].shape[1]]).store(accs[p].to(descs[p].dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(descs[p], [batch, head, row, p * descs[0].block_type.shape[3]], tile)


@gluon.jit  # type: ignore[untyped-decorator]
def _compute(  # type: ignore[no-untyped-def]
    arguments,
    W: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN_N: gl.constexpr,
    STEEP: gl.constexpr,
    PERSISTENT: gl.constexpr,
):
    """A consumer: the W-th warpgroup, rows [64 W, 64 W + 64) of each tile.

    P V of a tile's last block runs beside Q K^T of the next tile's first. STEEP: the diagonal can cross two
    blocks of a warpgroup, which it cannot where N_k - N_q is a multiple of 64. A loop that no tile enters
    would still take registers from the others.
    """
    outputs, queries, rings, sizes, scale_log2 = arguments
    out_descs, lse, out_tiles = outputs
    q_tiles, q_full, q_empty, numbers = queries
    k_tiles, v_tiles, filled, emptied = rings
    heads, _group, _tiles_m, _total_heads, _section, seq_q, seq_k = sizes
    STAGES: gl.constexpr = k_tiles[0].shape[0]
    BLOCK_N: gl.constexpr = k_tiles[0].shape[3]
    Q_STAGES: gl.constexpr = q_full.shape[0]
    GROUPS: gl.constexpr = q_tiles[0].shape[0] // Q_STAGES
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    turn = 0
    count = 0

    mbarrier.wait(q_full.index(0), 0)
    batch, head, block = _announced(numbers, 0)
    start, skipped, visited, full = _extent(block, seq_q, seq_k, W, GROUPS, CAUSAL, BLOCK_N)
    for _ in range(skipped):
        mbarrier.wait(filled.index(0), 0)
        mbarrier.arrive(emptied.index(0))
        count += 1
    mbarrier.wait(filled.index(count % STAGES), 0)
    scores = _score(_tile_of(q_tiles, W), _tile_of(k_tiles, count % STAGES), S_LAYOUT)
    scores = warpgroup_mma_wait(0, deps=(scores,))
    exps, row_max, row_sum = _begin(scores, start, visited, seq_q, seq_k, scale_log2, CAUSAL, EVEN_N)
    accs = _zeros(q_tiles)
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, accs[0].type.layout, 2)
    weights = gl.convert_layout(exps.to(q_tiles[0].dtype), P_LAYOUT)
    mbarrier.arrive(emptied.index(count % STAGES))
    count += 1
    while batch >= 0:
        slot = turn % Q_STAGES
        q_tile = _tile_of(q_tiles, slot * GROUPS + W)
        more = visited - 1
        if start >= seq_q:  # no row to compute: only let go of what is loaded
            for _ in range(more):
                mbarrier.wait(filled.index(count % STAGES), count // STAGES & 1)
                mbarrier.arrive(emptied.index(count % STAGES))
                count += 1
            more = 0
            full = 0
        state = (accs, weights, row_max, row_sum, count)
        if STEEP:
            state = _steps(
                state, more - full, visited - 1, start, q_tile, rings, seq_q, seq_k, scale_log2,
                True, CAUSAL,
            )  # fmt: skip
        state = _steps(state, full, full, start, q_tile, rings, seq_q, seq_k, scale_log2, False, CAUSAL)
        accs, weights, row_max, row_sum, count = state

        seen = gl.where(row_sum == 0.0, 1.0, row_sum)
        log_sum = (row_max + gl.log2(seen)) * 0.6931471805599453
        rows = start + gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT))
        gl.store(lse + (batch * heads + head).to(gl.int64) * seq_q + rows, log_sum, mask=rows < seq_q)
        inverse = 1.0 / seen
        my_batch = batch
        my_head = head
        first_row = start
        v_tile = _tile_of(v_tiles, (count + STAGES - 1) % STAGES)
        stage = count % STAGES
        phase = count // STAGES & 1
        batch = -1  # one tile a program
        if PERSISTENT:
            mbarrier.arrive(q_empty.index(slot))
            turn += 1
            slot = turn % Q_STAGES
            mbarrier.wait(q_full.index(slot), turn // Q_STAGES & 1)
            # After the last tile too, of what lies there: that is one product for each program.
            batch, head, block = _announced(numbers, slot)
            start, skipped, visited, full = _extent(block, seq_q, seq_k, W, GROUPS, CAUSAL, BLOCK_N)
            mbarrier.wait(filled.index(stage), phase)
            ahead = count
            if CAUSAL:
                ahead = count + gl.where(batch >= 0, skipped, 0)
                mbarrier.wait(filled.index(ahead % STAGES), ahead // STAGES & 1)
            accs, exps, row_max, row_sum = _turn_over(
                accs, weights, v_tile, _tile_of(q_tiles, slot * GROUPS + W),
                _tile_of(k_tiles, ahead % STAGES), start, visited, seq_q, seq_k, scale_log2,
                S_LAYOUT, CAUSAL, EVEN_N,
            )  # fmt: skip
            weights = gl.convert_layout(exps.to(q_tiles[0].dtype), P_LAYOUT)
            mbarrier.arrive(emptied.index(stage))
            if CAUSAL:
                mbarrier.arrive(emptied.index(ahead % STAGES), pred=ahead > count)
            count = ahead
        else:
            mbarrier.wait(filled.index(stage), phase)
            accs = finished(_weigh(accs, weights, v_tile))
        count += 1

        accs = _scaled(accs, inverse)
        tma.store_wait(0)  # the store of the tile before may still read it
        _write(out_descs, my_batch, my_head, first_row, out_tiles, W, accs)
        accs = _zeros(q_tiles)
    tma.store_wait(0)


@gluon.jit  # type: ignore[untyped-decorator]
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):  # type: ignore[no-untyped-def]
    """COUNT barriers, each complete after ARRIVALS arrivals."""
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars


@gluon.jit  # type: ignore[untyped-decorator]
def _tiles(descs, COUNT: gl.constexpr):  # type: ignore[no-untyped-def]
    """Shared memory for COUNT tiles, in the parts that the descriptors load or write."""
    return [
        gl.allocate_shared_memory(
            desc.dtype, [COUNT, 1, 1, desc.block_type.shape[2], desc.block_type.shape[3]], desc.layout
        )
        for desc in descs
    ]


@gluon.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["heads", "group", "tiles_m", "total_heads", "section", "seq_q", "seq_k"]
)
def flash_hopper_forward(  # type: ignore[no-untyped-def]
    q_desc,
    k_desc,
    v_desc,
    out_desc,
    q_tail,
    k_tail,
    v_tail,
    out_tail,
    lse,
    counter,
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
    STEEP: gl.constexpr,
    PERSISTENT: gl.constexpr,
    OUT_COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    Q_STAGES: gl.constexpr,
    GROUPS: gl.constexpr,
):
    """O = softmax(scale Q K^T) V and LSE = log sum exp(scale Q K^T).

    Traffic per head as `flash.flash_forward` states it, with BLOCK_M = 64 GROUPS: reads N_q d e + sum_i 2 c_i
    d e bytes, writes N_q d e + 4 N_q. One difference: c_i is at least one block of keys.
    At most as many programs as tiles; PERSISTENT ones take their next tile from `counter`, which is 0 before
    and after. Descriptors called `_tail` are those of the second part, None where there is one only.
    OUT_COLUMNS of O have shared memory of their own: all, those of the first part, or none, and then O goes
    out through that of Q, which PERSISTENT programs cannot.
    """
    q_descs = (q_desc,) if q_tail is None else (q_desc, q_tail)
    k_descs = (k_desc,) if k_tail is None else (k_desc, k_tail)
    v_descs = (v_desc,) if v_tail is None else (v_desc, v_tail)
    out_descs = (out_desc,) if out_tail is None else (out_desc, out_tail)
    q_tiles = _tiles(q_descs, Q_STAGES * GROUPS)
    k_tiles = _tiles(k_descs, STAGES)
    v_tiles = _tiles(v_descs, STAGES)
    if OUT_COLUMNS == 0:
        out_tiles = q_tiles
    elif out_desc.block_type.shape[3] == OUT_COLUMNS:
        out_tiles = _tiles((out_desc,), GROUPS)
    else:
        out_tiles = _tiles(out_descs, GROUPS)
    NUMBERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    numbers = gl.allocate_shared_memory(gl.int32, [3 * Q_STAGES, 1], NUMBERS)
    # A tile of Q is there with its number (one arrival) and its bytes (the other).
    queries = (q_tiles, barriers(Q_STAGES, 2), barriers(Q_STAGES, GROUPS), numbers)
    rings = (k_tiles, v_tiles, barriers(STAGES, 1), barriers(STAGES, GROUPS))
    fence_async_shared()

    sources = (q_descs, k_descs, v_descs)
    outputs = (out_descs, lse, out_tiles)
    sizes = (heads, group, tiles_m, total_heads, section, seq_q, seq_k)
    compute = (outputs, queries, rings, sizes, scale_log2)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_compute, (compute, 0, CAUSAL, EVEN_N, STEEP, PERSISTENT)),
                (_compute, (compute, 1, CAUSAL, EVEN_N, STEEP, PERSISTENT)),
                (_load, (sources, queries, rings, counter, sizes, CAUSAL, PERSISTENT)),
            ],
            [4, 1],
            [240, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_compute, (compute, 0, CAUSAL, EVEN_N, STEEP, PERSISTENT)),
                (_compute, (compute, 1, CAUSAL, EVEN_N, STEEP, PERSISTENT)),
                (_compute, (compute, 2, CAUSAL, EVEN_N, STEEP, PERSISTENT)),
                (_load, (sources, queries, rings, counter, sizes, CAUSAL, PERSISTENT)),
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

    Programs take tiles head by head, which keeps one head's K and V in the L2; causal ones, of unequal
    length, the longest first, over as many heads at a time as share the L2.
    ValueError for what the kernel cannot serve: other than float16 and bfloat16, other GPUs than compute
    capability 9.0, layouts that TMA cannot address.
    """
    shape = served_shape(q, k, v)
    tile = tile or hopper_tile(shape.head_dim, causal)
    if tile.groups not in (2, 3) or tile.stages < 2 or tile.block_n < WARPGROUP_ROWS * (tile.groups - 1):
        raise ValueError(f"flash_hopper needs 2 or 3 warpgroups, 2 stages or more, wide blocks, got {tile}")
    out = like_rows(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tiles_m = triton.cdiv(shape.seq_q, WARPGROUP_ROWS * tile.groups)
    total_heads = shape.batch * shape.heads
    programs = tiles_m * total_heads
    if tile.persistent:
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count)
    with on_device(q):
        counter = _counter(q.device) if tile.persistent else lse
        compiled = flash_hopper_forward[(programs,)](
            *_descriptors(q, k, v, out, tile.block_n),
            lse,
            counter,
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
            STEEP=causal and (shape.seq_k - shape.seq_q) % WARPGROUP_ROWS != 0,
            PERSISTENT=tile.persistent,
            OUT_COLUMNS=hopper_out_columns(shape.head_dim, tile.persistent),
            STAGES=tile.stages,
            Q_STAGES=tile.q_stages,
            GROUPS=tile.groups,
            num_warps=4,
        )
    note_use(uses, "flash_hopper_forward", tile.held, compiled)
    return out, lse


#: (device, stream) -> the counter of its persistent programs, which is 0 between launches.
_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def _counter(device: torch.device) -> Tensor:
    """An int32 that is 0 on the current stream. Launches on other streams and graphs have others."""
    if torch.cuda.is_current_stream_capturing():  # a graph may be replayed on any stream
        return torch.zeros(1, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _COUNTERS:
        _COUNTERS[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _COUNTERS[key]


def served_shape(q: Tensor, k: Tensor, v: Tensor) -> Shape:
    """The shape of a call that the kernels can serve; ValueError, with the reason, for any other."""
    if (reason := refusal(q, k, v)) is not None:
        raise ValueError(f"flash_hopper {reason}")
    return checked_shape(q, k, v)


def _section(shape: Shape, element_size: int) -> int:
    """Query heads whose causal tiles go out together: a multiple of the group, and no more than there are."""
    together = hopper_together(2 * shape.seq_k * shape.head_dim * element_size) * shape.group
    return min(together, shape.batch * shape.heads)


def _descriptors(q: Tensor, k: Tensor, v: Tensor, out: Tensor, block_n: int) -> list[TensorDescriptor | None]:
    """Those of the first part of q, k, v and out, then those of the second, or None four times."""
    first, *second = hopper_parts(q.shape[3])
    tensors = ((q, WARPGROUP_ROWS), (k, block_n), (v, block_n), (out, WARPGROUP_ROWS))
    tails = [descriptor(tensor, rows, width) for width in second for tensor, rows in tensors]
    return [*(descriptor(tensor, rows, first) for tensor, rows in tensors), *(tails or [None] * 4)]


def descriptor(tensor: Tensor, rows: int, width: int) -> TensorDescriptor:
    """TMA descriptor of [B, h, N, d] with blocks of [1, 1, rows, width]; what lies outside reads as zero.

    Rows of 64 columns or more are swizzled in pieces of 128 bytes, those of 32 of 64 bytes.
    """
    row = tensor.shape[3]
    # The stride of a dimension of one element is arbitrary, and a descriptor wants a legal one.
    strides = [s if n > 1 else row for s, n in zip(tensor.stride()[:3], tensor.shape[:3], strict=True)]
    layout = gl.NVMMASharedLayout(min(128, 2 * width), 16, rank=4)
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], [1, 1, rows, width], layout)
