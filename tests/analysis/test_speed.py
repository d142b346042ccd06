"""Verdicts on speed, with the interval of every case worked out beside it."""

import random
from collections.abc import Sequence

import pytest

from perfkit.analysis.speed import Ratio, compare_times, direction, speedup
from perfkit.model.median import median
from perfkit.record import Timing


def timing(samples: Sequence[float], hz: float | None = 1.5e9, *, interleaved: bool = True) -> Timing:
    return Timing(
        samples_s=list(samples), clock_hz=[hz] * len(samples), clock_source="probe" if hz else "none",
        median_s=median(samples), ci_low_s=None, ci_high_s=None, stop_reason="", converged=True, cold=True,
        graph=False, launch_hidden=True, dropped=0, warmup_s=0.0, interleaved=interleaved,
    )  # fmt: skip


def status(base: Timing, candidate: Timing) -> tuple[str, str]:
    verdict = compare_times(base, candidate)[1]
    return verdict.status, verdict.reason


def test_twice_as_fast() -> None:
    ratio, verdict = compare_times(timing([2e-3] * 10), timing([1e-3] * 10))
    assert ratio == Ratio(value=2.0, low=2.0, high=2.0)
    assert (verdict.status, verdict.reason) == ("faster", "intervals apart, in time and in cycles")
    assert status(timing([1e-3] * 10), timing([2e-3] * 10))[0] == "slower"


def test_drift_cancels_where_samples_are_pairs() -> None:
    """Both slow down by a tenth in the course of 20 rounds; in every round the second is 3 % slower."""
    drift = [1e-3 * (1 + 0.005 * i) for i in range(20)]
    slower = [1.03 * one for one in drift]
    pairs = speedup(drift, slower, paired=True)
    assert [pairs.value, pairs.low, pairs.high] == pytest.approx([1 / 1.03] * 3)
    unpaired = speedup(drift, slower, paired=False)
    # Rank 6 of 20: [1.025, 1.070] ms against 1.03 times that: from 1.025/1.1021 to 1.070/1.05575.
    assert unpaired.low == pytest.approx(1.025 / (1.03 * 1.070))
    assert unpaired.high == pytest.approx(1.070 / (1.03 * 1.025))


def test_medians_whose_intervals_overlap_decide_nothing() -> None:
    drift = [1e-3 * (1 + 0.005 * i) for i in range(20)]
    found = status(timing(drift), timing([1.03 * one for one in drift]))
    assert found == ("undecided", "the intervals of the two medians overlap")


def test_the_same_work_is_the_same() -> None:
    noise = random.Random(1)
    one = [1e-3 * (1 + 0.004 * noise.random()) for _ in range(200)]
    two = [1e-3 * (1 + 0.004 * noise.random()) for _ in range(200)]
    assert status(timing(one), timing(two))[0] == "same"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.011, 1.2, "faster"),  # all of it above 1.01
        (1.009, 1.2, "undecided"),  # reaches across 1.01
        (0.995, 1.009, "same"),
        (0.8, 0.989, "slower"),  # 1 / 1.01 = 0.990
        (0.8, 0.991, "undecided"),
        (0.5, 2.0, "undecided"),
    ],
)
def test_where_the_interval_lies(low: float, high: float, expected: str) -> None:
    assert direction(Ratio(value=1.0, low=low, high=high), 0.01) == expected


def test_a_clock_that_differed_is_no_slower_kernel() -> None:
    base, candidate = timing([1.00e-3] * 10, 1.50e9), timing([1.05e-3] * 10, 1.50e9 / 1.05)
    assert status(base, candidate) == (
        "undecided",
        "0.952 in time but 1.000 in cycles: the clocks differed",
    )
    hidden = timing([1.00e-3] * 10, 1.50e9 * 1.05)  # the same time at a higher clock: more cycles
    assert status(base, hidden) == (
        "same",
        "the interval 1.000 to 1.000 is within 1.0%; in cycles 0.952, so the clocks differed",
    )


def test_without_a_clock_time_alone_decides_and_says_so() -> None:
    found = status(timing([2e-3] * 10, None), timing([1e-3] * 10, None))
    assert found == ("faster", "intervals apart; the clock of the samples is not known")


def test_too_few_samples_decide_nothing() -> None:
    assert status(timing([2e-3] * 5), timing([1e-3] * 5)) == ("undecided", "fewer than 6 samples")


def test_timings_of_different_records_go_by_the_ends_of_their_intervals() -> None:
    """Ten samples, rank 2: [1.01, 1.08] ms against 2.0 ms sharp: 2.0 / 1.08 to 2.0 / 1.01."""
    wide = [1e-3 * (1 + 0.01 * i) for i in range(10)]
    ratio, verdict = compare_times(timing([2e-3] * 12, interleaved=False), timing(wide, interleaved=False))
    assert (ratio.low, ratio.high) == (pytest.approx(2 / 1.08), pytest.approx(2 / 1.01))
    assert verdict.status == "faster"


def test_identical_noise_is_hardly_ever_called_different() -> None:
    """A hundred A/A comparisons, 2 % noise that drifts by 5 %: none is faster or slower; 3 % is seen."""
    noise = random.Random(7)
    wrong, missed = 0, 0
    for _ in range(100):
        drift = [1 + 0.05 * i / 200 for i in range(200)]
        one, two = ([1e-3 * d * (1 + 0.02 * noise.random()) for d in drift] for _ in range(2))
        wrong += status(timing(one), timing(two))[0] in ("faster", "slower")
        flat = [1e-3 * (1 + 0.02 * noise.random()) for _ in range(200)]
        slow = [1.03e-3 * (1 + 0.02 * noise.random()) for _ in range(200)]
        missed += status(timing(flat), timing(slow))[0] != "slower"
    assert (wrong, missed) == (0, 0)
