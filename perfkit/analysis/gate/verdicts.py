"""The gate on the IO check: a verdict that held must hold."""

from collections.abc import Iterator

from perfkit.analysis.gate.check import IO_CHECK, Check, CheckStatus
from perfkit.analysis.study import Finding
from perfkit.analysis.verdict import Verdict


def verdict_checks(base: Finding, current: Finding) -> Iterator[Check]:
    """A check for every verdict that either finding has, by its name."""
    before = {verdict.check: verdict for verdict in base.verdicts}
    now = {verdict.check: verdict for verdict in current.verdicts}
    for name in dict.fromkeys((*before, *now)):
        status, reason = _judged(before.get(name), now.get(name))
        old, new = before.get(name), now.get(name)
        yield Check(
            kind="IO check",
            tag=IO_CHECK,
            impl=base.placement.run.impl,
            workload=base.placement.run.workload,
            what=name,
            status=status,
            reason=reason,
            base=None if old is None else old.deviation,
            current=None if new is None else new.deviation,
            hint="percent",
        )


def _judged(old: Verdict | None, new: Verdict | None) -> tuple[CheckStatus, str]:
    """Held and is violated: fail. Held and cannot be told any more: warn. Violated and holds: improved."""
    before, now = _status(old), _status(new)
    said = f"{now} now, {before} in the baseline"
    why = f": {new.reason}" if new is not None else ""
    match before, now:
        case "holds", "violated":
            return "fail", f"{said}{why}"
        case "holds", "undecided" | "unchecked" | "gone" | "found":
            return "warn", f"{said}{why}"
        case "violated", "holds":
            return "improved", said
        case "violated", "violated":
            return "pass", "violated, as in the baseline"
        case _, "violated":
            return "warn", f"{said}{why}"
        case ("holds", "holds") | ("found", "found"):
            return "pass", now
        case _ if before == now:
            return "noted", f"{now}{why}"
        case _:
            return "noted", f"{said}{why}"


def _status(verdict: Verdict | None) -> str:
    return "gone" if verdict is None else verdict.status
