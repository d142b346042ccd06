"""Tile shapes of the flash kernels by head dim and compute capability, and the shared memory they need.

Pure Python: the IO model reads it where there is neither torch nor Triton. The sm_90 entries are the fastest
of a sweep on an H200 (`benchmarks/flash_tiles.py`), and some win in spite of a few spilled registers; the
others were chosen by what compiles without spills and were not timed.
"""

import math
from typing import NamedTuple

Capability = tuple[int, int]


class Tile(NamedTuple):
    """Rows of Q (block_m) and of K/V (block_n) that a program holds, its warps, its pipeline depth."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


class HopperTile(NamedTuple):
    """`groups` warpgroups of 64 rows of Q each, `block_n` rows of K/V, `stages` of those in shared memory.

    `persistent`: one program per multiprocessor takes tiles until there are none left, with `q_stages` tiles
    of Q in shared memory, else each program computes one.
    """

    groups: int
    block_n: int
    stages: int
    q_stages: int = 1
    persistent: bool = False

    @property
    def held(self) -> Tile:
        """Rows and warps of a whole program: one warpgroup more than compute, whose first warp loads."""
        return Tile(WARPGROUP_ROWS * self.groups, self.block_n, 4 * self.groups + 4, self.stages)


class HopperBackwardTile(NamedTuple):
    """`block_m` rows of Q and dO in one of `stages` (dK, dV), `block_n` keys in one of `stages_n` (dQ).

    Without `deterministic`, block_m is 64. Head dims up to 64 are `apart`: a third warpgroup computes dQ, and
    K and V stay in registers of the others. Above, two share dQ, 64 columns each, and the tile may be
    `ahead`: dS^T Q goes on while the next block begins. Above 128 it is `wide`: half of the keys, the
    warpgroups divide the products, and dQ has a kernel of its own, `deterministic` or not.
    """

    block_m: int
    stages: int
    block_n: int
    stages_n: int
    apart: bool = False
    ahead: bool = False
    wide: bool = False

    @property
    def keys(self) -> int:
        """Keys of a program of the dK/dV kernel."""
        return HOPPER_WIDE_KEYS if self.wide else HOPPER_FIXED_ROWS

    @property
    def kernel(self) -> str:
        """The name of the dK/dV kernel."""
        return "flash_hopper_dkdv_wide" if self.wide else "flash_hopper_dkdv"

    @property
    def held(self) -> Tile:
        """Rows and warps of a whole program of the dK/dV kernel; all but one warpgroup compute."""
        warps = HOPPER_BACKWARD_WARPS + (4 if self.apart else 0)
        return Tile(self.block_m, self.keys, warps, self.stages)

    @property
    def held_dq(self) -> Tile:
        """Rows and warps of a whole program of the dQ kernel, where there is one."""
        return Tile(HOPPER_FIXED_ROWS, self.block_n, HOPPER_BACKWARD_WARPS, self.stages_n)


class _Row(NamedTuple):
    """The tiles of one head-dim class: (all keys, causal)."""

    forward: tuple[Tile, Tile]
    dkdv: tuple[Tile, Tile]
    dq: tuple[Tile, Tile]


def _both(*tile: int) -> tuple[Tile, Tile]:
    return Tile(*tile), Tile(*tile)


# Class -> the largest shared memory of one thread block, in bytes. CUDA programming guide, technical
# specifications per compute capability: the multiprocessor's 64, 164, 100, 228, 228, 100 KiB, less 1 KiB per
# block from 8.0 on.
SHARED_LIMIT = {
    "sm_75": 64 * 1024,
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
}

_SM_86 = {
    64: _Row(_both(128, 64, 8, 2), (Tile(32, 128, 8, 2), Tile(32, 64, 8, 2)), _both(128, 64, 8, 2)),
    128: _Row(_both(128, 64, 8, 2), _both(32, 64, 8, 2), _both(128, 32, 8, 2)),
    256: _Row(_both(64, 32, 8, 2), _both(32, 32, 8, 2), _both(32, 32, 8, 2)),
}

_TABLE: dict[str, dict[int, _Row]] = {
    # Nothing runs here: Triton has no matrix instructions for it. The entries serve the IO model.
    "sm_75": {
        64: _Row(_both(64, 64, 4, 2), _both(64, 64, 4, 1), _both(64, 64, 4, 2)),
        128: _Row(_both(64, 32, 4, 2), _both(32, 64, 4, 1), _both(64, 32, 4, 1)),
        256: _Row(_both(32, 16, 4, 2), _both(16, 32, 4, 1), _both(32, 16, 4, 1)),
    },
    "sm_80": {
        64: _Row(_both(128, 64, 4, 3), (Tile(32, 128, 8, 2), Tile(32, 64, 8, 2)), _both(128, 64, 8, 2)),
        128: _Row(_both(128, 64, 8, 2), _both(32, 64, 8, 2), _both(128, 32, 8, 2)),
        256: _Row(_both(64, 64, 8, 2), _both(32, 32, 8, 2), _both(64, 32, 8, 2)),
    },
    "sm_86": _SM_86,
    "sm_90": {
        64: _Row(
            (Tile(64, 128, 4, 2), Tile(128, 64, 4, 3)),
            (Tile(64, 64, 4, 2), Tile(64, 64, 4, 3)),
            _both(128, 64, 4, 3),
        ),
        128: _Row((Tile(128, 64, 4, 2), Tile(128, 128, 8, 3)), _both(64, 64, 4, 2), _both(128, 64, 8, 3)),
        256: _Row(_both(128, 64, 8, 2), _both(64, 64, 8, 2), (Tile(128, 64, 8, 1), Tile(128, 32, 8, 2))),
    },
    "sm_100": {
        64: _Row(_both(128, 128, 8, 2), _both(64, 128, 8, 2), _both(128, 64, 8, 2)),
        128: _Row(_both(128, 128, 8, 2), _both(64, 64, 8, 2), _both(128, 64, 8, 2)),
        256: _Row(_both(128, 64, 8, 2), _both(32, 64, 8, 1), _both(128, 32, 8, 2)),
    },
    "sm_120": {**_SM_86, 128: _SM_86[128]._replace(forward=_both(128, 32, 8, 2))},
}

# FlashAttention-1 by head dim: (forward, backward). Compiled for any class from 8.0 on they fit that class.
_FLASH1 = {
    64: (Tile(64, 128, 4, 1), Tile(32, 128, 8, 1)),
    128: (Tile(64, 64, 4, 1), Tile(64, 32, 8, 1)),
    256: (Tile(32, 64, 8, 1), Tile(16, 32, 8, 1)),
}
#: Nothing runs here either.
_FLASH1_SM_75 = {
    64: (Tile(64, 128, 4, 1), Tile(32, 64, 4, 1)),
    128: (Tile(32, 64, 4, 1), Tile(32, 32, 4, 1)),
    256: (Tile(16, 32, 4, 1), Tile(16, 16, 4, 1)),
}

#: Rows of Q of one warpgroup: the M of one wgmma. Gluon kernels hold it as a literal.
WARPGROUP_ROWS = 64
#: Columns of the narrowest tile of the Hopper backward: a row of 128 bytes, which is what its swizzle takes.
HOPPER_WIDTH = 64
#: Bytes of K and V that causal tiles in flight of the Hopper kernel may read between them.
KV_IN_L2 = 16 * 2**20
#: The Hopper forward kernel by head dim: (all keys, causal). The fastest of those that
#: `benchmarks/attention_cases.py` has, on an H200; those of 96, 192 and 256 at N 8k alone.
_HOPPER = {
    64: (HopperTile(3, 128, 2, 2, persistent=True), HopperTile(3, 128, 3, 2, persistent=True)),
    96: (HopperTile(2, 128, 2, 2, persistent=True), HopperTile(2, 128, 2, 2, persistent=True)),
    128: (HopperTile(2, 128, 2, 2, persistent=True), HopperTile(2, 128, 2, 2, persistent=True)),
    192: (HopperTile(2, 64, 2, 2, persistent=True), HopperTile(2, 64, 2, 2, persistent=True)),
    256: (HopperTile(2, 64, 2), HopperTile(2, 64, 2)),
}

#: Rows of K and V (dK, dV) or of Q and dO (dQ) that a program of the Hopper backward holds, and its warps.
#: LSE and D are padded to a multiple of the rows, so that no tile of theirs is out of range. Gluon kernels
#: hold them, those of a warpgroup and HOPPER_WIDE_KEYS as literals.
HOPPER_FIXED_ROWS = 128
HOPPER_BACKWARD_WARPS = 12
#: Keys of a program above 128 columns, where those of two warpgroups would not fit the registers.
HOPPER_WIDE_KEYS = 64
#: Programs of the dK/dV kernel from which on it is not worth dealing out the query heads of a K/V head: they
#: are 8 waves on an H200.
HOPPER_PROGRAMS = 1056
#: Rows of O and dO of the kernel that makes D and pads LSE.
HOPPER_STATISTICS_ROWS = 64
#: Numbers of a tile of dQ's sum in the Hopper backward: 128 rows of 64 columns or 64 of 128, 64 x 64 a part.
HOPPER_SUM_TILE = 8192
#: The Hopper backward by head dim: (all keys, causal, deterministic). Of those that
#: `benchmarks/attention_cases.py` has, the fastest on an H200; the deterministic ones are all there are.
_HOPPER_BACKWARD = {
    64: (
        HopperBackwardTile(64, 3, 128, 2, apart=True),
        HopperBackwardTile(64, 3, 128, 2, apart=True),
        HopperBackwardTile(128, 2, 128, 2),
    ),
    128: (
        HopperBackwardTile(64, 2, 128, 2),
        HopperBackwardTile(64, 2, 128, 2, ahead=True),
        HopperBackwardTile(64, 2, 128, 2),
    ),
    256: (
        HopperBackwardTile(64, 2, 64, 2, wide=True),
        HopperBackwardTile(64, 2, 64, 2, wide=True),
        HopperBackwardTile(64, 2, 64, 2, wide=True),
    ),
}

#: Whether the last share of the keys to be ready merges them all, where nothing else is asked for; else a
#: kernel of its own does, and whether that one is then launched before they are ready (from 9.0 on).
DECODE_FUSED = False
DECODE_OVERLAP = True

# Warps of a square tile, by its side. More of them on 16 x 16 would repeat its matrix instructions.
_SQUARE_WARPS = {16: 1, 32: 4, 64: 4, 128: 8}


def capability_class(capability: Capability) -> str:
    """The row of the table for a device: the newest class that is not newer. ValueError below 7.5."""
    if capability < (7, 5):
        raise ValueError(f"no tiles for compute capability {capability}: it must be 7.5 or newer")
    if capability >= (12, 0):
        return "sm_120"
    if capability >= (10, 0):
        return "sm_100"
    if capability >= (9, 0):
        return "sm_90"
    if capability in ((8, 0), (8, 7)):
        return "sm_80"
    return "sm_86" if capability >= (8, 0) else "sm_75"


def shared_limit(capability: Capability) -> int:
    """The most shared memory that one thread block may use, in bytes."""
    return SHARED_LIMIT[capability_class(capability)]


def forward_tile(head_dim: int, capability: Capability, causal: bool) -> Tile:
    """The forward kernel's tile. ValueError for head dims above 256."""
    return _row(head_dim, capability).forward[causal]


