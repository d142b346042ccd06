"""The gate on rows, time and verdicts: what is paired, what is refused, and what each outcome is worth."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.analysis.gate.check import GATED, Check
from perfkit.analysis.gate.judge import GateResult, gate
from perfkit.analysis.gate.limits import Limits
from perfkit.analysis.speed import compare_times
from perfkit.analysis.study import Study, study
from perfkit.analysis.verdict import Verdict, VerdictStatus
from perfkit.errors import UsageError
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, load, number

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples" / "h200").glob("*.json"))
OP = find_op("attention")


def fake(*impls: str, seqs: tuple[int, ...] = (4096,), baseline: str | None = None) -> Record:
    """A record of the fake backend: standard and flash, one head a K/V head, d 64."""
    workloads = [AttentionWorkload(heads=16, kv_heads=16, seq_q=n, seq_k=n, head_dim=64) for n in seqs]
    rows = [row for name in impls or ("standard", "flash") if (row := OP.implementation(name))]
    return run_session(OP, workloads, rows, FakeBackend(), lambda _impl, _what: None, baseline=baseline)


def edited(record: Record, index: int, **fields: Any) -> Record:
    """The record with other fields in one run."""
    runs = list(record.runs)
    runs[index] = msgspec.structs.replace(runs[index], **fields)
    return msgspec.structs.replace(record, runs=tuple(runs))


def gated(base: Record, current: Record, **limits: Any) -> GateResult:
    return gate(study(base), study(current), Limits(**limits))


def told(result: GateResult) -> list[tuple[str, str, str]]:
    """(impl, what, status) of everything that is not simply passed or noted."""
    return [(c.impl, c.what, c.status) for c in result.checks if c.status not in ("pass", "noted")]


def run_checks(result: GateResult) -> list[Check]:
    return [check for check in result.checks if check.kind == "run"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_record_passes_against_itself_and_every_number_is_looked_at(path: Path) -> None:
    record = load(path)
    result = gated(record, record)
    assert told(result) == []
    assert result.exit_code == 0
    well = [run for run in record.runs if run.status == "measured"]
    failed = [run for run in record.runs if run.status != "measured"]
    numbers = sum(run.value(tag) is not None for run in well for tag in GATED)
    numbers += sum(
        run.value(tag) is not None and run.numbers[tag].provenance == "modelled"
        for run in failed
        for tag in GATED
    )
    assert sum(check.tag in GATED for check in result.checks) == numbers > 30
    assert sum(check.kind == "time" for check in result.checks) == len(well)
    verdicts = sum(len(finding.verdicts) for finding in study(record).findings)
    assert sum(check.kind == "IO check" for check in result.checks) == verdicts


def test_two_sessions_on_one_gpu_differ_in_nothing_that_is_gated() -> None:
    """Measured 21 minutes apart: DRAM bytes differ by up to 1.4 %, times by 3 %, SM<->L2 bytes by 4e-6."""
    folder = EXAMPLES[0].parent
    old, new = load(folder / "fwd-d64-16k.json"), load(folder / "all-d64-16k.json")
    one, two = (next(r for r in record.runs if r.impl == "flash") for record in (old, new))
    assert two.value("dram_write") == pytest.approx(one.value("dram_write"), rel=0.0142)
    assert two.value("dram_write") != pytest.approx(one.value("dram_write"), rel=0.0140)
    result = gated(old, new)
    assert told(result) == []
    assert [c.impl for c in result.of("noted")] == ["sdpa-efficient", "sdpa-math", "flex"]


def test_missing_rows_fail_and_new_rows_are_noted() -> None:
    both, one = fake("standard", "flash"), fake("flash")
    lost = gated(both, one)
    assert told(lost) == [("standard", "run", "fail")]
    assert run_checks(lost)[0].reason == "missing: measured in the baseline, not in the current record"
    assert lost.exit_code == 1
    more = gated(one, both)
    assert told(more) == []
    assert [(c.impl, c.status, c.reason) for c in run_checks(more)] == [
        ("flash", "pass", "measured"),
        ("standard", "noted", "new: measured"),
    ]
    assert more.exit_code == 0


def test_an_empty_current_record_fails_for_every_row() -> None:
    record = fake()
    result = gated(record, msgspec.structs.replace(record, runs=()))
    assert told(result) == [("standard", "run", "fail"), ("flash", "run", "fail")]


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("measured", "refused", "fail"),
        ("measured", "incorrect", "fail"),
        ("measured", "out-of-memory", "fail"),
        ("measured", "failed", "fail"),
        ("measured", "interrupted", "fail"),
        ("modelled", "refused", "fail"),
        ("refused", "measured", "improved"),
        ("out-of-memory", "measured", "improved"),
        ("incorrect", "measured", "improved"),
        ("refused", "refused", "pass"),
        ("refused", "failed", "warn"),
        ("out-of-memory", "incorrect", "warn"),
    ],
)
def test_how_a_row_ended_then_and_now(old: Any, new: Any, status: str) -> None:
    base, current = edited(fake("flash"), 0, status=old), edited(fake("flash"), 0, status=new, reason="why")
    (check,) = run_checks(gated(base, current))
    assert check.status == status
    if status in ("fail", "warn"):
        assert check.reason == f"{new} now, {old} in the baseline: why"


def test_a_row_that_fails_now_has_no_other_check() -> None:
    result = gated(
        fake("flash"), edited(fake("flash"), 0, status="failed", reason="x", numbers={}, timing=None)
    )
    assert [check.what for check in result.checks] == ["run"]


def test_a_new_row_that_is_wrong_fails_and_other_new_failures_are_noted() -> None:
    base, both = fake("standard"), fake("standard", "flash")
    wrong = edited(both, 1, status="incorrect", reason="error 1")
    assert told(gated(base, wrong)) == [("flash", "run", "fail")]
    lacking = edited(both, 1, status="refused", reason="d 20")
    assert [c.reason for c in gated(base, lacking).of("noted")] == ["new: refused: d 20"]


def test_a_missing_row_that_never_worked_is_noted() -> None:
    base = edited(fake("standard", "flash"), 0, status="refused", reason="too large")
    assert told(gated(base, fake("flash"))) == []


def test_equal_rows_pair_in_their_order() -> None:
    """A A against A A: the second one's bytes grew, and the check says which of the two it is."""
    base = fake("flash", "flash")
    numbers = dict(base.runs[1].numbers)
    numbers["l2_read"] = number("l2_read", 2 * (base.runs[1].value("l2_read") or 0), "measured")
    result = gated(base, edited(base, 1, numbers=numbers))
    assert {(check.tag, check.repeat) for check in result.of("fail")} >= {("l2_read", 1)}
    assert {check.repeat for check in result.of("fail")} == {1}
    assert told(gated(base, fake("flash"))) == [("flash", "run", "fail")]  # one of two is missing


