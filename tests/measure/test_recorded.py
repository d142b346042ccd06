"""Counts that are added to a record: in order, side by side, and what Ctrl-C leaves."""

from collections.abc import Sequence

import pytest

from perfkit.measure.counting import recorded
from perfkit.measure.counting.types import Count, CountFailed, Failure, Request, request
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.model.traffic import Traffic
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Moved
from perfkit.record import Record

OP = find_op("attention")
LENGTHS = (64, 128, 256)


def flash() -> Implementation:
    row = OP.implementation("flash-triton")
    assert row is not None
    return row


@pytest.fixture
def record() -> Record:
    workloads = [AttentionWorkload(seq_q=n, seq_k=n) for n in LENGTHS]
    return run_session(OP, workloads, [flash()], FakeBackend(), lambda *_: None)


def requests(record: Record) -> list[Request | None]:
    return [request(flash(), run.workload) for run in record.runs]


def answer(one: Request) -> Count:
    """As many bytes as the workload has queries."""
    moved = Moved(kernel="k", tensor="Q", traffic=Traffic(read_bytes=one.workload.seq_q, write_bytes=0))
    return Count(impl=one.impl, workload=one.workload, moved=(moved,), notes=("executed",))


def test_each_run_gets_its_own_count(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "answers", lambda given: tuple(map(answer, given)))
    said: list[tuple[str, str]] = []
    asked = requests(record)
    asked[1] = None
    found = recorded.with_counts(record, asked, lambda *words: said.append(words))
    assert [run.value("l2_read_counted") for run in found.runs] == [64, None, 256]
    assert [len(run.counted) for run in found.runs] == [1, 0, 1]
    assert [name for name, _ in said] == ["flash-triton (1 of 2)", "flash-triton (2 of 2)"]
    assert "counted: executed" in found.runs[0].notes


def test_ctrl_c_leaves_what_was_counted(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(given: Sequence[Request]) -> tuple[Count | Failure, ...]:
        if given[0].workload.seq_q == 128:
            raise KeyboardInterrupt
        return tuple(map(answer, given))

    monkeypatch.setattr(recorded, "answers", interrupted)
    monkeypatch.setattr(recorded.os, "cpu_count", lambda: 1)
    found = recorded.with_counts(record, requests(record), lambda *_: None)
    reasons = [run.numbers["l2_read_counted"].reason for run in found.runs if not run.counted]
    assert reasons
    assert set(reasons) == {"interrupted before it was counted"}
    assert found.runs[1].value("l2_read_counted") is None
    assert {run.status for run in found.runs if not run.counted} == {"interrupted"}
    assert found.runs[1].value("l2_read") is not None  # what was measured stays


def test_a_process_that_dies_costs_its_own_count_only(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(given: Sequence[Request]) -> tuple[Count | Failure, ...]:
        if given[0].workload.seq_q == 128:
            raise CountFailed("the process that counts ended with status -9: no word")
        return tuple(map(answer, given))

    monkeypatch.setattr(recorded, "answers", killed)
    found = recorded.with_counts(record, requests(record), lambda *_: None)
    assert [run.value("l2_read_counted") for run in found.runs] == [64, None, 256]
    reason = found.runs[1].numbers["l2_read_counted"].reason
    assert reason == "the process that counts ended with status -9: no word"
