"""The gate on numbers: planted changes are found in every record, and what may vary may vary."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.analysis.gate.judge import GateResult, gate
from perfkit.analysis.gate.limits import Limits
from perfkit.analysis.gate.numbers import allowance
from perfkit.analysis.io_check import SLACK_BYTES
from perfkit.analysis.study import Study, study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Number, Record, Run, load, number, unavailable

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples" / "h200").glob("*.json"))
OP = find_op("attention")
#: What must be found if it grows by 1 %: it is the same in every run.
REPEATS = (
    "l2_read", "l2_write", "l2_read_modelled", "l2_write_modelled", "dram_read_modelled",
    "dram_write_modelled", "flops_issued", "flops_tensor", "flops_vector", "exps_measured",
)  # fmt: skip
WORK = ("flops_convention", "flops_exact", "exps", "dram_read_compulsory", "dram_write_compulsory")


def fake(impl: str = "flash", seq: int = 4096, head_dim: int = 64) -> Record:
    """One run of the fake backend, on an H200's profile."""
    workload = AttentionWorkload(heads=16, kv_heads=16, seq_q=seq, seq_k=seq, head_dim=head_dim)
    row = OP.implementation(impl)
    assert row is not None
    return run_session(OP, [workload], [row], FakeBackend(), lambda _impl, _what: None)


def with_number(record: Record, tag: str, value: Number, index: int = 0) -> Record:
    runs = list(record.runs)
    runs[index] = msgspec.structs.replace(runs[index], numbers={**runs[index].numbers, tag: value})
    return msgspec.structs.replace(record, runs=tuple(runs))


def valued(record: Record, tag: str, value: float, index: int = 0) -> Record:
    """The record with another value of `tag`, of the same provenance."""
    old = record.runs[index].numbers[tag]
    return with_number(record, tag, msgspec.structs.replace(old, value=value), index)


def value(run: Run, tag: str) -> float:
    found = run.value(tag)
    assert found is not None
    return found


def gated(base: Record | Study, current: Record, **limits: Any) -> GateResult:
    return gate(base if isinstance(base, Study) else study(base), study(current), Limits(**limits))


def outcome(result: GateResult, tag: str) -> tuple[str, str]:
    (check,) = [check for check in result.checks if check.tag == tag]
    return check.status, check.reason


