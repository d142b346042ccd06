"""Tile shapes of the flash kernels by head dim and compute capability, and the shared memory they need.

Pure Python: the IO model reads it where there is neither torch nor Triton. The sm_90 entries are the fastest
of a sweep on an H200 (`benchmarks/flash_tiles.py`), and some win in spite of a few spilled registers; the
others were chosen by what compiles without spills and were not timed.
"""

from typing import NamedTuple

Capability = tuple[int, int]


class Tile(NamedTuple):
    """Rows of Q (block_m) and of K/V (block_n) that a program holds, its warps, its pipeline depth."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


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


def delta_tile(head_dim: int) -> Tile:
    """The tile of the D kernel: rows of O and dO; no K/V loop, so block_n is 0."""
    return Tile(64 if head_dim <= 128 else 32, 0, 4, 1)


def forward_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the forward kernel: Q, num_stages buffers of K and of V; 16-bit."""
    return 2 * _width(head_dim) * (tile.block_m + 2 * tile.num_stages * tile.block_n)


def dkdv_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the dK/dV kernel: K, V, and num_stages buffers of Q, dO, LSE and D."""
    row_bytes = 2 * (2 * _width(head_dim)) + 8
    return 2 * _width(head_dim) * 2 * tile.block_n + tile.num_stages * tile.block_m * row_bytes


def dq_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of the dQ kernel: Q, dO, and num_stages buffers of K and of V."""
    return 2 * _width(head_dim) * (2 * tile.block_m + 2 * tile.num_stages * tile.block_n)


def flash1_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of FlashAttention-1's forward kernel: K, V and Q; 16-bit, without buffers."""
    return 2 * _width(head_dim) * (tile.block_m + 2 * tile.block_n)


def flash1_backward_shared_bytes(tile: Tile, head_dim: int) -> int:
    """Modelled shared memory of FlashAttention-1's backward kernel: K, V, Q and dO."""
    return 2 * _width(head_dim) * (2 * tile.block_m + 2 * tile.block_n)


def _row(head_dim: int, capability: Capability) -> _Row:
    rows = _TABLE[capability_class(capability)]
    for limit, row in rows.items():
        if head_dim <= limit:
            return row
    raise ValueError(f"no tiles for head dim {head_dim}: it must be 256 or smaller")


def _width(head_dim: int) -> int:
    return 1 << (head_dim - 1).bit_length()
