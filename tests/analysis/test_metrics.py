"""Derived numbers by hand. At 1 GHz: 1e14 FLOP/s, 1.6e12 exp/s, DRAM 1e12 B/s, L2 4e12 B/s."""

from collections.abc import Callable
from typing import Any

import pytest

from perfkit.analysis.metrics import METRICS, metric_number
from perfkit.analysis.placement import place
from perfkit.analysis.study import rows, study
from perfkit.model.units import UNITS
from perfkit.record import BY_TAG, Number, Record, Run

MakeRun = Callable[..., Run]
MakeRecord = Callable[..., Record]

MEASURED: dict[str, float] = {
    "time": 0.04, "clock": 5e8, "flops_convention": 1e12, "flops_issued": 1.1e12, "flops_tensor": 1.25e12,
    "exps": 8e9, "dram_read": 6e9, "dram_write": 4e9, "l2_read": 6e10, "l2_write": 4e10,
}  # fmt: skip


@pytest.fixture
def metrics(make_run: MakeRun, make_record: MakeRecord) -> Callable[..., dict[str, Number]]:
    def make(**fields: Any) -> dict[str, Number]:
        run = make_run(**fields)
        placement = place(make_record(run), run)
        return {metric.tag: metric_number(metric, placement) for metric in METRICS}

    return make


Metrics = Callable[..., dict[str, Number]]


@pytest.mark.parametrize(
    ("tag", "value", "unit"),
    [
        ("achieved", 2.5e13, "FLOP/s"),  # 1e12 / 0.04
        ("intensity_dram", 100, "FLOP/B"),  # 1e12 / 1e10
        ("intensity_l2", 10, "FLOP/B"),  # 1e12 / 1e11
        ("dram_rate", 2.5e11, "B/s"),  # 1e10 / 0.04
        ("l2_rate", 2.5e12, "B/s"),  # 1e11 / 0.04
        ("attainable_datasheet", 4e13, "FLOP/s"),  # L2: 10 x 4e12; DRAM: 100 x 1e12; compute: 1e14
        ("attainable_clock", 2e13, "FLOP/s"),  # at half the clock L2 has 2e12 B/s
        ("efficiency_datasheet", 0.625, "1"),  # 2.5e13 / 4e13
        ("efficiency_clock", 1.25, "1"),  # 2.5e13 / 2e13: INVALID, and shown as what it is
        ("exp_ceiling", 1e12 / 0.03, "FLOP/s"),  # 20 ms of FLOPs at 5e13, then 10 ms of exps at 0.8e12
        ("efficiency_exp", 0.75, "1"),  # 0.03 / 0.04
        ("flops_overhead", 1.25, "1"),  # counted before predicted
    ],
)
def test_by_hand(metrics: Metrics, tag: str, value: float, unit: str) -> None:
    found = metrics(**MEASURED)[tag]
    assert found.value == pytest.approx(value, rel=1e-12)
    assert (found.unit, found.provenance, found.reason) == (unit, "measured", None)


def test_tile_height(metrics: Metrics) -> None:
    # 1024 x 64 in bf16: Q is 131072 B, K and V 262144 B; 8 passes over them
    assert metrics(l2_read=131072 + 8 * 262144, flops_convention=1e12, time=1)["tile_height"].value == 128


def test_predicted_flops_where_none_were_counted(metrics: Metrics) -> None:
    found = metrics(**(MEASURED | {"flops_tensor": "off"}))
    assert found["flops_overhead"].value == pytest.approx(1.1)


def test_absent_numbers_say_why(metrics: Metrics) -> None:
    found = metrics(flops_convention=1e12)
    assert found["achieved"] == Number(
        value=None, unit="FLOP/s", provenance="unavailable", reason="no time was measured"
    )
    timed = metrics(flops_convention=1e12, time=1)
    assert timed["intensity_l2"] == Number(
        value=None, unit="FLOP/B", provenance="unavailable", reason="an input of it is unavailable"
    )


def test_nothing_at_all_is_computed_from_nothing(metrics: Metrics) -> None:
    assert {found.value for found in metrics(status="refused").values()} == {None}


def test_modelled_bytes_make_modelled_numbers(metrics: Metrics) -> None:
    found = metrics(
        flops_convention=1e12, time=0.04, dram_read_modelled=1e10, dram_write_modelled=0, clock=1e9
    )
    assert found["intensity_dram"].provenance == "modelled"
    assert found["efficiency_clock"].provenance == "modelled"


def test_the_cache_follows_from_the_workload_whatever_was_measured(metrics: Metrics) -> None:
    w = {"batch": 2, "heads": 12, "kv_heads": 3, "seq_q": 1, "seq_k": 5000, "head_dim": 64}
    found = metrics(w=w, **MEASURED)
    assert found["kv_cache"] == Number(
        value=2 * 2 * 3 * 5000 * 64 * 2, unit="B", provenance="modelled"
    )  # K and V x batch x K/V heads x tokens x d x bf16
    assert found["kv_ratio"] == Number(value=4, unit="1", provenance="modelled")  # 12 / 3


def test_what_needs_no_bytes_is_as_measured_as_its_time(metrics: Metrics) -> None:
    found = metrics(flops_convention=1e12, time=0.04, dram_read_modelled=1e10, dram_write_modelled=0)
    assert found["achieved"].provenance == "measured"
    assert found["efficiency_clock"].provenance == "modelled"


def test_rows_are_explicit() -> None:
    tags = [metric.tag for metric in METRICS]
    assert len(tags) == len(set(tags))
    assert not set(tags) & set(BY_TAG)  # a derived number never hides a recorded one
    for metric in METRICS:
        assert metric.hint in UNITS
        assert metric.label
        assert metric.description


def test_rows_of_a_study_are_recorded_then_derived(make_run: MakeRun, make_record: MakeRecord) -> None:
    run = make_run(**MEASURED)
    table = rows(study(make_record(run)))
    assert [row["tag"] for row in table] == [*MEASURED, *(metric.tag for metric in METRICS)]
    assert len({tuple(row) for row in table}) == 1  # one set of columns, in one order