def test_rows_of_several_lengths_pair_by_length_in_any_order() -> None:
    base, current = fake(seqs=(1024, 4096)), fake(seqs=(4096, 1024))
    assert told(gated(base, current)) == []
    assert [w.seq_q for w in gated(base, current).workloads] == [1024, 4096]


def test_what_is_modelled_of_a_run_that_failed_is_still_held() -> None:
    """A run out of memory carries its modelled bytes: they follow from the code."""
    base = edited(fake("standard"), 0, status="out-of-memory", reason="128 GB", timing=None)
    numbers = dict(base.runs[0].numbers)
    numbers["dram_read_modelled"] = number(
        "dram_read_modelled", 1.01 * (base.runs[0].value("dram_read_modelled") or 0), "modelled"
    )
    numbers["peak_memory"] = number("peak_memory", 9e9, "measured")
    result = gated(base, edited(base, 0, numbers=numbers))
    assert told(result) == [("standard", "DRAM read, modelled", "fail")]
    gone = edited(base, 0, status="refused", numbers={})
    assert told(gated(base, gone)) == [("standard", "run", "warn")]


def test_a_measurement_that_cannot_be_true_ends_with_4_whatever_else_fails() -> None:
    """The fake backend's time is 1.25 x the floor: a third of it is below, and nothing is slower."""
    base = fake("flash")
    run = base.runs[0]
    time_s = (run.value("time") or 0) / 3
    current = edited(base, 0, numbers={**run.numbers, "time": number("time", time_s, "measured")})
    result = gated(base, current)
    assert result.exit_code == 4
    assert told(result) == [("flash", "run", "fail")]
    assert run_checks(result)[0].reason.startswith("INVALID: 2.40x above the compute roof")  # 3 / 1.25
    assert not [check for check in result.checks if check.kind == "time"]
    ignored = gated(base, current, ignore=("impl:flash",))
    assert ignored.exit_code == 0
    # An impossible baseline proves nothing about the current time.
    assert told(gated(current, base)) == [("flash", "time", "warn")]


