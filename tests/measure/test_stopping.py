"""Expected values are worked out by hand beside each test."""

import pytest

from perfkit.measure.stopping import Stop, StoppingRule


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


def test_works_that_share_the_time_are_held_to_their_mean() -> None:
    short = [0.001] * 10  # 0.01 s of its own, 0.6 s on average with a long one beside it
    assert StoppingRule().check(short, 1.0) is None
    assert StoppingRule().check(short, 1.0, 0.6) == Stop(
        reason="median known to 0.00% (below 0.50%)", converged=True
    )
