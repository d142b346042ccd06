"""Expected values are worked out by hand beside each test."""

import math

import pytest

from perfkit.measure.statistics import (
    Interval,
    Stop,
    StoppingRule,
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


def test_rule_goes_on_until_both_minima_are_met() -> None:
    rule = StoppingRule()
    assert rule.check([], 0.0) is None
    assert rule.check([0.1] * 9, 1.0) is None  # 0.9 s, but 9 samples
    assert rule.check([0.01] * 49, 1.0) is None  # 49 samples, but 0.49 s
    assert rule.check([0.01] * 50, 1.0) == Stop(reason="median known to 0.00% (below 0.50%)", converged=True)


def test_rule_waits_for_a_narrow_interval() -> None:
    wide = [0.1 * (1 + 0.01 * step) for step in range(10)]  # rank 2: (1.08 - 1.01) / (2 * 1.045) = 3.35 %
    assert StoppingRule().check(wide, 1.0) is None
    narrow = [0.1 * (1 + 0.001 * step) for step in range(10)]  # (1.008 - 1.001) / (2 * 1.0045) = 0.348 %
    assert StoppingRule().check(narrow, 1.0) == Stop(
        reason="median known to 0.35% (below 0.50%)", converged=True
    )


def test_rule_accepts_a_noise_plateau() -> None:
    noisy = [0.1, 0.2, 0.12, 0.18] * 16  # 64 samples: the first 32 are as noisy as all of them
    stop = StoppingRule().check(noisy, 1.0)
    # Sorted: 16 each of .1 .12 .18 .2. Rank of 64 is 24, so [.12, .18] round .15: 0.06 / 0.30 = 20 %.
    assert stop == Stop(reason="noise plateau: median known to 20.00%", converged=True)
    assert StoppingRule().check(noisy[:60], 1.0) is None  # 60 - 32 = 28 samples before the window: too few


@pytest.mark.parametrize("drift", [1.0, -1.0])
def test_a_drift_is_no_plateau(drift: float) -> None:
    samples = [0.2 + drift * 0.001 * step for step in range(100)]
    assert not StoppingRule().on_plateau(samples)
    assert StoppingRule(half_width=1e-4).check(samples, 1.0) is None


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "time limit of 5 s: 0 of 10 samples"),
        ([1.0] * 4, "time limit of 5 s: 4 of 10 samples"),
        ([0.001] * 100, "time limit of 5 s: 0.1 s of 0.5 s sample time"),
        (
            [0.1 * (1 + 0.01 * step) for step in range(10)],
            "time limit of 5 s: median known to 3.35% only, not 0.50%, and no noise plateau",
        ),
    ],
)
def test_time_limit_names_the_unmet_condition(samples: list[float], reason: str) -> None:
    assert StoppingRule().check(samples, 5.0) == Stop(reason=reason, converged=False)


def test_more_samples_never_widen_the_ranks() -> None:
    shares = [interval_rank(count) / count for count in (6, 20, 100, 1000, 5000, 100_000)]
    assert shares == sorted(shares)
    assert math.isclose(shares[-1], 0.5, abs_tol=0.01)
