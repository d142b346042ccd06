"""What was counted in a run held against the ledger of its IO model."""

from perfkit.ops import find_op
from perfkit.ops.attention_counted import Difference, differences
from perfkit.record import Record, Run


def held(op: str, run: Run) -> tuple[Difference, ...] | None:
    """Where the count of a run differs from its ledger; None where nothing was counted."""
    row = find_op(op).implementation(run.impl)
    if not run.counted or row is None or row.io is None:
        return None
    return differences(run.counted, row.io.ledger(run.workload, run.uses))


def explained(record: Record) -> bool:
    """Whether every difference between a count and its ledger has a reason; true where nothing differs."""
    found = (difference for run in record.runs for difference in held(record.op, run) or ())
    return all(difference.reason is not None for difference in found)
