"""Tile lists against dense masks, on odd sizes, and how kernels go along them."""

from typing import Any

import pytest

np = pytest.importorskip("numpy")

from perfkit.kernels.attention.spans import TileList, TileLists, tile_lists, walk_of  # noqa: E402

#: (N_q, N_k, rows of a tile, keys of a tile).
SIZES = [
    (64, 64, 16, 16),
    (61, 61, 16, 32),
    (61, 61, 64, 16),
    (17, 130, 16, 64),
    (130, 17, 32, 16),
    (1, 1, 128, 64),
]


def random_ends(rng: Any, rows: int, seq_k: int, spans: int) -> Any:
    """Spans apart from each other in a row, some empty, some rows without any; neighbours as they come."""
    cuts = np.sort(rng.integers(0, seq_k + 1, (rows, 2 * spans)), 1).reshape(rows, spans, 2)
    cuts[rng.random((rows, spans)) < 0.2] = 0
    return cuts.astype(np.int32)


def dense(ends: Any, step: int, seq_q: int, seq_k: int) -> Any:
    """The mask, bool [N_q, N_k], pair by pair."""
    seen = np.zeros((seq_q, seq_k), bool)
    for row in range(seq_q):
        for low, high in ends[row // step]:
            seen[row, low:high] = True
    return seen


def members(found: TileList, at: int) -> tuple[list[int], list[int]]:
    """(those in part, those in full) of one list."""
    first, end = found.offsets[at : at + 2]
    middle = first + found.partial[at]
    return found.members[first:middle].tolist(), found.members[middle:end].tolist()


def assert_lists(found: TileLists, seen: Any, block_m: int, block_n: int, exact: bool) -> None:
    """Every visible pair is in a listed tile, and a tile in full has no hidden pair nor a key beyond.

    `exact`: no listed tile is empty either, and all that a single span covers are in full.
    """
    seq_q, seq_k = seen.shape
    tiles_m, tiles_n = -(-seq_q // block_m), -(-seq_k // block_n)
    assert len(found.by_queries.partial) == tiles_m
    assert len(found.by_keys.partial) == tiles_n
    pairs: dict[tuple[int, int], bool] = {}
    for row in range(tiles_m):
        in_part, full = members(found.by_queries, row)
        assert in_part == sorted(set(in_part))
        assert full == sorted(set(full))
        pairs |= {(row, column): False for column in in_part} | {(row, column): True for column in full}
    for row in range(tiles_m):
        for column in range(tiles_n):
            tile = seen[row * block_m : (row + 1) * block_m, column * block_n : (column + 1) * block_n]
            if (row, column) not in pairs:
                assert not tile.any()
            elif pairs[row, column]:
                assert tile.all()
                assert tile.shape[1] == block_n
            elif exact:
                assert tile.any()
                assert not tile.all() or tile.shape[1] < block_n
    turned: dict[tuple[int, int], bool] = {}
    for column in range(tiles_n):
        in_part, full = members(found.by_keys, column)
        assert in_part == sorted(set(in_part))
        assert full == sorted(set(full))
        turned |= {(row, column): False for row in in_part} | {(row, column): True for row in full}
    assert turned == pairs


@pytest.mark.parametrize("spans", [1, 2, 3])
@pytest.mark.parametrize(("seq_q", "seq_k", "block_m", "block_n"), SIZES)
def test_against_any_mask(seq_q: int, seq_k: int, block_m: int, block_n: int, spans: int) -> None:
    """Spans that do not touch those of the next row list a tile too many at worst, and none in full."""
    for seed in range(8):
        ends = random_ends(np.random.default_rng(seed), seq_q, seq_k, spans)
        found = tile_lists(ends, 1, seq_q, seq_k, block_m, block_n)
        assert_lists(found, dense(ends, 1, seq_q, seq_k), block_m, block_n, exact=False)


@pytest.mark.parametrize(("seq_q", "seq_k", "block_m", "block_n"), SIZES)
def test_against_windows_that_move(seq_q: int, seq_k: int, block_m: int, block_n: int) -> None:
    """One span a row, touching the next row's: exactly the tiles with a visible pair, full where they are."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        low = np.sort(rng.integers(0, seq_k, seq_q))
        high = np.minimum(
            np.maximum(np.sort(rng.integers(0, seq_k + 1, seq_q)), np.append(low[1:], 0)), seq_k
        )
        ends = np.stack([low, np.maximum(high, low)], -1)[:, None].astype(np.int32)
        seen = dense(ends, 1, seq_q, seq_k)
        assert_lists(tile_lists(ends, 1, seq_q, seq_k, block_m, block_n), seen, block_m, block_n, exact=True)


@pytest.mark.parametrize("step", [16, 64])
@pytest.mark.parametrize("length", [64, 61, 130, 200])
def test_against_blocks(length: int, step: int) -> None:
    """Tiles no longer than a block, as kernels cut them: exact, and in part where keys end only."""
    for seed in range(4):
        blocks = np.random.default_rng(seed).random((-(-length // step),) * 2) < 0.4
        ends = np.zeros((len(blocks), len(blocks), 2), np.int32)  # a span for each block
        for row, column in zip(*np.nonzero(blocks), strict=True):
            ends[row, column] = column * step, min((column + 1) * step, length)
        seen = dense(ends, step, length, length)
        for block_m, block_n in ((16, 16), (step, 16), (16, step)):
            found = tile_lists(ends, step, length, length, block_m, block_n)
            assert_lists(found, seen, block_m, block_n, exact=True)
            edge = length // block_n if length % block_n else -1
            in_part = {
                column for row in range(-(-length // block_m)) for column in members(found.by_queries, row)[0]
            }
            assert in_part <= {edge}
            assert not walk_of(found.by_queries, step).split


def test_by_hand() -> None:
    # Row i sees keys i - 3 to i. Tiles of 2: rows 0 and 1 see key 0, then 0 and 1: tile 0 in part. Rows 4 and
    # 5 see 1 to 4, and 2 to 5: of all keys 2 to 4, which is tile 1 in full, tiles 0 and 2 in part.
    i = np.arange(6)
    ends = np.stack([np.maximum(i - 3, 0), i + 1], -1)[:, None].astype(np.int32)
    found = tile_lists(ends, 1, 6, 6, 2, 2)
    assert found.by_queries.offsets.tolist() == [0, 1, 3, 6]
    assert found.by_queries.partial.tolist() == [1, 1, 2]
    assert found.by_queries.members.tolist() == [0, 1, 0, 0, 2, 1]  # rows 2 and 3 see all of tile 0
    assert found.by_keys.offsets.tolist() == [0, 3, 5, 6]
    assert found.by_keys.partial.tolist() == [2, 1, 1]
    assert found.by_keys.members.tolist() == [0, 2, 1, 1, 2, 2]
    assert {part.dtype for one in found for part in one} == {np.dtype(np.int32)}
    walk = walk_of(found.by_queries, 1)
    assert (walk.split, walk.runs, walk.late) == (True, True, True)
    assert walk_of(found.by_keys, 1).late is False


def test_which_lists_are_runs() -> None:
    def of(offsets: list[int], members: list[int], partial: list[int]) -> TileList:
        return TileList(*(np.array(part, np.int32) for part in (offsets, members, partial)))

    assert walk_of(of([0, 4], [0, 5, 2, 3], [2]), 1) == (True, True, False)
    assert walk_of(of([0, 4], [0, 5, 2, 4], [2]), 1) == (True, False, False)
    # Two lists: the second starts where it likes.
    assert walk_of(of([0, 2, 5], [2, 3, 0, 1, 2], [0, 0]), 1) == (False, True, True)
    # 4 follows 3, but belongs to the next list, where 9 does not follow.
    assert walk_of(of([0, 1, 3], [3, 4, 9], [0, 0]), 1) == (False, False, True)
    # Nothing in full, and nothing at all.
    assert walk_of(of([0, 2], [0, 5], [2]), 1) == (True, True, False)
    assert walk_of(of([0, 0], [], [0]), 1) == (False, True, False)
    # With blocks the list is walked whole, and 5 is followed by 0.
    assert walk_of(of([0, 3], [5, 0, 1], [1]), 16) == (False, False, False)
    assert walk_of(of([0, 2], [4, 5], [1]), 16) == (False, True, False)
