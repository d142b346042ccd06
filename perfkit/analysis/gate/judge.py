"""The gate: a record held against an earlier one, hard on what is deterministic, soft on time.

What makes two records incomparable is an error; what is merely different, such as a driver, is a note.
"""

from collections.abc import Iterator, Sequence

import msgspec

from perfkit.analysis.gate.check import Check, CheckStatus
from perfkit.analysis.gate.limits import Limits
from perfkit.analysis.gate.numbers import number_checks
from perfkit.analysis.gate.runs import run_check, subject, well
from perfkit.analysis.gate.timing import time_check
from perfkit.analysis.gate.verdicts import verdict_checks
from perfkit.analysis.pairs import Pair, key, pairs
from perfkit.analysis.study import Study
from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Run


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """All checks, in the order of the baseline's rows, and what a reader must know about the two records."""

    base: Record
    current: Record
    limits: Limits
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def invalid(self) -> bool:
        """Whether a measurement of the current record cannot be true."""
        return any(check.invalid for check in self.checks)

    @property
    def judged(self) -> tuple[Check, ...]:
        """The checks for which there was something to compare."""
        return tuple(check for check in self.checks if check.status != "noted")

    @property
    def workloads(self) -> tuple[AttentionWorkload, ...]:
        """The workloads that were checked, each once."""
        return tuple(dict.fromkeys(check.workload for check in self.checks))

    @property
    def exit_code(self) -> int:
        """4 a measurement that cannot be true, 1 a check that failed, else 0."""
        if self.invalid:
            return 4
        return 1 if self.of("fail") else 0

    def of(self, status: CheckStatus) -> tuple[Check, ...]:
        """The checks that ended so."""
        return tuple(check for check in self.checks if check.status == status)


def gate(base: Study, current: Study, limits: Limits) -> GateResult:
    """Hold `current` against `base`.

    UsageError where op, device profile, backend or dtype differ, or the baseline is empty.
    """
    _comparable(base.record, current.record)
    found: list[Check] = []
    seen: dict[tuple[str, AttentionWorkload], int] = {}
    for pair in pairs(base, current):
        name = key(subject(pair))
        repeat = seen[name] = seen.get(name, -1) + 1
        checks = _pair_checks(base.record.op, pair, limits)
        found += [msgspec.structs.replace(check, repeat=repeat) for check in checks]
    kept = (check for check in found if not _ignored(check, limits))
    return GateResult(
        base=base.record,
        current=current.record,
        limits=limits,
        checks=tuple(_strict(check) if limits.strict else check for check in kept),
        notes=(*_ignore_notes(found, limits), *_differences(base.record, current.record)),
    )


def _comparable(base: Record, current: Record) -> None:
    hint = "gate like against like: make the baseline anew in the way of the current record"
    if not base.runs:
        raise UsageError("there is no run in the baseline", "make it anew")
    for what, one, two in (
        ("ops", base.op, current.op),
        ("device profiles", base.device.name, current.device.name),
        ("backends", base.backend, current.backend),
        ("dtypes", _dtypes(base), _dtypes(current) or _dtypes(base)),
    ):
        if one != two:
            raise UsageError(f"the {what} differ: {one} in the baseline, {two} in the current record", hint)


def _dtypes(record: Record) -> str:
    return ", ".join(sorted({run.workload.dtype for run in record.runs}))


def _pair_checks(op: str, pair: Pair, limits: Limits) -> Iterator[Check]:
    """The check on the run itself, and all others as far as there are results."""
    yield run_check(pair)
    old, new = pair
    if old is None or new is None:
        return
    base, current = old.placement, new.placement
    if well(base.run) and well(current.run):
        yield from number_checks(op, base.run, current.run, limits)
        yield from verdict_checks(old, new)
        timed = time_check(base, current, limits)
        if timed is not None:
            yield timed
    elif not well(base.run) and not well(current.run):
        # What is modelled of a run that failed is as deterministic as ever.
        yield from number_checks(op, *_modelled(base.run, current.run), limits)


def _modelled(base: Run, current: Run) -> tuple[Run, Run]:
    """The two runs with the numbers that are modelled in both, and no others."""
    both = {
        tag
        for tag, number in base.numbers.items()
        if number.provenance == "modelled" and current.value(tag) is not None
    }
    one, two = (
        msgspec.structs.replace(run, numbers={tag: n for tag, n in run.numbers.items() if tag in both})
        for run in (base, current)
    )
    return one, two


def _ignored(check: Check, limits: Limits) -> bool:
    return check.tag in limits.ignore or f"impl:{check.impl}" in limits.ignore


def _ignore_notes(found: Sequence[Check], limits: Limits) -> Iterator[str]:
    """How many checks each entry left out; one that leaves out nothing may be a typing error."""
    for entry in limits.ignore:
        count = sum(entry in (check.tag, f"impl:{check.impl}") for check in found)
        left_out = f"{count} check{'' if count == 1 else 's'}" if count else "which is in neither record"
        yield f"ignored: {entry}, {left_out}"


def _strict(check: Check) -> Check:
    if check.status != "warn":
        return check
    return msgspec.structs.replace(check, status="fail", reason=f"strict: {check.reason}")


def _differences(base: Record, current: Record) -> Iterator[str]:
    """What else is different, and may be why."""
    if base.device != current.device:
        yield f"the device profile {base.device.name} was edited since the baseline"
    machine = ("gpu", "cpu", "driver", "torch", "triton", "cuda_runtime", "cudnn")
    for name in ("perfkit", *(machine if base.backend != "model" else ())):
        one, two = getattr(base.environment, name), getattr(current.environment, name)
        if one != two:
            yield f"{name}: {one or '-'} in the baseline, {two or '-'} now"
