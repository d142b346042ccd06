"""Kernels that no interpreter executes: a count is left out with its reason, and nothing fails."""

from pathlib import Path

import pytest

from perfkit.analysis.held import explained
from perfkit.errors import UsageError
from perfkit.measure.counting import recorded
from perfkit.measure.counting.count import count, refusal
from perfkit.measure.counting.types import request
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation
from perfkit.record import dump, load

OP = find_op("attention")
W = AttentionWorkload(seq_q=256, seq_k=256)
WHY = "Triton's interpreter cannot execute Gluon, in which its kernels are written"


def hopper() -> Implementation:
    row = OP.implementation("flash-hopper")
    assert row is not None
    return row


def test_a_count_is_refused_with_the_reason() -> None:
    assert refusal(OP, hopper(), W) == WHY
    with pytest.raises(UsageError) as refused:
        count(OP, hopper(), W)
    assert refused.value.message == f"flash-hopper cannot be counted: {WHY}"


def test_a_run_that_cannot_be_counted_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for it; the run keeps what it has, and the record is in order."""
    monkeypatch.setattr(recorded, "answers", lambda _: pytest.fail("a process was started"))
    record = run_session(OP, [W], [hopper()], FakeBackend(), lambda *_: None)
    found = recorded.with_counts(record, [request(hopper(), W)], lambda *_: None)
    (run,), (before,) = found.runs, record.runs
    assert run.status == before.status == "measured"
    assert run.timing == before.timing
    assert run.notes == (*before.notes, f"flash-hopper is not counted: {WHY}")
    for tag in recorded.TAGS:
        number = run.numbers[tag]
        assert (number.value, number.reason) == (None, f"not counted here: {WHY}")
    assert explained(found)
    path = tmp_path / "r.json"
    path.write_bytes(dump(found))
    assert load(path).runs == found.runs
