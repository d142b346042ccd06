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


def uncounted(run: Run) -> str | None:
    """Why a run was not counted though that was asked for; None where it was, or was not to be."""
    number = run.numbers.get("l2_read_counted")
    if run.counted or number is None or not number.reason or number.reason.startswith("not counted here"):
        return None
    return number.reason


def explained(record: Record, complete: bool = True) -> bool:
    """Whether every difference between a count and its ledger has a reason, and nothing is left uncounted.

    Not `complete`: a count that could not be made is no fault, because nobody asked for it.
    """
    if complete and any(uncounted(run) is not None for run in record.runs):
        return False
    found = (difference for run in record.runs for difference in held(record.op, run) or ())
    return all(difference.reason is not None for difference in found)
