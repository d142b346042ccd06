"""Power laws through points whose exponent is known."""

import pytest

from perfkit.model.fit import fit_power


def test_a_power_law_is_found_exactly() -> None:
    found = fit_power([1.0, 2.0, 4.0, 8.0], [3.0, 12.0, 48.0, 192.0])  # 3 x^2
    assert found.exponent == pytest.approx(2.0)
    assert found.factor == pytest.approx(3.0)
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0))


def test_two_points_have_no_interval() -> None:
    found = fit_power([1.0, 10.0], [5.0, 0.5])
    assert found.exponent == pytest.approx(-1.0)
    assert (found.low, found.high) == (None, None)


def test_the_interval_is_student_s() -> None:
    """In powers of two: x 0, 1, 2; y 0, 1, 3. Slope 3/2; rests 1/6, -1/3, 1/6: their squares sum to 1/6.

    Half width: t(1) sqrt((1/6) / 1 / 2) = 12.706 * 0.28868 = 3.668, the same in any base of logarithm.
    """
    found = fit_power([1.0, 2.0, 4.0], [1.0, 2.0, 8.0])
    assert found.exponent == pytest.approx(1.5)
    assert found.high is not None
    assert found.high - found.exponent == pytest.approx(12.706 * (1 / 12) ** 0.5)


@pytest.mark.parametrize(
    ("xs", "ys"),
    [
        ([1.0], [1.0]),
        ([1.0, 1.0], [1.0, 2.0]),
        ([1.0, 2.0], [1.0]),
        ([0.0, 1.0], [1.0, 1.0]),
        ([1.0, 2.0], [0.0, 1.0]),
    ],
)
def test_what_has_no_power_law(xs: list[float], ys: list[float]) -> None:
    with pytest.raises(ValueError, match="a power law needs"):
        fit_power(xs, ys)
