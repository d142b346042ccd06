"""What perfkit can do on a machine, from the doctor's findings: yes, no or unknown, because ..., fix."""

import msgspec

from perfkit.measure.doctor import Finding, profiler_fix
from perfkit.measure.machine import Absent, Machine


class Ability(msgspec.Struct, frozen=True, kw_only=True):
    """Something perfkit can do here: yes, no, or unknown (None), with the reason."""

    what: str
    able: bool | None
    because: str = ""
    fix: str = ""


def abilities(machine: Machine, found: list[Finding]) -> list[Ability]:
    """What perfkit can do on `machine`, given its findings: modelling, timing, counters, energy."""
    by_subject = {one.subject: one for one in found}
    core = by_subject["perfkit"]
    model = Ability(what="modelled reports", able=core.status == "ok", because=core.text, fix=core.fix)
    if core.status == "ok":
        model = Ability(what="modelled reports", able=True)
    measured = _measured(by_subject)
    return [model, measured, _counted(machine, measured), _energy(machine, measured)]


def _measured(found: dict[str, Finding]) -> Ability:
    for subject in ("GPU", "torch", "triton"):
        one = found[subject]
        if one.status in ("fail", "absent") or (subject == "torch" and one.status == "warn"):
            because = f"{subject}: {one.text}"
            return Ability(what="measured times", able=False, because=because, fix=one.fix)
    return Ability(what="measured times", able=True)


def _counted(machine: Machine, measured: Ability) -> Ability:
    what = "hardware counters"
    if not measured.able:
        return Ability(what=what, able=False, because="nothing can be measured")
    access = machine.counters
    if access is None:
        return Ability(what=what, able=False, because="no GPU to read them from")
    if machine.profilers and access.allowed:
        because = f"{', '.join(machine.profilers)} may hold them"
        return Ability(what=what, able=None, because=because, fix=profiler_fix(machine.profilers))
    return Ability(
        what=what,
        able=access.allowed,
        because="" if access.allowed else access.reason,
        fix="" if access.allowed else access.fix,
    )


def _energy(machine: Machine, measured: Ability) -> Ability:
    if not measured.able:
        return Ability(what="energy", able=False, because="nothing can be measured")
    if isinstance(machine.gpu, Absent):
        return Ability(what="energy", able=False, because=machine.gpu.reason, fix=machine.gpu.fix)
    if machine.gpu.energy_j is None:
        because = machine.gpu.absent.get("energy_j", "the driver gives no energy counter")
        return Ability(what="energy", able=False, because=because)
    return Ability(what="energy", able=True)