def measured(record: Record) -> Iterator[tuple[int, Run]]:
    return ((i, run) for i, run in enumerate(record.runs) if run.status == "measured")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_one_percent_more_is_found_for_every_implementation_of_every_record(path: Path) -> None:
    """Every number that repeats, one at a time: it fails, and no other run does."""
    record = load(path)
    base, planted = study(record), 0
    for index, run in measured(record):
        for tag in REPEATS:
            before = run.value(tag)
            if not before:
                continue
            result = gated(base, valued(record, tag, 1.01 * before, index))
            assert (run.impl, tag) in {(c.impl, c.tag) for c in result.of("fail")}
            assert {check.impl for check in result.of("fail")} == {run.impl}
            assert result.exit_code == 1
            planted += 1
    # Two SM<->L2 counters and three of instructions for each; flash adds its model.
    assert planted >= 5 * len(list(measured(record)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_kernel_more_two_percent_more_memory_and_other_work_are_found(path: Path) -> None:
    record = load(path)
    base = study(record)
    for index, run in measured(record):
        for tag, grown in (
            ("launches", value(run, "launches") + 1),
            ("peak_memory", 1.02 * value(run, "peak_memory")),
            *((tag, value(run, tag) + 1) for tag in WORK),
        ):
            fails = gated(base, valued(record, tag, grown, index)).of("fail")
            assert (run.impl, tag) in {(check.impl, check.tag) for check in fails}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_dram_bytes_fail_just_beyond_what_is_allowed_and_pass_just_within(path: Path) -> None:
    record = load(path)
    base = study(record)
    for index, run in measured(record):
        for tag in ("dram_read", "dram_write"):
            before, allowed = value(run, tag), allowance("attention", tag, run, Limits())
            assert allowed.share in (0.005, 0.05)
            room = allowed.share * before + SLACK_BYTES
            within = gated(base, valued(record, tag, before + room - 2, index))
            assert outcome_of(within, run, tag) == "pass"
            beyond = gated(base, valued(record, tag, before + room + 2, index))
            assert outcome_of(beyond, run, tag) == "fail"
            less = gated(base, valued(record, tag, before - room - 2, index))
            assert outcome_of(less, run, tag) == "improved"


def outcome_of(result: GateResult, run: Run, tag: str) -> str:
    key = (run.impl, run.workload, tag)
    (check,) = [check for check in result.checks if (check.impl, check.workload, check.tag) == key]
    return check.status


@pytest.mark.parametrize(
    ("name", "impl", "share", "why"),
    [
        # K and V of two heads take 13 % of L2: the model reads 100663296 bytes, which is compulsory.
        ("fwd-d64-16k", "flash", 0.005, ""),
        # 17280532480 bytes by the model, 172 times compulsory: S and P are the algorithm's.
        ("fwd-d64-16k", "standard", 0.005, ""),
        ("all-d64-16k", "sdpa-math", 0.005, ""),
        # 1.84 GB read where 0.81 GB are compulsory.
        ("fwd-d128-64k", "flash", 0.05, "the L2 model predicts re-reads, and they vary"),
        ("fwd-d64-16k", "sdpa-cudnn", 0.05, "no L2 model says what is read again, and what is varies"),
    ],
)
def test_dram_bytes_are_exact_only_where_nothing_is_read_again(
    name: str, impl: str, share: float, why: str
) -> None:
    record = load(next(path for path in EXAMPLES if path.stem == name))
    (run,) = [run for run in record.runs if run.impl == impl]
    found = allowance("attention", "dram_read", run, Limits())
    assert (found.share, found.slack, found.why) == (share, 1 << 20, why)


def test_matrices_that_stay_in_l2_are_the_caches_business() -> None:
    """standard at N 512: S of one head is 512 KiB, and 16 heads 8 MiB, below 30 % of the H200's L2."""
    run = fake("standard", seq=512).runs[0]
    assert "stays in L2" in (run.numbers["dram_read_modelled"].reason or "")
    least = value(run, "dram_read_compulsory")
    again = {
        **run.numbers,
        "dram_read_modelled": number(
            "dram_read_modelled", 1.02 * least, "modelled", run.numbers["dram_read_modelled"].reason
        ),
    }
    partly = msgspec.structs.replace(run, numbers=again)
    assert allowance("attention", "dram_read", partly, Limits()).share == 0.05


def test_the_reason_says_what_was_allowed_and_why() -> None:
    base = fake("flash", seq=65536, head_dim=128)
    grown = valued(base, "dram_read", 1.2 * value(base.runs[0], "dram_read"))
    status, reason = outcome(gated(base, grown), "dram_read")
    assert status == "fail"
    assert reason == "beyond 5% + 1 MiB: the L2 model predicts re-reads, and they vary"


def test_limits_are_those_that_were_asked_for() -> None:
    base = fake()
    run = base.runs[0]
    for tag, limit, factor in (("l2_read", "traffic", 1.009), ("peak_memory", "memory", 1.019)):
        grown = valued(base, tag, factor * value(run, tag))
        assert outcome(gated(base, grown), tag)[0] == "fail"
        assert outcome(gated(base, grown, **{limit: 0.02}), tag) == ("pass", "within 2%")
    big = fake("flash", seq=65536, head_dim=128)
    grown = valued(big, "dram_read", 1.08 * value(big.runs[0], "dram_read"))
    assert outcome(gated(big, grown), "dram_read")[0] == "fail"
    assert outcome(gated(big, grown, dram=0.1), "dram_read")[0] == "pass"
    exact = valued(base, "l2_read", value(run, "l2_read") + 1)
    assert outcome(gated(base, exact), "l2_read")[0] == "pass"
    assert outcome(gated(base, exact, traffic=0.0), "l2_read") == ("fail", "more than before")


@pytest.mark.parametrize("tag", ["l2_read", "l2_read_modelled", "flops_tensor", "peak_memory", "dram_read"])
def test_less_is_an_improvement_and_fails_nothing_by_itself(tag: str) -> None:
    base = fake("standard" if tag == "dram_read" else "flash", seq=16384)
    result = gated(base, valued(base, tag, 0.9 * value(base.runs[0], tag)), ignore=("io_check",))
    assert [check.tag for check in result.of("improved")] == [tag]
    assert result.of("improved")[0].change == pytest.approx(-0.1)
    assert result.exit_code == 0


def test_kernels_are_exact_both_ways() -> None:
    base = with_number(fake(), "launches", number("launches", 3, "measured"))
    for count, status, reason in (
        (4, "fail", "more than before"),
        (3, "pass", "the same"),
        (2, "improved", "less than before"),
    ):
        current = with_number(base, "launches", number("launches", count, "measured"))
        assert outcome(gated(base, current), "launches") == (status, reason)


@pytest.mark.parametrize("tag", WORK)
@pytest.mark.parametrize("step", [-1, 1])
def test_what_defines_the_work_may_not_change_at_all(tag: str, step: int) -> None:
    base = fake()
    result = gated(base, valued(base, tag, value(base.runs[0], tag) + step))
    assert outcome(result, tag) == ("fail", "it defines the work, and may not change")


def test_a_modelled_number_that_is_gone_fails() -> None:
    base = fake()
    gone = with_number(base, "l2_read_modelled", unavailable("l2_read_modelled", "no tiles"))
    assert outcome(gated(base, gone), "l2_read_modelled") == (
        "fail",
        "modelled in the baseline, unavailable now: no tiles",
    )


def test_a_measured_number_that_is_gone_warns_and_fails_if_strict() -> None:
    base = fake()
    gone = with_number(base, "l2_read", unavailable("l2_read", "counters are not permitted"))
    reason = "measured in the baseline, unavailable now: counters are not permitted"
    assert outcome(gated(base, gone), "l2_read") == ("warn", reason)
    assert gated(base, gone).exit_code == 0
    assert outcome(gated(base, gone, strict=True), "l2_read") == ("fail", f"strict: {reason}")
    assert gated(base, gone, strict=True).exit_code == 1


def test_a_number_that_is_new_is_noted() -> None:
    base = with_number(fake(), "l2_read", unavailable("l2_read", "counters are not permitted"))
    result = gated(base, fake())
    assert outcome(result, "l2_read") == ("noted", "not in the baseline: counters are not permitted")
    assert result.exit_code == 0


def test_a_worse_source_warns_and_a_better_one_passes() -> None:
    sources: tuple[tuple[Any, Any, float, str], ...] = (
        ("measured", "modelled", 1, "warn"),
        ("measured", "counted", 1, "warn"),
        ("measured", "modelled", 2, "fail"),
        ("modelled", "measured", 1, "pass"),
    )
    for old, new, count, status in sources:
        base = with_number(fake(), "launches", number("launches", 1, old))
        found = outcome(
            gated(base, with_number(base, "launches", number("launches", count, new))), "launches"
        )
        assert found[0] == status
        assert (f"{old} in the baseline, {new} now" in found[1]) == (status != "pass")


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        # The fake backend's error is 1e-3 and its eager path's 2e-3, so that 4e-3 is allowed.
        (1.0e-3, "pass", "within 2x the baseline's"),
        (2.0e-3, "pass", "within 2x the baseline's"),
        (3.0e-3, "warn", "more than 2x the baseline's, but within 2x eager (0.004)"),
        (4.1e-3, "fail", "more than 2x the baseline's, and above the allowed 2x eager (0.004)"),
        (4.0e-4, "improved", "below 1/2 of the baseline's"),
    ],
)
def test_errors(error: float, status: str, reason: str) -> None:
    base = fake()
    current = with_number(base, "error", number("error", error, "measured"))
    assert outcome(gated(base, current), "error") == (status, reason)


def test_an_error_with_nothing_to_judge_it_by_warns() -> None:
    base = fake()
    current = with_number(base, "error", number("error", 1.0, "measured"))
    current = with_number(current, "eager_error", unavailable("eager_error", "not run"))
    status, reason = outcome(gated(base, current), "error")
    assert (status, reason) == ("warn", "more than 2x the baseline's; what is allowed is not known: not run")


@pytest.mark.parametrize("tag", ["energy", "power", "clock", "temperature", "sustained_time"])
def test_what_follows_the_chip_is_not_gated(tag: str) -> None:
    before = 1.5e9 if tag == "clock" else 1.0  # the fake backend's clock: time is held against it
    base = with_number(fake(), tag, number(tag, before, "measured"))
    result = gated(base, with_number(base, tag, number(tag, 1.1 * before, "measured")))
    assert [check for check in result.checks if check.tag == tag] == []
    assert result.exit_code == 0