def backward_tiles(head_dim: int, capability: Capability, causal: bool) -> tuple[Tile, Tile]:
    """The tiles of (the dK/dV kernel, the dQ kernel). ValueError for head dims above 256."""
    row = _row(head_dim, capability)
    return row.dkdv[causal], row.dq[causal]


def flash1_tiles(head_dim: int, capability: Capability) -> tuple[Tile, Tile]:
    """FlashAttention-1's (forward tile, backward tile). ValueError for head dims above 256.

    They compile without spills, which would be traffic that the algorithm has not; they were not timed.
    """
    rows = _FLASH1_SM_75 if capability_class(capability) == "sm_75" else _FLASH1
    for limit, tiles in rows.items():
        if head_dim <= limit:
            return tiles
    raise ValueError(f"no tiles for head dim {head_dim}: it must be 256 or smaller")


def hopper_tile(head_dim: int, causal: bool) -> HopperTile:
    """The tile of the forward kernel for compute capability 9.0 alone. ValueError for head dims above 256."""
    for limit, tiles in _HOPPER.items():
        if head_dim <= limit:
            return tiles[causal]
    raise ValueError(f"no tiles for head dim {head_dim}: it must be 256 or smaller")


def hopper_parts(head_dim: int) -> tuple[int, ...]:
    """Columns of the parts that the Hopper forward kernel holds a tile in: powers of two, the widest first.

    One part of 64, 128 or 256; but (64, 32) from 65 to 96, and (128, 64) from 129 to 192. ValueError above
    256.
    """
    for parts in ((64,), (64, 32), (128,), (128, 64), (256,)):
        if head_dim <= sum(parts):
            return parts
    raise ValueError(f"no tiles for head dim {head_dim}: it must be 256 or smaller")


