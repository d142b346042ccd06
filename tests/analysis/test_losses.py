"""Each part of a time by hand, and the sum. At 1 GHz: 1e14 FLOP/s, 1.6e12 exp/s, DRAM 1e12 B/s."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from perfkit.analysis.losses import losses
from perfkit.analysis.placement import place
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load as load_profile
from perfkit.model.catalogue import names
from perfkit.ops import OPS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Run

PARTS = ("ideal", "clock, power", "extra FLOPs", "memory", "exp", "rest")


@pytest.fixture
def parts(
    make_run: Callable[..., Run], make_record: Callable[..., Record]
) -> Callable[..., dict[str, float]]:
    """The losses of a run with these numbers, by name; they must add up."""

    def make(**numbers: Any) -> dict[str, float]:
        run = make_run(**numbers)
        found = losses(place(make_record(run), run))
        if found:
            assert tuple(loss.name for loss in found) == PARTS
            total = math.fsum(loss.time_s for loss in found)
            assert total == pytest.approx(numbers["time"], rel=1e-14)
        return {loss.name: loss.time_s for loss in found}

    return make


Parts = Callable[..., dict[str, float]]


def near(**expected: float) -> Any:
    named = dict(zip(PARTS, [0.0] * 6, strict=True)) | {k.replace("_", " "): v for k, v in expected.items()}
    named["clock, power"] = named.pop("clock", 0.0)
    return pytest.approx(named, abs=1e-15)


def test_only_the_ideal(parts: Parts) -> None:
    assert parts(flops_convention=1e12, time=0.01) == near(ideal=0.01)  # 1e12 / 1e14


def test_a_lower_clock(parts: Parts) -> None:
    # 1e12 / 5e13 = 20 ms at 500 MHz, 10 ms at the data sheet's 1 GHz
    assert parts(flops_convention=1e12, clock=5e8, time=0.02) == near(ideal=0.01, clock=0.01)


def test_a_higher_clock_is_a_gain(parts: Parts) -> None:
    assert parts(flops_convention=1e12, clock=2e9, time=0.005) == near(ideal=0.01, clock=-0.005)


def test_extra_flops(parts: Parts) -> None:
    assert parts(flops_convention=1e12, flops_issued=1.5e12, time=0.015) == near(
        ideal=0.01, extra_FLOPs=0.005
    )


def test_counted_flops_before_predicted_ones(parts: Parts) -> None:
    found = parts(flops_convention=1e12, flops_issued=1.1e12, flops_tensor=1.5e12, time=0.02)
    assert found == near(ideal=0.01, extra_FLOPs=0.005, rest=0.005)


def test_fewer_flops_than_the_convention_are_no_negative_part(parts: Parts) -> None:
    # The backward of standard attention needs 4 products where the convention counts 5.
    found = parts(flops_convention=1e12, flops_issued=0.8e12, time=0.02)
    assert found == near(ideal=0.01, rest=0.01)


def test_memory_beyond_the_flops(parts: Parts) -> None:
    # 3e10 B / 1e12 B/s = 30 ms, 10 of them beside the FLOPs
    found = parts(flops_convention=1e12, dram_read=2e10, dram_write=1e10, time=0.035)
    assert found == near(ideal=0.01, memory=0.02, rest=0.005)


def test_memory_that_the_flops_hide(parts: Parts) -> None:
    found = parts(flops_convention=1e12, dram_read=5e9, dram_write=0, time=0.02)
    assert found == near(ideal=0.01, rest=0.01)


def test_the_slowest_level_counts(parts: Parts) -> None:
    # L2: 8e10 B / 4e12 B/s = 20 ms; DRAM: 15 ms
    found = parts(flops_convention=1e12, dram_read=1.5e10, dram_write=0, l2_read=8e10, l2_write=0, time=0.02)
    assert found == near(ideal=0.01, memory=0.01)


def test_modelled_memory_takes_no_more_than_there_is(parts: Parts) -> None:
    found = parts(flops_convention=1e12, dram_read_modelled=1e11, dram_write_modelled=0, time=0.02)
    assert found == near(ideal=0.01, memory=0.01)


def test_exp_in_what_is_left(parts: Parts) -> None:
    # 8e9 / 1.6e12 = 5 ms
    assert parts(flops_convention=1e12, exps=8e9, time=0.02) == near(ideal=0.01, exp=0.005, rest=0.005)
    # 16e9 / 1.6e12 = 10 ms, of which 7 were hidden
    assert parts(flops_convention=1e12, exps=16e9, time=0.013) == near(ideal=0.01, exp=0.003)


def test_everything_at_once(parts: Parts) -> None:
    found = parts(
        flops_convention=1e12,
        flops_tensor=1.5e12,
        clock=5e8,
        dram_read=4e10,
        dram_write=0,
        exps=8e9,
        time=0.06,
    )
    # 10 | 20 - 10 | 30 - 20 | DRAM 40 - 30 | exp at 500 MHz: 8e9 / 0.8e12 = 10 | 60 - 50
    assert found == near(ideal=0.01, clock=0.01, extra_FLOPs=0.01, memory=0.01, exp=0.01, rest=0.01)


def test_no_parts_of_what_is_absent_or_impossible(parts: Parts) -> None:
    assert parts(flops_convention=1e12) == {}
    assert parts(time=0.01) == {}
    assert parts(flops_convention=1e12, flops_issued=1e12, time=0.005) == {}  # INVALID


@pytest.mark.parametrize("name", names())
def test_parts_add_up_on_every_device(name: str) -> None:
    op = OPS[0]
    w = AttentionWorkload(seq_q=5000, seq_k=5000, dtype="fp16", causal=True, pass_="fwd-bwd")
    rows = [row for row in op.implementations if row.io and not row.refusal(w)]
    record = run_session(op, [w], rows, FakeBackend(load_profile(name)), lambda _impl, _what: None)
    for run in record.runs:
        found = losses(place(record, run))
        assert found
        assert math.fsum(loss.time_s for loss in found) == pytest.approx(run.value("time"), rel=1e-14)
        assert all(
            loss.time_s >= 0 for loss in found if loss.name in ("ideal", "extra FLOPs", "memory", "exp")
        )
