"""The IO law, its constants and the lower bounds, against numbers worked out by hand."""

from typing import Literal

import msgspec
import pytest

from perfkit.analysis.bounds import bounds
from perfkit.analysis.io_model import subjects
from perfkit.analysis.law import LAWS, FittedLaw, fitted, laws, matrix_bytes
from perfkit.analysis.onchip import on_chip
from perfkit.analysis.sweeps import PLANS, Source, sweeps, trials
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_cases
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import find_op
from perfkit.ops.attention_tiles import with_tiles
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Moved
from perfkit.record import Record

OP = find_op("attention")
H200 = load("h200-141gb-sxm")


def row(name: str) -> Implementation:
    found = OP.implementation(name)
    assert found is not None
    return found


def record_of(impl: str, source: Source = "modelled") -> Record:
    """The sweeps of one implementation on the fake device, whose counters repeat the model."""
    cases = []
    for trial in trials(row(impl), (source,)):
        tiled = with_tiles(row(impl), trial.workload, H200, *trial.tile) if trial.tile else row(impl)
        cases.append((trial.workload, [tiled]))
    return run_cases(OP, cases, FakeBackend(), lambda *_: None)


def counted(record: Record) -> Record:
    """The record as if each run had been counted, equal to its ledger."""
    runs = []
    for run in record.runs:
        io = row(run.impl).io
        assert io is not None
        runs.append(msgspec.structs.replace(run, counted=io.ledger(run.workload, run.uses)))
    return msgspec.structs.replace(record, runs=tuple(runs))


def of(found: tuple[FittedLaw, ...], source: str, level: str) -> dict[str, FittedLaw]:
    return {one.sweep.variable: one for one in found if (one.source, one.level) == (source, level)}


@pytest.mark.parametrize("impl", LAWS)
@pytest.mark.parametrize("source", ["modelled", "counted"])
def test_closed_forms_have_the_exponents_of_the_law(impl: str, source: Source) -> None:
    """Both plans are long enough that terms of lower order move no exponent by 0.01."""
    io = row(impl).io
    assert io is not None
    found = of(laws(counted(record_of(impl, source))), source, io.level)
    assert list(found) == [sweep.variable for sweep in sweeps(row(impl), source)]
    for one in found.values():
        assert one.verdict.status == "holds", one.verdict.reason
        assert one.fit.exponent == pytest.approx(one.law, abs=0.01)
        # The smaller terms are below 4 % of the leading one at the last point.
        assert one.constant == pytest.approx(LAWS[impl].constant, rel=0.04)


@pytest.mark.parametrize("impl", ["standard", "flash1", "flash"])
def test_measured_bytes_with_their_statistics_are_near_enough(impl: str) -> None:
    io = row(impl).io
    assert io is not None
    found = of(laws(record_of(impl)), "measured", io.level)
    assert {one.verdict.status for one in found.values()} == {"holds"}


def test_dram_has_no_law_where_the_law_is_of_l2() -> None:
    found = of(laws(record_of("flash")), "measured", "DRAM")
    assert {one.verdict.status for one in found.values()} == {"found"}
    assert {one.law for one in found.values()} == {one.constant for one in found.values()} == {None}
    # One head of K and V is 16.8 MB at N 64k: each tensor once, so that DRAM is linear in N.
    assert found["N"].fit.exponent == pytest.approx(1.0, abs=0.01)


def test_the_constant_of_flash_by_hand() -> None:
    """N 65536, d 64, B_r 64: reads Q and T_r = 1024 passes over K and V, writes O: 2 + 2048 times N d."""
    by_length = of(laws(record_of("flash")), "modelled", "L2")["N"]
    moved = 2050 * 65536 * 64
    assert by_length.traffic[-1] == 2 * moved
    memory = 2 * 64 * 64  # Q and O, 64 rows of 64
    assert by_length.constant == pytest.approx(moved / (65536**2 * 64**2 / memory))
    assert by_length.constant == pytest.approx(4 + 4 / 1024)  # 2050 N d / (N^2 d / 128), N = 2^16


def test_m_is_in_elements() -> None:
    by_memory = of(laws(record_of("flash")), "modelled", "L2")["M"]
    assert by_memory.xs == tuple(2 * 64 * rows for rows in (32, 64, 128, 256))
    by_memory = of(laws(record_of("flash1")), "modelled", "L2")["M"]
    assert by_memory.xs == tuple(4 * 64 * columns for columns in (32, 64, 128, 256))


def test_flash1_moves_twenty_where_the_paper_counts_twelve() -> None:
    """A block of keys costs Q read, O read and written: 3 N d elements, of 2, 4 and 4 bytes: 10 for 6."""
    trial = sweeps(row("flash1"), "modelled")[0].trials[-1]
    w = trial.workload
    blocks = w.seq_k // trial.uses[0].block_n
    io = row("flash1").io
    assert io is not None
    moved = matrix_bytes(io.ledger(w, trial.uses))
    assert moved == pytest.approx(blocks * 10 * w.seq_q * 64, rel=2e-3)
    assert LAWS["flash1"].constant == 12 * 10 / 6


