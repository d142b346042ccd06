"""The tile table: complete, legal, and within each device's shared memory."""

import itertools
import subprocess
import sys

import pytest

from perfkit.kernels.attention import tiles
from perfkit.kernels.attention.tiles import Tile

CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]
HEAD_DIMS = [16, 24, 32, 64, 72, 80, 96, 128, 160, 192, 256]
SCRATCH = 2048  # bytes that Triton adds for barriers and layout changes in the kernels as compiled


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_entry_fits_shared_memory(capability: tuple[int, int]) -> None:
    room = tiles.shared_limit(capability) - SCRATCH
    for head_dim, causal in itertools.product(HEAD_DIMS, (False, True)):
        forward = tiles.forward_tile(head_dim, capability, causal)
        dkdv, dq = tiles.backward_tiles(head_dim, capability, causal)
        assert tiles.forward_shared_bytes(forward, head_dim) <= room, forward
        assert tiles.dkdv_shared_bytes(dkdv, head_dim) <= room, dkdv
        assert tiles.dq_shared_bytes(dq, head_dim) <= room, dq


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_entry_is_a_legal_tile(capability: tuple[int, int]) -> None:
    for head_dim, causal in itertools.product(HEAD_DIMS, (False, True)):
        forward = tiles.forward_tile(head_dim, capability, causal)
        for tile in (forward, *tiles.backward_tiles(head_dim, capability, causal)):
            assert all(n >= 16 and n & (n - 1) == 0 for n in tile[:2]), tile
            assert tile.num_warps in (4, 8)
            assert tile.num_stages >= 1


def test_shared_memory_model_by_hand() -> None:
    # Q 128 x 128 + 2 stages of K and V 128 x 128 = 5 tiles of 16384 16-bit elements; seen compiled: 163,872.
    assert tiles.forward_shared_bytes(Tile(128, 128, 8, 2), 128) == 5 * 16384 * 2
    # K, V 128 x 128 + 2 stages of (Q, dO 64 x 128, LSE and D 64 floats each); seen compiled: 131,616.
    assert tiles.dkdv_shared_bytes(Tile(64, 128, 8, 2), 128) == 2 * 32768 + 2 * (2 * 16384 + 512)
    # Q, dO 128 x 128 + 2 stages of K and V 64 x 128, 128 wide for head dim 80; seen compiled: 131,088.
    assert tiles.dq_shared_bytes(Tile(128, 64, 8, 2), 80) == 2 * 32768 + 2 * 2 * 16384


def test_class_is_the_newest_that_is_not_newer() -> None:
    found = [tiles.capability_class(c) for c in CAPABILITIES]
    assert found == [
        "sm_75", "sm_80", "sm_86", "sm_80", "sm_86", "sm_90", "sm_100", "sm_100", "sm_100", "sm_120", "sm_120"
    ]  # fmt: skip


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="head dim 264"):
        tiles.forward_tile(264, (9, 0), False)
    with pytest.raises(ValueError, match=r"capability \(7, 0\)"):
        tiles.backward_tiles(64, (7, 0), False)


def test_the_table_needs_neither_torch_nor_triton() -> None:
    code = "import sys, perfkit.kernels.attention.tiles; print({'torch', 'triton'} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "set()"
