"""Comparisons on the fake backend, whose times are 1.25 floors and whose counters repeat the model."""

from pathlib import Path

import msgspec
import pytest

from perfkit.analysis.comparison import Comparison, compare, compare_records
from perfkit.analysis.report import Report, Titled, changes, comparison_of
from perfkit.analysis.study import Study, study
from perfkit.errors import UsageError
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load as profile
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, load

OP = find_op("attention")
H200 = Path(__file__).parents[2] / "docs" / "examples" / "h200"


def record(names: str = "standard,flash", lengths: tuple[int, ...] = (1024, 4096)) -> Record:
    rows = [row for name in names.split(",") if (row := OP.implementation(name))]
    workloads = [AttentionWorkload(seq_q=n, seq_k=n) for n in lengths]
    return run_session(OP, workloads, rows, FakeBackend(), lambda *_: None, baseline="standard")


def fake(names: str = "standard,flash", lengths: tuple[int, ...] = (1024, 4096)) -> Study:
    return study(record(names, lengths))


def test_every_length_is_a_group_and_ratios_are_candidate_over_baseline() -> None:
    found = compare(fake(), "standard", 0.01)
    assert [group.workload.seq_q for group in found.groups] == [1024, 4096]
    (contrast,) = found.groups[1].contrasts
    # DRAM, N 4096, d 64, 16 heads, bf16. Standard: 4 N^2 + 4 N d elements of 2 B; S of one head fits L2 at
    # no time, so all of it moves: 16 * 2 * (4 * 4096^2 + 4 * 4096 * 64) = 2181038080 B.
    # Flash: Q, K, V, O once and LSE 4 B a row: 16 * (2 * 4 * 4096 * 64 + 4 * 4096) = 33816576 B.
    assert contrast.ratios["dram"] == pytest.approx(33816576 / 2181038080)
    # 22 tiles of 192 rows: 64 warpgroups of 64 rows with 32 blocks of keys, and 2 with no row and 1 block.
    # And one product of 2 more, of 3 warpgroups of each of 132 programs, over 16 heads.
    blocks = 16 * (64 * 32 + 2) + 132 * 3 / 2
    assert contrast.ratios["flops"] == blocks / (16 * 64 * 32)
    base, flash = (f.placement.time_s for f in (found.groups[1].baseline, contrast.candidate))
    assert base is not None
    assert flash is not None
    assert contrast.speedup is not None
    assert contrast.speedup.value == base / flash
    assert contrast.verdict.status == "faster"


def test_the_record_says_what_it_compares() -> None:
    found = comparison_of(fake())
    assert found is not None
    assert [group.label for group in found.groups] == ["standard", "standard"]
    alone = msgspec.structs.replace(record(), baseline=None)
    assert comparison_of(study(alone)) is None


def test_a_name_that_is_not_there_or_alone() -> None:
    with pytest.raises(UsageError, match="no run of 'sdpa'") as caught:
        compare(fake(), "sdpa", 0.01)
    assert caught.value.hint == "in the record: standard, flash"
    with pytest.raises(UsageError, match="only 'standard' is there"):
        compare(fake("standard"), "standard", 0.01)


def test_an_implementation_against_itself() -> None:
    found = compare(fake("standard,standard"), "standard", 0.01)
    assert [group.contrasts[0].verdict.status for group in found.groups] == ["same", "same"]


def test_a_run_that_failed_is_a_row_with_its_reason() -> None:
    one = record(lengths=(1024,))
    lost = msgspec.structs.replace(
        one.runs[0], status="out-of-memory", reason="predicted need 137 GB", timing=None
    )
    found = compare(study(msgspec.structs.replace(one, runs=(lost, one.runs[1]))), "standard", 0.01)
    (contrast,) = found.groups[0].contrasts
    assert contrast.speedup is None
    assert (contrast.verdict.status, contrast.verdict.reason) == (
        "unmeasured",
        "standard out-of-memory: predicted need 137 GB",
    )


def test_modelled_times_are_no_verdict() -> None:
    rows = [row for name in ("standard", "flash") if (row := OP.implementation(name))]
    backend = ModelBackend(profile("a100-80gb-sxm"), "no GPU")
    w = AttentionWorkload(seq_q=16384, seq_k=16384)
    found = study(run_session(OP, [w], rows, backend, lambda *_: None, baseline="standard"))
    (contrast,) = compare(found, "standard", 0.01).groups[0].contrasts
    assert contrast.verdict.status == "unmeasured"
    assert contrast.verdict.reason == "modelled: the ratio of the least times"
    least = [f.placement.least_s for f in found.findings]
    assert contrast.speedup is not None
    assert contrast.speedup.value == least[0] / least[1]  # type: ignore[operator]
    assert contrast.speedup.low is None


