"""The two regimes of attention against numbers worked out by hand."""

import math

import pytest

from perfkit.analysis.regimes import MEMORIES, flash_elements, regimes, square_elements
from perfkit.errors import UsageError
from perfkit.ops.attention_io import flash_ledger
from perfkit.ops.attention_square import square_ledger, square_tiled
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, total


def test_a_small_memory_by_hand() -> None:
    """N 4096 = 2^12, d 256 = 2^8, M 256 = 2^8: tiles of 16 x 16, and half a row of Q and O."""
    first = regimes(4096, 256).table[0]
    assert (first.memory, first.side, first.rows) == (256, 16.0, 0.5)
    assert first.flash == 2**34 + 2**21  # 4 x 2^24 x 2^16 / 2^8, and 2 N d
    assert first.square == 2**30 + 2**25 + 2**20  # 4 x 2^24 x 2^8 / 2^4, 2 N^2, N d
    assert first.lower == "square"
    assert first.bounds.flash == 2**32  # N^2 d^2 / M
    assert first.bounds.square == first.bounds.least == 2**28  # N^2 d / sqrt(M)
    assert first.bounds.compulsory == 2**22  # 4 N d


def test_a_large_memory_by_hand() -> None:
    """M 262144 = 2^18: 512 rows of Q and O for `flash`, and a square tile of 512, wider than d."""
    last = regimes(4096, 256).table[-1]
    assert (last.memory, last.rows, last.side) == (262144, 512.0, 512.0)
    assert last.flash == 2**24 + 2**21  # 8 passes over K and V of 2^20 each
    # Q, K and V 8 times; S written, read, and read once more; O.
    assert last.square == 3 * 8 * 2**20 + 3 * 2**24 + 2**20
    assert last.lower == "flash"
    assert last.bounds.least == max(2**22, 2**24 * 2**16 / 2**18) == 2**22


def test_the_table_has_every_power_of_two() -> None:
    found = regimes(8192, 128)
    assert [one.memory for one in found.table] == list(MEMORIES)
    assert MEMORIES == (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
    assert found.leading == 128**2


@pytest.mark.parametrize("head_dim", [16, 64, 256, 1024])
@pytest.mark.parametrize("length", [1024, 4096, 1 << 20])
def test_they_meet_where_both_move_the_same(length: int, head_dim: int) -> None:
    found = regimes(length, head_dim)
    assert flash_elements(length, head_dim, found.meet) == pytest.approx(
        square_elements(length, head_dim, found.meet), rel=1e-12
    )
    for one in found.table:
        assert one.lower == ("square" if one.memory < found.meet else "flash")


def test_where_they_meet_by_hand() -> None:
    """For N >> d 4 x^2 - 4 x - 2 = 0 with x = d / sqrt(M): x = (1 + sqrt 3) / 2, and M = 0.536 d^2."""
    assert regimes(1 << 26, 64).meet == pytest.approx(64**2 / ((1 + math.sqrt(3)) / 2) ** 2, rel=1e-6)
    assert 1 / ((1 + math.sqrt(3)) / 2) ** 2 == pytest.approx(0.536, abs=5e-4)
    # N = d: 4 x^2 - 4 x - 1 = 0, x = (1 + sqrt 2) / 2, M = d^2 / 1.457.
    assert regimes(256, 256).meet == pytest.approx(256**2 / 1.457, rel=1e-3)


def test_without_the_passes_over_scores_they_meet_at_d_squared() -> None:
    """4 N^2 d^2 / M = 4 N^2 d / sqrt(M) at M = d^2, as Theorem 3.1 says."""
    n, d = 4096, 64
    flash = flash_elements(n, d, d**2) - 2 * n * d
    square = square_elements(n, d, d**2) - 2 * n**2 - n * d
    assert flash == square == 4 * n**2


@pytest.mark.parametrize("head_dim", [32, 128, 1024])
@pytest.mark.parametrize("length", [1024, 65536])
def test_more_memory_never_moves_more_and_nothing_is_below_the_bound(length: int, head_dim: int) -> None:
    table = regimes(length, head_dim).table
    for moved in ([one.flash for one in table], [one.square for one in table]):
        assert moved == sorted(moved, reverse=True)
    for one in table:
        assert min(one.flash, one.square) >= one.bounds.least


@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_the_formulas_are_the_ledgers(side: int) -> None:
    """N 4096, d 256, bf16: elements of the matrices that the kernels of `square` and `flash` move."""
    n, d = 4096, 256
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=n, seq_k=n, head_dim=d)
    tile = tuple(KernelUse(kernel=name, block_m=side, block_n=side) for name in square_tiled(w))
    matrices = total(one for one in square_ledger(w, tile) if one.tensor not in ("l", "m"))
    assert matrices.total_bytes / 2 == square_elements(n, d, side**2)
    rows = (KernelUse(kernel="flash_forward", block_m=side, block_n=64),)
    matrices = total(one for one in flash_ledger(w, rows) if one.tensor != "LSE")
    assert matrices.total_bytes / 2 == flash_elements(n, d, 2 * side * d)


def test_short_sequences_have_no_regimes() -> None:
    with pytest.raises(UsageError, match="N 64 is below d 128"):
        regimes(64, 128)
