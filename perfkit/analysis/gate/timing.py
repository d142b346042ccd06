"""The gate on time: it fails only where a robust comparison says slower."""

from typing import Final

from perfkit.analysis.gate.check import Check, CheckStatus, change, share
from perfkit.analysis.gate.limits import Limits
from perfkit.analysis.gate.numbers import unlike
from perfkit.analysis.placement import Placement
from perfkit.analysis.speed import SpeedStatus, compare_times

_STATUS: Final[dict[SpeedStatus, CheckStatus]] = {
    "slower": "fail", "faster": "improved", "same": "pass", "undecided": "warn", "unmeasured": "warn",
}  # fmt: skip


def time_check(base: Placement, current: Placement, limits: Limits) -> Check | None:
    """The times of two runs; None where the baseline has none and the current run neither.

    There is none either where the current time is INVALID: that is its own check.
    """
    old, new = base.run.timing, current.run.timing
    if current.invalid or (old is None and new is None):
        return None
    if old is None:
        return _check(base, current, "noted", "no time in the baseline")
    if new is None:
        found = current.run.numbers.get("time")
        why = (found.reason if found is not None else None) or "it is not in the record"
        return _check(base, current, "warn", f"measured in the baseline, unavailable now: {why}")
    if base.invalid:
        return _check(base, current, "warn", f"not compared: the baseline is INVALID: {base.invalid}")
    if different := unlike(base.run, current.run):
        return _check(base, current, "warn", f"not compared: {different}")
    _, verdict = compare_times(old, new, limits.time, together=False)
    reason = verdict.reason
    if verdict.status in ("slower", "faster"):
        reason = f"{verdict.status} by more than {share(limits.time)}: {reason}"
    return _check(base, current, _STATUS[verdict.status], reason)


def _check(base: Placement, current: Placement, status: CheckStatus, reason: str) -> Check:
    old, new = (p.run.timing.median_s if p.run.timing is not None else None for p in (base, current))
    return Check(
        kind="time",
        tag="time",
        impl=base.run.impl,
        workload=base.run.workload,
        what="time",
        status=status,
        reason=reason,
        base=old,
        current=new,
        change=change(old, new),
        hint="time",
    )