# Time.


def timed(record: Record, samples: list[float], clock_hz: float = 1.5e9, **fields: Any) -> Record:
    """The first run of a record with these samples, at one clock."""
    timing = record.runs[0].timing
    assert timing is not None
    changed = msgspec.structs.replace(
        timing,
        samples_s=samples,
        clock_hz=[clock_hz] * len(samples),
        median_s=sorted(samples)[len(samples) // 2],
        **fields,
    )
    return edited(record, 0, timing=changed)


def around(middle: float, spread: float = 0.001) -> list[float]:
    """15 samples evenly around `middle`, from -7 to +7 times a seventh of `spread`."""
    return [middle * (1 + spread * step / 7) for step in range(-7, 8)]


@pytest.mark.parametrize(
    ("factor", "spread", "clock_hz", "status", "reason"),
    [
        (1.00, 0.001, 1.5e9, "pass", "within 5.0%"),
        (1.04, 0.001, 1.5e9, "pass", "within 5.0%"),
        (1.06, 0.001, 1.5e9, "fail", "slower by more than 5%: intervals apart, in time and in cycles"),
        (2.00, 0.001, 1.5e9, "fail", "slower by more than 5%"),
        (0.90, 0.001, 1.5e9, "improved", "faster by more than 5%"),
        (1.05, 0.02, 1.5e9, "warn", "reaches across 5.0%"),
        # A fifth slower in time at five sixths of the clock: as many cycles as before.
        (1.20, 0.001, 1.25e9, "warn", "in cycles: the clocks differed"),
    ],
)
def test_time_fails_only_where_slower_is_certain(
    factor: float, spread: float, clock_hz: float, status: str, reason: str
) -> None:
    base = timed(fake("flash"), around(1e-3))
    current = timed(fake("flash"), around(factor * 1e-3, spread), clock_hz)
    (check,) = [c for c in gated(base, current).checks if c.kind == "time"]
    assert check.status == status
    assert check.change == pytest.approx(factor - 1)
    assert reason in check.reason


def test_the_time_limit_is_the_one_that_was_asked_for() -> None:
    base, current = timed(fake("flash"), around(1e-3)), timed(fake("flash"), around(1.06e-3))
    assert told(gated(base, current, time=0.05)) == [("flash", "time", "fail")]
    assert told(gated(base, current, time=0.10)) == []


def test_too_few_samples_warn_and_fail_only_if_strict() -> None:
    base, current = timed(fake("flash"), [1e-3] * 5), timed(fake("flash"), [2e-3] * 5)
    assert told(gated(base, current)) == [("flash", "time", "warn")]
    strict = gated(base, current, strict=True)
    assert told(strict) == [("flash", "time", "fail")]
    assert strict.of("fail")[0].reason == "strict: fewer than 6 samples"
    assert strict.exit_code == 1


def test_samples_of_two_sessions_are_never_paired() -> None:
    """Both drift by 0.15 % a sample. Taken as pairs every ratio is 1 / 1.06, and that would be certain. They
    are none, and the ends of the medians' intervals give ratios on both sides of 1 / 1.05."""
    drift = [1e-3 * (1 + 0.0015 * i) for i in range(30)]
    base = timed(fake("flash"), drift, interleaved=True)
    current = timed(fake("flash"), [1.06 * s for s in drift], interleaved=True)
    old, new = base.runs[0].timing, current.runs[0].timing
    assert old is not None
    assert new is not None
    assert compare_times(old, new, 0.05)[1].status == "slower"
    assert told(gated(base, current)) == [("flash", "time", "warn")]


@pytest.mark.parametrize(
    ("fields", "told_", "reason"),
    [
        (
            {"cold": False},
            [("flash", "DRAM read", "warn"), ("flash", "DRAM write", "warn"), ("flash", "time", "warn")],
            "not compared: L2 cold in the baseline, L2 warm now",
        ),
        (
            {"graph": True},
            [("flash", "time", "warn")],
            "not compared: timed without a CUDA graph in the baseline, timed in a CUDA graph now",
        ),
    ],
)
def test_what_was_run_in_another_way_is_not_compared(fields: Any, told_: Any, reason: str) -> None:
    base = fake("flash")
    result = gated(base, timed(base, around(1e-3), **fields))
    assert [entry for entry in told(result) if "compulsory" not in entry[1]] == told_
    assert all(c.reason == reason for c in result.of("warn") if c.kind in ("time", "traffic"))


def test_a_time_that_is_gone_warns_with_its_reason_and_a_new_one_is_noted() -> None:
    base = fake("flash")
    numbers = {tag: n for tag, n in base.runs[0].numbers.items() if not tag.startswith("time")}
    current = edited(base, 0, timing=None, numbers=numbers)
    (check,) = gated(base, current).of("warn")
    assert (check.kind, check.reason) == (
        "time",
        "measured in the baseline, unavailable now: it is not in the record",
    )
    assert [c.reason for c in gated(current, base).of("noted")] == ["no time in the baseline"]


def test_a_modelled_record_has_no_check_of_time() -> None:
    record = edited(fake("flash"), 0, status="modelled", timing=None)
    assert not [c for c in gated(record, record).checks if c.kind == "time"]


# Verdicts.


def judged(record: Record, *statuses: VerdictStatus) -> Study:
    """A study whose one run has verdicts `check 0`, `check 1`, ... with these statuses."""
    found = study(record)
    verdicts = tuple(Verdict(check=f"check {i}", status=s, reason="because") for i, s in enumerate(statuses))
    return msgspec.structs.replace(
        found, findings=(msgspec.structs.replace(found.findings[0], verdicts=verdicts),)
    )


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("holds", "holds", "pass"),
        ("holds", "violated", "fail"),
        ("holds", "undecided", "warn"),
        ("holds", "unchecked", "warn"),
        ("holds", None, "warn"),
        ("violated", "holds", "improved"),
        ("violated", "violated", "pass"),
        ("violated", "unchecked", "noted"),
        ("unchecked", "unchecked", "noted"),
        ("unchecked", "holds", "noted"),
        ("unchecked", "violated", "warn"),
        ("undecided", "violated", "warn"),
        ("found", "found", "pass"),
        (None, "violated", "warn"),
        (None, "holds", "noted"),
    ],
)
def test_verdicts_then_and_now(old: VerdictStatus | None, new: VerdictStatus | None, status: str) -> None:
    record = fake("flash")
    base, current = (judged(record, *([s] if s else [])) for s in (old, new))
    (check,) = [c for c in gate(base, current, Limits()).checks if c.kind == "IO check"]
    assert (check.what, check.status) == ("check 0", status)
    if status in ("fail", "warn"):
        assert check.reason.startswith(f"{new or 'gone'} now, {old or 'gone'} in the baseline")
        assert check.reason.endswith("because") == (new is not None)


