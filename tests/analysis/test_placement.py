"""Points, floors, bound and the INVALID guard, on a device whose roofs are round numbers.

At 1 GHz: 1e14 FLOP/s, 1.6e12 exp/s, DRAM 1e12 B/s (ridge 100 FLOP/B), L2 4e12 B/s (ridge 25 FLOP/B).
"""

from collections.abc import Callable
from typing import Any

import pytest

from perfkit.analysis.placement import Placement, Point, Roof, place, roof_at
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load, names
from perfkit.model.device import DeviceProfile
from perfkit.model.roofline import Floor
from perfkit.ops import OPS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Run

MakeRun = Callable[..., Run]
MakeRecord = Callable[..., Record]
#: 1e12 FLOP take 10 ms at 1e14 FLOP/s.
FLOPS = {"flops_convention": 1e12, "flops_issued": 1e12}


@pytest.fixture
def placed(make_run: MakeRun, make_record: MakeRecord) -> Callable[..., Placement]:
    def make(**fields: Any) -> Placement:
        run = make_run(**fields)
        return place(make_record(run), run)

    return make


Placed = Callable[..., Placement]


def test_roof_at_the_data_sheet(device: DeviceProfile) -> None:
    assert roof_at(device, "bf16", None) == Roof(
        source="datasheet",
        clock_hz=1e9,
        compute=1e14,
        exp_rate=1.6e12,  # 100 SMs x 16 x 1 GHz
        bandwidth={"DRAM": 1e12, "L2": 4e12},
    )


def test_a_lower_clock_lowers_every_roof_but_dram(device: DeviceProfile) -> None:
    assert roof_at(device, "bf16", 5e8) == Roof(
        source="run clock", clock_hz=5e8, compute=5e13, exp_rate=0.8e12, bandwidth={"DRAM": 1e12, "L2": 2e12}
    )


def test_fp32_has_the_vector_roof_and_an_unknown_dtype_none(device: DeviceProfile) -> None:
    fp32 = roof_at(device, "fp32", None)
    assert fp32 is not None
    assert fp32.compute == 1e13
    assert roof_at(device, "fp16", None) is None


def test_points(placed: Placed) -> None:
    found = placed(**FLOPS, dram_read=6e9, dram_write=4e9, l2_read=3e10, l2_write=1e10)
    assert found.points == (
        Point(level="DRAM", bytes=1e10, intensity=100, provenance="measured", upper=False),
        Point(level="L2", bytes=4e10, intensity=25, provenance="measured", upper=False),
    )
    assert found.point("L2") is found.points[1]


def test_points_take_measured_before_modelled_before_compulsory(placed: Placed) -> None:
    bytes_: dict[str, Any] = {
        "dram_read_compulsory": 1e9, "dram_write_compulsory": 1e9,
        "dram_read_modelled": 2e9, "dram_write_modelled": 2e9, "dram_read": 4e9, "dram_write": 4e9,
    }  # fmt: skip
    full = placed(**FLOPS, **bytes_).point("DRAM")
    assert full == Point(level="DRAM", bytes=8e9, intensity=125, provenance="measured", upper=False)
    # One side of a measurement is no measurement.
    half = placed(**FLOPS, **{**bytes_, "dram_write": "not counted"}).point("DRAM")
    assert half == Point(level="DRAM", bytes=4e9, intensity=250, provenance="modelled", upper=False)
    least = placed(**FLOPS, dram_read_compulsory=1e9, dram_write_compulsory=1e9).point("DRAM")
    assert least == Point(level="DRAM", bytes=2e9, intensity=500, provenance="modelled", upper=True)


def test_no_bytes_no_point(placed: Placed) -> None:
    assert placed(**FLOPS).points == ()
    assert placed(**FLOPS, dram_read=0, dram_write=0).points == ()
    assert placed(dram_read=1e9, dram_write=1e9).points == ()  # no FLOPs either


@pytest.mark.parametrize(
    ("fields", "bound", "least_s"),
    [
        ({"exps": 1e9, "dram_read": 5e9, "dram_write": 0}, "compute", 0.01),
        ({"exps": 1e9, "dram_read": 2e10, "dram_write": 1e10}, "DRAM", 0.03),  # 3e10 B / 1e12 B/s
        ({"l2_read": 1e11, "l2_write": 2e10}, "L2", 0.03),  # 1.2e11 B / 4e12 B/s
        ({"exps": 3.2e10}, "exp", 0.02),  # 3.2e10 / 1.6e12
        ({"launches": 10_000}, "overhead", 0.025),  # 1e4 x 2.5 us
    ],
)
def test_bound_is_the_longest_floor(
    placed: Placed, fields: dict[str, float], bound: str, least_s: float
) -> None:
    found = placed(**FLOPS, **fields)
    assert found.bound == bound
    assert found.least_s == pytest.approx(least_s)


