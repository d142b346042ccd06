"""Records of `perfkit io --sweep`, made on the fake device, whose counters repeat the model."""

from collections.abc import Callable

import msgspec
import pytest

from perfkit.analysis.sweeps import Source, trials
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import Backend, run_cases
from perfkit.ops import find_op
from perfkit.ops.attention_tiles import with_tiles
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation
from perfkit.record import Record, Run

OP = find_op("attention")
MakeSwept = Callable[..., Record]


def _row(name: str) -> Implementation:
    found = OP.implementation(name)
    assert found is not None
    return found


def _counted(run: Run) -> Run:
    """The run as if executing it had moved what its ledger says."""
    io = _row(run.impl).io
    assert io is not None
    return msgspec.structs.replace(run, counted=io.ledger(run.workload, run.uses))


@pytest.fixture(scope="session")
def swept() -> MakeSwept:
    """(implementations, lengths asked for, whether counted, backend) -> what `perfkit io --sweep` records."""

    def make(
        *impls: str, lengths: tuple[int, ...] = (4096,), counted: bool = False, backend: Backend | None = None
    ) -> Record:
        rows, device = [_row(name) for name in impls], backend or FakeBackend()
        sources: tuple[Source, ...] = ("modelled", "counted") if counted else ("modelled",)
        asked = [AttentionWorkload(heads=1, kv_heads=1, seq_q=n, seq_k=n) for n in lengths]
        cases = [(w, [row]) for w in asked for row in rows]
        for row in rows:
            for trial in trials(row, sources):
                tiled = with_tiles(row, trial.workload, device.profile, *trial.tile) if trial.tile else row
                cases.append((trial.workload, [tiled]))
        record = run_cases(OP, cases, device, lambda *_: None)
        first = len(asked) * len(rows)
        runs = [
            msgspec.structs.replace(_counted(run) if counted else run, trial=at >= first)
            for at, run in enumerate(record.runs)
        ]
        return msgspec.structs.replace(record, runs=tuple(runs))

    return make
