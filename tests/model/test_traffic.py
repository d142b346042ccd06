"""Traffic is exact integers that add."""

from perfkit.model.traffic import Traffic

A = Traffic(read_bytes=2 * 1024 * 1024, write_bytes=1024 * 1024)  # 2 reads + 1 write


def test_total() -> None:
    assert A.total_bytes == 1024 * 1024 * 3  # 2 reads + 1 write


def test_sum_and_product_keep_the_sides_apart() -> None:
    assert A + Traffic(read_bytes=1, write_bytes=2) == Traffic(read_bytes=2097153, write_bytes=1048578)
    assert A * 3 == A + A + A
    assert (A * 0).total_bytes == 0


def test_exact_beyond_what_a_float_holds() -> None:
    odd = Traffic(read_bytes=2**53 + 1, write_bytes=0)
    assert (odd * 3).total_bytes == 3 * 2**53 + 3
    assert isinstance((odd + odd).total_bytes, int)
