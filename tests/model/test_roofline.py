"""Floors and roofs by hand."""

import pytest

from perfkit.model.catalogue import load, names
from perfkit.model.roofline import LAUNCH_S, Floor, attainable, floors


def test_attainable_is_the_lower_roof() -> None:
    assert attainable(10, 1e15, 4e12) == 4e13  # 10 FLOP/B x 4 TB/s
    assert attainable(1000, 1e15, 4e12) == 1e15  # 4e15 > 1e15: flat
    assert attainable(0, 1e15, 4e12) == 0


@pytest.mark.parametrize("name", names())
def test_roofs_meet_at_the_ridge(name: str) -> None:
    device = load(name)
    for peak in device.peaks:
        bandwidth = device.level("dram").bandwidth()
        assert bandwidth is not None
        ridge = peak.flop_per_s / bandwidth
        assert attainable(ridge, peak.flop_per_s, bandwidth) == pytest.approx(peak.flop_per_s, rel=1e-15)
        assert attainable(ridge * 0.5, peak.flop_per_s, bandwidth) == pytest.approx(peak.flop_per_s / 2)
        assert attainable(ridge * 2.0, peak.flop_per_s, bandwidth) == peak.flop_per_s


def test_more_intensity_never_lowers_what_is_attainable() -> None:
    reached = [attainable(step / 7, 989.4e12, 4.8e12) for step in range(5000)]
    assert reached == sorted(reached)
    assert max(reached) <= 989.4e12


def test_floors_longest_first() -> None:
    found = floors({"compute": (6e14, 1e14), "exp": (1e12, 4e12), "DRAM": (8e12, 1e12)}, launches=3)
    assert found == (
        Floor(resource="DRAM", time_s=8.0),  # 8e12 B / 1e12 B/s
        Floor(resource="compute", time_s=6.0),  # 6e14 FLOP / 1e14 FLOP/s
        Floor(resource="exp", time_s=0.25),  # 1e12 / 4e12
        Floor(resource="overhead", time_s=3 * 2.5e-6),  # 3 launches
    )


def test_an_unknown_rate_is_no_floor() -> None:
    assert floors({"compute": (1, None), "DRAM": (1, None)}, launches=1) == (
        Floor(resource="overhead", time_s=LAUNCH_S),
    )


def test_tiny_work_is_bound_by_launching() -> None:
    assert floors({"compute": (1e3, 1e14), "DRAM": (1e3, 1e12)}, launches=1)[0].resource == "overhead"


def test_no_launches_cost_nothing() -> None:
    assert floors({}, launches=0) == (Floor(resource="overhead", time_s=0.0),)
