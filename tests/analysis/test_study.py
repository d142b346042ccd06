"""The exit code of a command is what its runs were."""

import msgspec
import pytest

from perfkit.analysis.study import exit_code, rows, study
from perfkit.measure.draft import Draft
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Status

OP = find_op("attention")
W = AttentionWorkload(seq_q=4096, seq_k=4096)


def fake_record() -> Record:
    chosen = [row for row in OP.implementations if row.name in ("standard", "flash")]
    return run_session(OP, [W], chosen, FakeBackend(), lambda *_: None)


def with_first_status(status: Status) -> Record:
    record = fake_record()
    first, *others = record.runs
    row = next(row for row in OP.implementations if row.name == first.impl)
    return msgspec.structs.replace(record, runs=(Draft(row=row, workload=W).finish(status, "why"), *others))


@pytest.mark.parametrize(
    ("status", "code"),
    [("refused", 0), ("failed", 0), ("out-of-memory", 0), ("incorrect", 1), ("interrupted", 130)],
)
def test_one_run_that_did_not_end_well(status: Status, code: int) -> None:
    assert exit_code(study(with_first_status(status))) == code


def test_nothing_to_show_is_a_failure() -> None:
    record = with_first_status("refused")
    assert exit_code(study(msgspec.structs.replace(record, runs=record.runs[:1]))) == 1


def test_a_time_that_cannot_be_true() -> None:
    record = fake_record()
    run = record.runs[1]
    time = msgspec.structs.replace(
        run.numbers["time"], value=run.value("time") / 10
    )  # fake time is 1.25 floors
    runs = (record.runs[0], msgspec.structs.replace(run, numbers={**run.numbers, "time": time}))
    found = study(msgspec.structs.replace(record, runs=runs))
    assert found.findings[1].placement.invalid.startswith("8.00x above the compute roof")
    assert exit_code(found) == 4


def test_every_number_has_a_row() -> None:
    found = study(fake_record())
    table = rows(found)
    assert len(table) == sum(len(f.placement.run.numbers) + len(f.metrics) for f in found.findings)
    assert {row["provenance"] for row in table} == {"modelled", "measured", "unavailable"}
