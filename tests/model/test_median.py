"""Expected values are worked out by hand beside each test."""

import math

import pytest

from perfkit.model.median import (
    Interval,
    dispersion,
    interval_rank,
    median,
    median_interval,
    relative_half_width,
)


def test_median_of_odd_even_and_no_samples() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    with pytest.raises(ValueError, match="no samples"):
        median([])


@pytest.mark.parametrize(
    ("count", "rank"),
    [
        (0, 0),
        (5, 0),  # 2 * 1/32 = 6.25 % outside: too much
        (6, 1),  # 2 * 1/64 = 3.1 %
        (8, 1),  # k=2: 2 * (1+8)/256 = 7.0 %
        (9, 2),  # 2 * (1+9)/512 = 3.9 %
        (10, 2),  # 2 * (1+10)/1024 = 2.1 %; k=3: 2 * 56/1024 = 10.9 %
        (20, 6),  # 2 * 21700/2^20 = 4.1 % (1+20+190+1140+4845+15504)
        (100, 40),  # the textbook pair [40, 61]
    ],
)
def test_interval_rank_by_binomial_tails(count: int, rank: int) -> None:
    assert interval_rank(count) == rank


def test_interval_rank_normal_limit_continues_the_exact_one() -> None:
    assert interval_rank(1000) == 469
    assert interval_rank(1001) == 469  # (1001 - 1.959964 * 31.639) / 2 = 469.49
    assert interval_rank(10_000) == 4902  # 5000 - 0.98 * 100


def test_interval_takes_its_ends_from_the_samples() -> None:
    samples = [10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0]
    assert median_interval(samples) == Interval(low=2.0, high=9.0)  # rank 2 of 10
    assert relative_half_width(samples) == pytest.approx((9 - 2) / (2 * 5.5))
    assert median_interval(samples[:5]) is None
    assert relative_half_width(samples[:5]) is None
    assert relative_half_width([]) is None
    assert relative_half_width([0.0] * 10) is None


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    # A fixed linear congruential sequence, uniform on [0, 1): 400 runs of 20; exact coverage is 95.9 %.
    state, hits = 12345, 0
    for _ in range(400):
        run = []
        for _ in range(20):
            state = (1103515245 * state + 12345) % 2**31
            run.append(state / 2**31)
        interval = median_interval(run)
        assert interval is not None
        hits += interval.low <= 0.5 <= interval.high
    assert 0.93 <= hits / 400 <= 0.985


def test_dispersion_is_the_interquartile_range_over_the_median() -> None:
    # 8 samples: quarter = 2, so the 3rd and the 6th: (6 - 3) / 4.5
    assert dispersion([1.0, 2, 3, 4, 5, 6, 7, 8]) == pytest.approx(3 / 4.5)
    assert dispersion([2.0] * 8) == 0.0
    assert dispersion([0.0] * 8) == 0.0


def test_more_samples_never_widen_the_ranks() -> None:
    shares = [interval_rank(count) / count for count in (6, 20, 100, 1000, 5000, 100_000)]
    assert shares == sorted(shares)
    assert math.isclose(shares[-1], 0.5, abs_tol=0.01)