def test_compute_floor_counts_issued_flops(placed: Placed) -> None:
    found = placed(flops_convention=1e12, flops_issued=2e12)
    assert found.floors[0] == Floor(resource="compute", time_s=0.02)


def test_floors_are_at_the_clock_of_the_run(placed: Placed) -> None:
    found = placed(**FLOPS, clock=5e8)
    assert found.floors[0] == Floor(resource="compute", time_s=0.02)  # 1e12 / 5e13
    assert (found.roof and found.roof.source, found.datasheet and found.datasheet.source) == (
        "run clock",
        "datasheet",
    )


def test_attainable_is_the_lowest_roof_over_all_levels(placed: Placed) -> None:
    found = placed(**FLOPS, dram_read=1e10, dram_write=1e10, l2_read=2e11, l2_write=0)
    # DRAM: 50 FLOP/B x 1e12 = 5e13. L2: 5 FLOP/B x 4e12 = 2e13.
    assert found.attainable(found.datasheet) == pytest.approx(2e13)
    assert found.attainable(None) is None


def test_without_an_intensity_nothing_is_attainable(placed: Placed) -> None:
    found = placed(**FLOPS)
    assert found.attainable(found.datasheet) is None


def test_achieved(placed: Placed) -> None:
    assert placed(**FLOPS, time=0.02).achieved == 5e13
    assert placed(**FLOPS).achieved is None


# The guard.


def test_a_time_below_the_compute_floor_is_invalid(placed: Placed) -> None:
    assert placed(**FLOPS, time=0.005).invalid == (
        "2.00x above the compute roof: the kernel did not do the work, FLOPs are counted wrongly, "
        "or the clock was read wrongly"
    )


def test_a_time_below_measured_dram_is_invalid(placed: Placed) -> None:
    assert placed(**FLOPS, time=0.02, dram_read=5e10, dram_write=0).invalid == (
        "2.50x above the DRAM roof: reads were served by L2 (warm cache), or the profile is of another card"
    )


def test_a_time_below_measured_l2_is_invalid(placed: Placed) -> None:
    assert placed(**FLOPS, time=0.02, l2_read=2e11, l2_write=0).invalid == (
        "2.50x above the L2 roof: bytes were counted that never crossed (L1 hits), "
        "or the profile's L2 rate is too low"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"dram_read_modelled": 5e10, "dram_write_modelled": 0},
        {"dram_read_compulsory": 5e10, "dram_write_compulsory": 0},
        {"l2_read_modelled": 5e11, "l2_write_modelled": 0},
        {"exps": 1e12},  # other units may compute exp
        {"launches": 100_000},  # a graph may launch faster
    ],
)
def test_what_is_only_modelled_proves_nothing(placed: Placed, fields: dict[str, float]) -> None:
    found = placed(**FLOPS, time=0.02, **fields)
    assert found.least_s is not None
    assert found.least_s > 0.02
    assert found.invalid is None


def test_one_percent_is_the_error_of_clocks(placed: Placed) -> None:
    assert placed(**FLOPS, time=0.00995).invalid is None
    assert placed(**FLOPS, time=0.00985).invalid is not None


def test_without_a_time_nothing_is_impossible(placed: Placed) -> None:
    assert placed(**FLOPS, dram_read=1e15, dram_write=0).invalid is None


def test_without_a_roof_or_flops_there_are_no_floors(placed: Placed) -> None:
    assert placed(**FLOPS, time=1e-9, w={"dtype": "fp16"}).floors == ()
    assert placed(time=1.0).floors == ()
    assert placed(time=1.0).bound is None


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd-bwd"])
def test_attainable_never_exceeds_the_peak_on_any_device(name: str, pass_: str) -> None:
    op = OPS[0]
    for dtype in ("fp16", "fp32"):
        for n in (113, 4096):
            w = AttentionWorkload(seq_q=n, seq_k=n, dtype=dtype, pass_=pass_)  # type: ignore[arg-type]
            rows = [row for row in op.implementations if row.io]
            record = run_session(op, [w], rows, FakeBackend(load(name)), lambda _impl, _what: None)
            for finding in study(record).findings:
                at = finding.placement
                for roof in (at.datasheet, at.roof):
                    reached = at.attainable(roof)
                    if roof is not None and reached is not None:
                        assert 0 < reached <= roof.compute
