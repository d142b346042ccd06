"""The tiles of FlashAttention-1: legal, complete, and with room on the smallest device of the model."""

import itertools

import pytest

from perfkit.kernels.attention import tiles

CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
HEAD_DIMS = [16, 24, 64, 72, 128, 136, 256]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_entry_is_a_legal_tile(capability: tuple[int, int]) -> None:
    for head_dim, tile in itertools.product(HEAD_DIMS, (0, 1)):
        found = tiles.flash1_tiles(head_dim, capability)[tile]
        assert all(n >= 16 and n & (n - 1) == 0 for n in found[:2]), found
        assert found.num_warps in (4, 8)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_k_and_v_and_a_block_of_rows_fit(capability: tuple[int, int]) -> None:
    for head_dim in HEAD_DIMS:
        width = 1 << (head_dim - 1).bit_length()
        forward, backward = tiles.flash1_tiles(head_dim, capability)
        # K and V, 2 B an element; Q, or O in fp32 on its way to the layout of its store.
        assert width * (4 * forward.block_n + 4 * forward.block_m) <= tiles.shared_limit(capability)
        # K and V; Q and dO.
        assert width * (4 * backward.block_n + 4 * backward.block_m) <= tiles.shared_limit(capability)


def test_keys_on_chip_shrink_as_the_head_widens() -> None:
    """B_c = M / 4d."""
    for capability, which in itertools.product(CAPABILITIES, (0, 1)):
        block_n = [tiles.flash1_tiles(head_dim, capability)[which].block_n for head_dim in (64, 128, 256)]
        assert block_n == sorted(block_n, reverse=True)


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="head dim 264"):
        tiles.flash1_tiles(264, (9, 0))
    with pytest.raises(ValueError, match=r"capability \(7, 0\)"):
        tiles.flash1_tiles(64, (7, 0))