@pytest.mark.parametrize("impl", [name for name, plans in PLANS.items() if plans[0].elements])
@pytest.mark.parametrize("source", ["modelled", "counted"])
def test_a_sweep_over_d_keeps_what_is_on_chip(impl: str, source: Source) -> None:
    memory = LAWS[impl].memory
    by_width = next(sweep for sweep in sweeps(row(impl), source) if sweep.variable == "d")
    assert len({trial.workload.head_dim for trial in by_width.trials}) == 3
    if memory is not None:
        assert len({memory(trial.uses[0], trial.workload.head_dim) for trial in by_width.trials}) == 1


@pytest.mark.parametrize(("source", "status"), [("measured", "holds"), ("counted", "violated")])
def test_bytes_that_follow_another_law_are_found(source: Literal["measured", "counted"], status: str) -> None:
    by_length = sweeps(row("flash"), source)[0]
    lengths = [float(trial.workload.seq_q) for trial in by_length.trials]
    linear = fitted(by_length, tuple(lengths), source, "L2", "L2")
    assert linear.verdict.status == "violated"
    assert linear.fit.exponent == pytest.approx(1.0)
    close = fitted(by_length, tuple(n**1.96 for n in lengths), source, "L2", "L2")
    assert close.verdict.status == status  # within 0.05 of a measurement, not within 0.01 of a count


def test_a_record_of_something_else_has_no_law() -> None:
    w = AttentionWorkload(seq_q=65536, seq_k=65536)
    assert laws(run_cases(OP, [(w, [row("flash")])], FakeBackend(), lambda *_: None)) == ()
    assert sweeps(row("sdpa-flash"), "modelled") == ()


def test_two_points_are_no_sweep() -> None:
    full = record_of("standard")
    assert laws(msgspec.structs.replace(full, runs=full.runs[:2])) == ()


def test_statistics_are_no_matrices() -> None:
    ledger = (
        Moved(kernel="k", tensor="Q", traffic=Traffic(read_bytes=100, write_bytes=0)),
        Moved(kernel="k", tensor="LSE", traffic=Traffic(read_bytes=0, write_bytes=7)),
        Moved(kernel="k", tensor="O", traffic=Traffic(read_bytes=0, write_bytes=20)),
    )
    assert matrix_bytes(ledger) == 120


def test_what_a_thread_block_holds_by_hand() -> None:
    """Tile 64 x 64, d 64, 4 warps, 3 stages on the table: Q 8 KiB, three times K and V of 8 KiB each."""
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=4096, seq_k=4096)
    tiled = with_tiles(row("flash"), w, H200, 64, 64)
    record = run_cases(OP, [(w, [tiled])], FakeBackend(), lambda *_: None)
    (found,) = on_chip(record)
    assert (found.block_m, found.block_n, found.head_dim) == (64, 64, 64)
    assert found.law_bytes == 2 * 2 * 64 * 64
    stages = next(use.num_stages for use in record.runs[0].uses if use.kernel == "flash_forward")
    assert stages is not None
    assert found.shared_bytes == 2 * 64 * (64 + 2 * stages * 64)
    assert found.shared_source == "modelled"
    assert found.accumulator_bytes == 4 * 64 * (64 + 64)  # O and S
    memory = (found.shared_bytes + found.accumulator_bytes) / 2
    assert found.constant == pytest.approx((2 + 2 * 64) * 4096 * 64 / (4096**2 * 64**2 / memory))
    # What was compiled takes the place of the model.
    use = KernelUse(
        kernel="flash_forward", block_m=64, block_n=64, num_warps=4, num_stages=2,
        shared_bytes=1000, registers=200, spills=0,
    )  # fmt: skip
    run = msgspec.structs.replace(record.runs[0], uses=(use,))
    (found,) = on_chip(msgspec.structs.replace(record, runs=(run,)))
    assert (found.shared_bytes, found.shared_source) == (1000, "measured")
    assert found.register_bytes == 200 * 4 * 128


def test_bounds_by_hand() -> None:
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=1024, seq_k=1024, head_dim=64)
    found = bounds(w, 16384.0)
    assert found.compulsory == 4 * 1024 * 64
    assert found.flash == 1024**2 * 64**2 / 16384  # 262144
    assert found.square == 1024**2 * 64 / 128  # 524288
    assert (found.least, found.regime) == (262144.0, "M >= d^2")


def test_below_d_squared_square_tiles_win() -> None:
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=4096, seq_k=4096, head_dim=128)
    small = bounds(w, 1024.0)
    assert small.regime == "M < d^2"
    assert small.least == small.square < small.flash
    edge = bounds(w, 128.0**2)
    assert edge.flash == edge.square  # the two regimes meet at M = d^2


def test_nothing_is_below_its_bound() -> None:
    w = AttentionWorkload(heads=2, kv_heads=2, seq_q=4096, seq_k=4096)
    rows = [row("flash"), row("flash1"), row("standard")]
    for one in subjects(run_cases(OP, [(w, rows)], FakeBackend(), lambda *_: None)):
        if one.row.name == "standard":
            assert one.distance is None  # nothing stays on chip
        else:
            assert one.distance is not None
            assert one.distance.moved > one.distance.bounds.least