def test_real_records_against_themselves_are_the_same() -> None:
    one = study(load(H200 / "fwd-d64-16k.json"))
    found = compare_records(one, one, ("a", "b"), 0.01)
    assert {c.verdict.status for g in found.groups for c in g.contrasts} == {"same"}
    assert {r for g in found.groups for c in g.contrasts for r in c.ratios.values()} == {1.0}
    assert found.notes == ()


def slower(subject: Record, factor: float) -> Record:
    """Every sample of the record longer, at the same clock."""
    runs = []
    for run in subject.runs:
        assert run.timing is not None
        samples = [factor * sample for sample in run.timing.samples_s]
        timing = msgspec.structs.replace(run.timing, samples_s=samples)
        runs.append(msgspec.structs.replace(run, timing=timing))
    return msgspec.structs.replace(subject, runs=tuple(runs))


def statuses(found: Comparison) -> set[str]:
    return {contrast.verdict.status for group in found.groups for contrast in group.contrasts}


def test_a_planted_slowdown_of_a_real_record_is_found() -> None:
    one = load(H200 / "fwd-d64-16k.json")
    assert statuses(compare_records(study(one), study(slower(one, 1.05)), ("a", "b"), 0.01)) == {"slower"}
    assert statuses(compare_records(study(one), study(slower(one, 1 / 1.05)), ("a", "b"), 0.01)) == {"faster"}


def test_rounds_of_two_sessions_are_not_pairs() -> None:
    """The same drift over 20 rounds in both: paired, every round would be 3 % slower for certain."""
    one = record(lengths=(1024,))

    def drifting(factor: float) -> Study:
        runs = []
        for run in one.runs:
            assert run.timing is not None
            samples = [factor * 1e-3 * (1 + 0.005 * i) for i in range(20)]
            timing = msgspec.structs.replace(run.timing, samples_s=samples, clock_hz=[1.5e9] * 20)
            runs.append(msgspec.structs.replace(run, timing=timing))
        return study(msgspec.structs.replace(one, runs=tuple(runs)))

    found = compare_records(drifting(1.0), drifting(1.03), ("a", "b"), 0.01)
    contrast = found.groups[0].contrasts[0]
    # Unpaired: from 1.025 / (1.03 * 1.070) to 1.070 / (1.03 * 1.025), as in test_speed.
    assert contrast.speedup is not None
    assert contrast.speedup.low == pytest.approx(1.025 / (1.03 * 1.070))
    assert contrast.verdict.status == "undecided"


def test_records_with_nothing_in_common_are_refused() -> None:
    one, two = (study(load(H200 / name)) for name in ("fwd-d64-16k.json", "fwd-d64-2k.json"))
    with pytest.raises(UsageError, match="have no implementation and workload in common"):
        compare_records(one, two, ("one", "two"), 0.01)


def test_what_differs_besides_the_numbers_is_said() -> None:
    one = record()
    other = msgspec.structs.replace(
        one,
        device=profile("a100-80gb-sxm"),
        environment=msgspec.structs.replace(one.environment, torch="2.12"),
        runs=one.runs[1:],
    )
    found = compare_records(study(one), study(other), ("old", "new"), 0.01)
    assert found.notes == (
        "different devices: h200-141gb-sxm and a100-80gb-sxm",
        "torch 0 and 2.12",
        "standard is in old only",
    )


def test_equal_rows_of_two_records_are_paired_in_their_order() -> None:
    twice = fake("standard,flash,flash", lengths=(1024,))
    found = compare_records(twice, twice, ("old", "new"), 0.01)
    assert [group.label for group in found.groups] == ["standard old", "flash old", "flash old"]
    assert found.notes == ()


def test_a_report_holds_its_parts_against_its_baseline() -> None:
    part, base = Titled(name="new", study=fake()), Titled(name="old", study=fake())
    assert changes(Report(parts=(part,))) == ()
    ((whose, found),) = changes(Report(parts=(part,), baseline=base))
    assert whose is part
    assert [group.label for group in found.groups] == ["standard old", "flash old"] * 2
    assert [group.contrasts[0].label for group in found.groups] == ["standard new", "flash new"] * 2