def hopper_width(head_dim: int) -> int:
    """Columns of a tile of the Hopper forward kernel: 64, 96, 128, 192 or 256. ValueError above 256."""
    return sum(hopper_parts(head_dim))


def hopper_out_columns(head_dim: int, persistent: bool) -> int:
    """Columns of O that have shared memory of their own in the Hopper forward kernel: all, up to 128.

    Above, those of the first part, through which the second goes out after it. Or none, where a program ends
    with its tile: O then goes out through that of Q, into which a persistent one loads Q of its next tile.
    """
    parts = hopper_parts(head_dim)
    if sum(parts) <= 128:
        return sum(parts)
    return parts[0] if persistent else 0


def hopper_backward_tile(head_dim: int, causal: bool, deterministic: bool = False) -> HopperBackwardTile:
    """The tile of the backward kernels for compute capability 9.0. ValueError for head dims above 256."""
    for limit, tiles in _HOPPER_BACKWARD.items():
        if head_dim <= limit:
            return tiles[2 if deterministic else causal]
    raise ValueError(f"no tiles for head dim {head_dim}: it must be 256 or smaller")


def hopper_backward_width(head_dim: int) -> int:
    """Columns of a tile of the Hopper backward: 64 or 128, above that whole panels of 64."""
    return max(HOPPER_WIDTH, _width(head_dim)) if head_dim <= 128 else -(-head_dim // 64) * 64


def padded_rows(seq_q: int) -> int:
    """Rows of a head's LSE and D in the Hopper backward."""
    return -(-seq_q // HOPPER_FIXED_ROWS) * HOPPER_FIXED_ROWS


def hopper_shares(programs: int, group: int) -> int:
    """In how many shares the Hopper backward deals out the query heads of a K/V head.

    The fewest, of those that divide the group, that make HOPPER_PROGRAMS of `programs` blocks of keys.
    """
    divisors = [shares for shares in range(1, group + 1) if group % shares == 0]
    return next((shares for shares in divisors if programs * shares >= HOPPER_PROGRAMS), group)


def hopper_together(kv_bytes: int) -> int:
    """K/V heads, of `kv_bytes` each, whose causal tiles the Hopper kernel sends out together."""
    return max(1, KV_IN_L2 // kv_bytes)


def square_tile(side: int = 64) -> Tile:
    """The tile of `side` x `side` elements, on any device. ValueError for sides other than 16, 32, 64, 128.

    It compiles without spills from 8.0 on, and was not timed.
    """
    return Tile(side, side, square_warps(side), 3)


def square_warps(side: int, _: int = 0) -> int:
    """The warps of a tile of `side` x `side`. ValueError for sides other than 16, 32, 64, 128."""
    if side not in _SQUARE_WARPS:
        raise ValueError(f"a square tile has a side of 16, 32, 64 or 128, not {side}")
    return _SQUARE_WARPS[side]


def square_pitch(seq_k: int) -> int:
    """Elements from one row of S to the next: whole sectors of 32 bytes, so loads of 16 for any N_k."""
    return -(-seq_k // 16) * 16


def square_slice(side: int, depth: int | None = None) -> int:
    """Columns of an operand of a square tile that are on chip at a time, at most 64.

    With `depth` the most that divides it, so that no slice is partly empty: depth is a multiple of 16.
    """
    return math.gcd(min(side, 64), depth or 64)


def decode_tile(head_dim: int, rows: int, capability: Capability, page: int = 0, fp8: bool = False) -> Tile:
    """The tile of the decode kernel for `rows` query rows of a K/V head: the next power of two in 16..64.

    A stage of K and V takes 32 KiB from 64 columns on, and there are as many stages as leave room for two
    thread blocks on a multiprocessor of 8.0, 9.0 and 10.0. Those of 9.0 for head dims of 65 to 128 are the
    fastest of a sweep on an H200 (`benchmarks/decode.py`): one thread block of 128 keys, but two of 64 where
    pages are small, and four in fp8. The others compile without spills and were not timed.
    ValueError for head dims above 256.
    """
    if head_dim > 256:
        raise ValueError(f"no tiles for head dim {head_dim}: it must be 256 or smaller")
    block_m, width = min(64, max(16, 1 << (rows - 1).bit_length())), max(16, _width(head_dim))
    if capability_class(capability) == "sm_90" and width == 128 and block_m < 64 and not fp8:
        return Tile(block_m, 64, 4, 4) if 0 < page < 64 else Tile(block_m, 128, 8, 3)
    stages = {"sm_75": 1, "sm_90": 4, "sm_100": 4}.get(capability_class(capability), 3)
    if block_m == 64:  # Q takes room too, and instructions that read K from shared memory hold a stage more
        stages = max(1, min(stages - 1, 3 if width < 256 else 2))
    return Tile(block_m, min(128, 8192 // width), 8 if block_m == 64 and width == 256 else 4, stages)


def combine_tile(splits: int) -> Tile:
    """The tile of the kernel that merges: block_m is the number of partial results of a row, all of one."""
    return Tile(splits, 0, 4, 1)


def decode_append_tile(tokens: int) -> Tile:
    """The tile of the kernel that appends: rows of K and V that a program writes."""
    return Tile(min(16, 1 << (tokens - 1).bit_length()), 0, 4, 1)


def decode_resident(tile: Tile, fp8: bool = False) -> int:
    """Thread blocks of the decode kernel that shares are dealt out for, a multiprocessor."""
    if fp8:
        return 4
    return 1 if tile.block_n == 128 and tile.num_warps == 8 else 2


def decode_splits(blocks: int, key_blocks: int, sm_count: int, resident: int = 2) -> int:
    """Shares of the keys that fill a device, where `blocks` programs would run without; none of them empty.

    1 where the blocks alone fill 80 % of `resident` programs a multiprocessor; else the fewest, up to 128 and
    up to `key_blocks`, whose wave efficiency is within 85 % of the best. FlashAttention-2's rule
    (`num_splits_heuristic` of its `flash_api.cpp`).
    """
    slots = resident * sm_count
    if blocks >= 0.8 * slots:
        return 1
    # Of counts with the same longest share only the least has no empty share.
    counts = [n for n in range(1, min(128, key_blocks) + 1) if without_empty(n, key_blocks) == n]
    efficiency = {n: blocks * n / (-(-blocks * n // slots) * slots) for n in counts}
    best = max(efficiency.values())
    return next(n for n in counts if efficiency[n] >= 0.85 * best)


def without_empty(splits: int, key_blocks: int) -> int:
    """The number of shares that are not empty when `key_blocks` are dealt out in `splits` equal shares."""
    share = -(-key_blocks // splits)
    return -(-key_blocks // share)


def decode_pages(page: int, block_n: int) -> int:
    """Whole pages in a block of keys, each at the start of a power of two of the tile's rows.

    1 where a block is one page, a part of one, or of a cache in one piece (`page` 0).
    """
    return max(1, block_n >> (page - 1).bit_length()) if page else 1


def decode_blocks(keys: int, page: int, block_n: int) -> int:
    """Blocks of keys that hold the first `keys` of a sequence. No block holds parts of two pages."""
    pages = decode_pages(page, block_n)
    if pages > 1 or not page:
        return -(-keys // (pages * page or block_n))
    return keys // page * -(-page // block_n) + -(-(keys % page) // block_n)


def decode_covered(blocks: int, page: int, block_n: int) -> int:
    """Keys that the first `blocks` blocks of a long sequence hold."""
    pages = decode_pages(page, block_n)
    if pages > 1 or not page:
        return blocks * (pages * page or block_n)
    parts = -(-page // block_n)
    return blocks // parts * page + min(page, blocks % parts * block_n)


def decode_whole(keys: int, page: int, block_n: int) -> bool:
    """Whether blocks of the first `keys` keys fill their tiles, so that no row of one has to be masked."""
    pages = decode_pages(page, block_n)
    filled = pages * page == block_n if pages > 1 else page % block_n == 0
    return filled and keys % block_n == 0


def decode_at_once(tile: Tile, rows: int, width: int, splits: int) -> tuple[int, int]:
    """(rows, shares) of partial results that the last share to be ready merges at a time, powers of two.

    Up to 32 numbers a thread, so that merging takes no more registers than attention.
    """
    height = min(tile.block_m, 1 << (rows - 1).bit_length())
    most = max(1, 1024 * tile.num_warps // (height * width))
    return height, min(most, 1 << (splits - 1).bit_length())


def sparse1_tiles(head_dim: int, capability: Capability) -> tuple[Tile, Tile]:
    """Those of `flash1_tiles`, but for 8.x, where the check of a mask makes the widest forward tile spill."""
    forward, backward = flash1_tiles(head_dim, capability)
    return (forward if capability >= (9, 0) else within(forward, 64)), backward


def within(tile: Tile, block: int) -> Tile:
    """The tile with sides of at most `block`, for kernels whose tiles cross no border of a mask's blocks.

    A tile that has become smaller takes 4 warps: fewer rows than 16 a warp would be computed twice.
    """
    rows, columns = min(tile.block_m, block), min(tile.block_n, block)
    warps = tile.num_warps if (rows, columns) == tile[:2] else 4
    return tile._replace(block_m=rows, block_n=columns, num_warps=warps)


def delta_tile(head_dim: int) -> Tile:
    """The tile of the D kernel: rows of O and dO; no K/V loop, so block_n is 0."""
    return Tile(64 if head_dim <= 128 else 32, 0, 4, 1)


def forward_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the forward kernel: Q, num_stages buffers of K and of V; 16-bit."""
    return 2 * _width(head_dim) * (tile.block_m + 2 * tile.num_stages * tile.block_n)


def hopper_shared_bytes(
    tile: Tile, head_dim: int, q_stages: int | None = None, persistent: bool | None = None
) -> int:
    """Modelled shared memory of the Hopper forward kernel: q_stages of Q, O, num_stages of K and of V.

    16-bit. What is None is as in the table, where the tiles of a head dim have it alike with a mask and
    without. Of O those columns count that `hopper_out_columns` names.
    """
    table = hopper_tile(head_dim, causal=False)
    q_stages = table.q_stages if q_stages is None else q_stages
    own = hopper_out_columns(head_dim, table.persistent if persistent is None else persistent)
    rows = q_stages * tile.block_m + 2 * tile.num_stages * tile.block_n
    return 2 * (hopper_width(head_dim) * rows + own * tile.block_m)


def hopper_dkdv_shared_bytes(tile: Tile, head_dim: int, fused: bool = True) -> int:
    """Modelled shared memory of the Hopper dK/dV kernels: K, V, stages of Q, dO, LSE, D; what is exchanged.

    That is dS if dQ is `fused`, twice where a warpgroup of its own, hence 16 warps, has dQ; above 128 columns
    P, in 32 bit.
    """
    width = hopper_backward_width(head_dim)
    kept = 2 * 2 * width * tile.block_n + tile.num_stages * tile.block_m * (2 * 2 * width + 8)
    weights = tile.block_m * tile.block_n
    if width > 128:
        return kept + 4 * weights
    return kept + (2 * weights * (tile.num_warps // 4 - 2) if fused else 0)


def hopper_dq_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the Hopper dQ kernel: Q, dO, stages of K and V; one of V for 256 columns."""
    width = hopper_backward_width(head_dim)
    stages = tile.num_stages + (1 if width == 256 else tile.num_stages)
    return 2 * width * (2 * tile.block_m + stages * tile.block_n)


def dkdv_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the dK/dV kernel: K, V, and num_stages buffers of Q, dO, LSE and D."""
    row_bytes = 2 * (2 * _width(head_dim)) + 8
    return 2 * _width(head_dim) * 2 * tile.block_n + tile.num_stages * tile.block_m * row_bytes


def dq_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the dQ kernel: Q, dO, and num_stages buffers of K and of V."""
    return 2 * _width(head_dim) * (2 * tile.block_m + 2 * tile.num_stages * tile.block_n)


def flash1_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of FlashAttention-1's forward kernel: K, V and Q in 16 bit, and O in 32 bit.

    O passes through it from the layout that it is loaded in to that of the product.
    """
    return 2 * _width(head_dim) * (3 * tile.block_m + 2 * tile.block_n)


def flash1_backward_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of FlashAttention-1's backward kernel: K, V, Q and dO, and dQ in 32 bit."""
    return 2 * _width(head_dim) * (4 * tile.block_m + 2 * tile.block_n)


def square_scores_shared_bytes(tile: Tile, _: int) -> int:
    """Modelled shared memory of the S kernel in square tiles: num_stages slices of Q and of K; 16-bit."""
    return 2 * tile.num_stages * square_slice(tile.block_m) * (tile.block_m + tile.block_n)


def square_statistics_shared_bytes(tile: Tile, _: int) -> int:
    """Modelled shared memory of the statistics kernel: a number a row, which warps exchange."""
    return 4 * tile.block_m


def square_output_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the O kernel: num_stages slices of S and of V, and one of P; 16-bit."""
    return square_scores_shared_bytes(tile, head_dim) + 2 * square_slice(tile.block_m) * tile.block_m


def _row(head_dim: int, capability: Capability) -> _Row:
    rows = _TABLE[capability_class(capability)]
    for limit, row in rows.items():
        if head_dim <= limit:
            return row
    raise ValueError(f"no tiles for head dim {head_dim}: it must be 256 or smaller")


def _width(head_dim: int) -> int:
    return 1 << (head_dim - 1).bit_length()
