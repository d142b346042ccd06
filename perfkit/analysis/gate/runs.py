"""The gate on rows: which run belongs to which, and whether there still is a result that can be true."""

from perfkit.analysis.gate.check import RUN, Check, CheckStatus
from perfkit.analysis.pairs import Pair
from perfkit.record import Run


def subject(pair: Pair) -> Run:
    """The run that a pair is about: the baseline's, or the new one."""
    finding = pair[0] or pair[1]
    assert finding is not None
    return finding.placement.run


def well(run: Run) -> bool:
    """Whether the run has a result."""
    return run.status in ("measured", "modelled")


def run_check(pair: Pair) -> Check:
    """Is there a result, as there was, and can it be true."""
    run = subject(pair)
    old, new = (finding.placement if finding is not None else None for finding in pair)
    status, reason = _ended(old.run if old else None, new.run if new else None)
    invalid = new.invalid if new is not None else None
    if invalid:
        status, reason = "fail", f"INVALID: {invalid}"
    return Check(
        kind="run",
        tag=RUN,
        impl=run.impl,
        workload=run.workload,
        what="run",
        status=status,
        reason=reason,
        invalid=bool(invalid),
    )


def _ended(old: Run | None, new: Run | None) -> tuple[CheckStatus, str]:
    """What it is worth how a row ended then and now."""
    if new is None:
        assert old is not None
        said = f"missing: {old.status} in the baseline, not in the current record"
        return ("fail" if well(old) else "noted"), said
    why = f": {new.reason or 'no reason given'}"
    if old is None:
        # A wrong result is wrong, with or without something to compare it with.
        said = f"new: {new.status}{'' if well(new) else why}"
        return ("fail" if new.status == "incorrect" else "noted"), said
    said = f"{new.status} now, {old.status} in the baseline"
    if well(old):
        return ("pass", new.status) if well(new) else ("fail", f"{said}{why}")
    if well(new):
        return "improved", said
    return ("pass" if new.status == old.status else "warn"), f"{said}{why}"