def test_a_verdict_shows_how_far_off_it_was_and_is() -> None:
    """Counted bytes that grow by 2 % are 2 % off a formula that they met exactly."""
    base = fake("flash")
    run = base.runs[0]
    grown = number("l2_read", 1.02 * (run.value("l2_read") or 0), "measured")
    result = gated(base, edited(base, 0, numbers={**run.numbers, "l2_read": grown}))
    (check,) = [c for c in result.of("fail") if c.what == "SM<->L2 read = IO model"]
    assert check.base == 0
    assert check.current == pytest.approx(0.02)


# Refusals, limits, notes.


def other_device(record: Record) -> Record:
    return msgspec.structs.replace(record, device=msgspec.structs.replace(record.device, name="other"))


def other_dtype(record: Record) -> Record:
    runs = tuple(
        msgspec.structs.replace(run, workload=msgspec.structs.replace(run.workload, dtype="fp16"))
        for run in record.runs
    )
    return msgspec.structs.replace(record, runs=runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: msgspec.structs.replace(r, op="convolution"),
            "the ops differ: attention in the baseline, convolution in the current record",
        ),
        (
            other_device,
            "the device profiles differ: h200-141gb-sxm in the baseline, other in the current record",
        ),
        (
            lambda r: msgspec.structs.replace(r, backend="cuda"),
            "the backends differ: fake in the baseline, cuda in the current record",
        ),
        (other_dtype, "the dtypes differ: bf16 in the baseline, fp16 in the current record"),
    ],
)
def test_records_of_different_things_are_refused(change: Any, message: str) -> None:
    base = study(fake())
    other = msgspec.structs.replace(base, record=change(base.record))
    with pytest.raises(UsageError) as refused:
        gate(base, other, Limits())
    assert refused.value.message == message
    assert "make the baseline anew" in refused.value.hint


