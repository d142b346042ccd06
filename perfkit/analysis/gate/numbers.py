"""The gate on numbers: how far each may grow, and what it means that one came, went or changed its source."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from perfkit.analysis.gate.check import GATED, Check, CheckStatus, change, share
from perfkit.analysis.gate.limits import Limits
from perfkit.analysis.io_check import SLACK_BYTES
from perfkit.model.cache import STAYS
from perfkit.ops import find_op
from perfkit.record import BY_TAG, Number, Run

#: An error up to this many times the eager path's is correct, and one that grows by more is worth a word.
FACTOR: Final = 2
#: Modelled DRAM reads up to this share above compulsory: nothing is read again.
ONCE: Final = 0.01

_RANK: Final = {"unavailable": 0, "datasheet": 1, "modelled": 1, "counted": 2, "measured": 3}

#: How two runs can have been timed differently, and the words for yes and no.
WAYS: Final = {
    "cold": ("L2 cold", "L2 warm"),
    "graph": ("timed in a CUDA graph", "timed without a CUDA graph"),
}


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """How far a number may be from the baseline's: a share of it plus a fixed slack; and why so far."""

    share: float
    slack: float = 0.0
    why: str = ""

    def __str__(self) -> str:
        text = share(self.share) if self.share or not self.slack else ""
        slack = f"{SLACK_BYTES >> 20} MiB" if self.slack else ""
        return " + ".join(part for part in (text, slack) if part) + (f": {self.why}" if self.why else "")


def number_checks(op: str, base: Run, current: Run, limits: Limits) -> Iterator[Check]:
    """A check for every gated number that either run has."""
    for tag in GATED:
        old, new = base.numbers.get(tag), current.numbers.get(tag)
        if old is None or old.value is None:
            if new is not None and new.value is not None:
                reason = f"not in the baseline: {_why_not(old)}"
                yield _check(tag, base, None, new.value, "noted", reason)
        elif new is None or new.value is None:
            yield _gone(tag, base, old, new)
        elif tag in ("dram_read", "dram_write") and (way := unlike(base, current, ("cold",))):
            yield _check(tag, base, old.value, new.value, "warn", f"not compared: {way}")
        else:
            yield _sourced(_compared(op, tag, base, current, limits), old, new)


def unlike(base: Run, current: Run, ways: Sequence[str] = tuple(WAYS)) -> str | None:
    """How the two were run differently, of `ways`; None where they were not, or not timed."""
    if base.timing is None or current.timing is None:
        return None
    for way in ways:
        one, two = getattr(base.timing, way), getattr(current.timing, way)
        yes, no = WAYS[way]
        if one != two:
            return f"{yes if one else no} in the baseline, {yes if two else no} now"
    return None


def allowance(op: str, tag: str, base: Run, limits: Limits) -> Allowance:
    """What `tag` of a run may grow by."""
    if tag in ("dram_read", "dram_write"):
        return _dram(op, base, limits)
    kind = GATED[tag]
    if kind in ("work", "kernels"):
        return Allowance(share=0.0)
    return Allowance(share=limits.memory if kind == "memory" else limits.traffic)


def _dram(op: str, base: Run, limits: Limits) -> Allowance:
    """Measured DRAM bytes: the same in every run only where the cache has no say."""
    row = find_op(op).implementation(base.impl)
    modelled = base.numbers.get("dram_read_modelled")
    note = (modelled.reason if modelled is not None else None) or ""
    if row is not None and row.materialises and STAYS not in note:
        return Allowance(share=limits.traffic, slack=SLACK_BYTES)
    least = base.value("dram_read_compulsory")
    if modelled is None or modelled.value is None or least is None:
        why = "no L2 model says what is read again, and what is varies"
    elif modelled.value <= least * (1 + ONCE):
        return Allowance(share=limits.traffic, slack=SLACK_BYTES)
    else:
        why = "the L2 model predicts re-reads, and they vary"
    return Allowance(share=limits.dram, slack=SLACK_BYTES, why=why)


def _compared(op: str, tag: str, base: Run, current: Run, limits: Limits) -> Check:
    """Both have the number: is it within its allowance."""
    old, new = base.numbers[tag].value, current.numbers[tag].value
    assert old is not None
    assert new is not None
    if tag == "error":
        return _error(base, current, old, new)
    if GATED[tag] == "work":
        same = old == new
        reason = "the same" if same else "it defines the work, and may not change"
        return _check(tag, base, old, new, "pass" if same else "fail", reason)
    allowed = allowance(op, tag, base, limits)
    room = allowed.share * old + allowed.slack
    if new - old > room:
        return _check(tag, base, old, new, "fail", f"beyond {allowed}" if room else "more than before")
    if old - new > room:
        return _check(
            tag, base, old, new, "improved", f"less by more than {allowed}" if room else "less than before"
        )
    return _check(tag, base, old, new, "pass", f"within {allowed}" if room else "the same")


def _error(base: Run, current: Run, old: float, new: float) -> Check:
    """Correctness: growth alone is no failure while the error stays below what the eager path is allowed."""
    status: CheckStatus = "pass"
    reason = f"within {FACTOR}x the baseline's"
    eager = current.value("eager_error")
    if new > FACTOR * old:
        reason = f"more than {FACTOR}x the baseline's"
        if eager is None:
            status, reason = (
                "warn",
                f"{reason}; what is allowed is not known: {_lack(current, 'eager_error')}",
            )
        elif new > FACTOR * eager:
            status, reason = "fail", f"{reason}, and above the allowed {FACTOR}x eager ({FACTOR * eager:.3g})"
        else:
            status, reason = "warn", f"{reason}, but within {FACTOR}x eager ({FACTOR * eager:.3g})"
    elif new < old / FACTOR:
        status, reason = "improved", f"below 1/{FACTOR} of the baseline's"
    return _check("error", base, old, new, status, reason)


def _gone(tag: str, base: Run, old: Number, new: Number | None) -> Check:
    """A number that is no longer there: what follows from the code must be, what sensors give may not."""
    by_sensor = old.provenance == "measured"
    reason = f"{old.provenance} in the baseline, unavailable now: {_why_not(new)}"
    return _check(tag, base, old.value, None, "warn" if by_sensor else "fail", reason)


def _sourced(check: Check, old: Number, new: Number) -> Check:
    """The check with a warning where the number now comes from a worse source."""
    if _RANK[new.provenance] >= _RANK[old.provenance]:
        return check
    source = f"{old.provenance} in the baseline, {new.provenance} now"
    status: CheckStatus = "fail" if check.status == "fail" else "warn"
    return msgspec.structs.replace(check, status=status, reason=f"{source}; {check.reason}")


def _why_not(number: Number | None) -> str:
    return (number.reason if number is not None else None) or "it is not in the record"


def _lack(run: Run, tag: str) -> str:
    return _why_not(run.numbers.get(tag))


def _check(
    tag: str, base: Run, old: float | None, new: float | None, status: CheckStatus, reason: str
) -> Check:
    quantity = BY_TAG[tag]
    return Check(
        kind=GATED[tag],
        tag=tag,
        impl=base.impl,
        workload=base.workload,
        what=quantity.label,
        status=status,
        reason=reason,
        base=old,
        current=new,
        change=change(old, new),
        hint=quantity.hint,
    )
