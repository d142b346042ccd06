"""What the mathematics says of the runs of a record: each one's ledger, and its distance from the lower
bounds."""

import msgspec

from perfkit.analysis.bounds import Bounds, bounds
from perfkit.analysis.law import LAWS, matrix_bytes, memory_of
from perfkit.ops import find_op
from perfkit.ops.base import Implementation, Ledger
from perfkit.record import Record, Run


class Distance(msgspec.Struct, frozen=True, kw_only=True):
    """How far an implementation is from the lower bounds, in elements a head.

    `memory` is M as its law counts it; `moved` what it reads and writes of matrices.
    """

    memory: float
    moved: float
    bounds: Bounds


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One run with the row of its implementation and its ledger."""

    run: Run
    row: Implementation
    ledger: Ledger

    @property
    def level(self) -> str:
        """The level at which the ledger is exact, as people write it."""
        return "DRAM" if self.row.io is not None and self.row.io.level == "DRAM" else "SM<->L2"

    @property
    def distance(self) -> Distance | None:
        """Of a forward pass over all pairs, for what has a tile and a law; None for all else."""
        w = self.run.workload
        if w.causal or w.features or w.pass_ != "fwd" or not self.run.uses:
            return None
        memory = memory_of(self.run.impl, self.run.uses[0], w.head_dim)
        if memory is None:
            return None
        moved = matrix_bytes(self.ledger, LAWS[self.run.impl].aside) / w.element_bytes
        return Distance(
            memory=float(memory), moved=moved / (w.batch * w.heads), bounds=bounds(w, float(memory))
        )


def subjects(record: Record) -> tuple[Subject, ...]:
    """The runs of which something is modelled, in the order of the record."""
    op = find_op(record.op)
    found = []
    for run in record.runs:
        row = op.implementation(run.impl)
        if row is not None and row.io is not None and run.numbers:
            found.append(Subject(run=run, row=row, ledger=row.io.ledger(run.workload, run.uses)))
    return tuple(found)