def test_an_empty_baseline_is_refused() -> None:
    record = fake()
    with pytest.raises(UsageError, match="no run in the baseline"):
        gated(msgspec.structs.replace(record, runs=()), record)


def test_ignored_checks_are_left_out_and_counted() -> None:
    base = fake()
    current = edited(base, 0, status="failed", reason="x")
    assert gated(base, current).exit_code == 1
    result = gated(base, current, ignore=("impl:standard", "peak_memory", "impl:fleks"))
    assert result.exit_code == 0
    assert {check.impl for check in result.checks} == {"flash"}
    assert "peak_memory" not in {check.tag for check in result.checks}
    assert result.notes == (
        "ignored: impl:standard, 1 check",
        "ignored: peak_memory, 1 check",  # standard failed: it has no such check
        "ignored: impl:fleks, which is in neither record",
    )


def test_strict_changes_nothing_but_warnings() -> None:
    base = fake()
    assert gated(base, base, strict=True) == msgspec.structs.replace(
        gated(base, base), limits=Limits(strict=True)
    )


def test_another_driver_and_an_edited_profile_are_noted() -> None:
    base = fake()
    current = msgspec.structs.replace(
        base,
        device=msgspec.structs.replace(base.device, chip="other"),
        environment=msgspec.structs.replace(base.environment, driver="1", torch=None),
    )
    result = gated(base, current)
    assert told(result) == []
    assert result.notes == (
        "the device profile h200-141gb-sxm was edited since the baseline",
        "driver: 0 in the baseline, 1 now",
        "torch: 0 in the baseline, - now",
    )


def test_a_modelled_record_says_nothing_about_the_machine_it_was_made_on() -> None:
    base = msgspec.structs.replace(fake(), backend="model")
    current = msgspec.structs.replace(base, environment=msgspec.structs.replace(base.environment, cpu="x"))
    assert gated(base, current).notes == ()
