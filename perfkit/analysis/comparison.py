"""Implementations beside a baseline: ratios, the speed-up with its interval, and whether it is certain."""

from collections.abc import Sequence
from typing import Final

import msgspec

from perfkit.analysis.pairs import pairs
from perfkit.analysis.speed import Ratio, SpeedVerdict, compare_times
from perfkit.analysis.study import Finding, Study
from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run

#: Quantities whose ratio is of interest: name -> tags that are summed. The better known ones come first.
RATIOS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "dram": (("dram_read", "dram_write"), ("dram_read_modelled", "dram_write_modelled")),
    "l2": (("l2_read", "l2_write"), ("l2_read_modelled", "l2_write_modelled")),
    "flops": (("flops_tensor",), ("flops_issued",)),
    "peak_memory": (("peak_memory",),),
    "energy": (("energy",),),
}


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate beside the baseline.

    `speedup` is the baseline's time over the candidate's (above 1 the candidate is faster), None where either
    has no time. `ratios` are candidate over baseline, by the keys of RATIOS, where both are known and of the
    same provenance.
    """

    label: str
    candidate: Finding
    speedup: Ratio | None
    verdict: SpeedVerdict
    ratios: dict[str, float]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline of one workload and what is compared with it."""

    workload: AttentionWorkload
    label: str
    baseline: Finding
    contrasts: tuple[Contrast, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All groups, in the order of the workloads, with what a reader must know about them."""

    groups: tuple[Group, ...]
    threshold: float
    notes: tuple[str, ...] = ()


def workloads(study: Study) -> tuple[AttentionWorkload, ...]:
    """The workloads that were asked for in a record, each once, in its order."""
    return tuple(dict.fromkeys(run.setting for run in study.record.runs))


def compare(study: Study, baseline: str, threshold: float) -> Comparison:
    """Every run of a record beside the one of `baseline` on the same workload.

    UsageError where no run is of `baseline`, or nothing stands beside it.
    """
    groups = []
    for workload in workloads(study):
        findings = [f for f in study.findings if f.placement.run.setting == workload]
        base = next((f for f in findings if f.placement.run.impl == baseline), None)
        if base is None:
            raise UsageError(
                f"no run of '{baseline}' to compare with",
                f"in the record: {', '.join(dict.fromkeys(f.placement.run.impl for f in findings))}",
            )
        others = [f for f in findings if f is not base]
        contrasts = tuple(_contrast(f.placement.run.impl, base, f, threshold, together=True) for f in others)
        groups.append(Group(workload=workload, label=baseline, baseline=base, contrasts=contrasts))
    if not any(group.contrasts for group in groups):
        raise UsageError(f"only '{baseline}' is there", "name another implementation to compare with it")
    return Comparison(groups=tuple(groups), threshold=threshold)


def compare_records(old: Study, new: Study, names: tuple[str, str], threshold: float) -> Comparison:
    """Every run of `new` beside the run of `old` of the same implementation and workload.

    UsageError where the two have none in common.
    """
    found = list(pairs(old, new))
    both = [(before, after) for before, after in found if before is not None and after is not None]
    if not both:
        raise UsageError(
            f"{names[0]} and {names[1]} have no implementation and workload in common",
            "compare records of the same workload",
        )
    order = {id(finding): at for at, finding in enumerate(new.findings)}
    both.sort(key=lambda pair: order[id(pair[1])])
    notes = list(_differences(old, new))
    for name, side, other in ((names[0], 0, 1), (names[1], 1, 0)):
        alone = (pair[side] for pair in found if pair[other] is None)
        impls = dict.fromkeys(finding.placement.run.impl for finding in alone if finding is not None)
        notes += [f"{impl} is in {name} only" for impl in impls]
    groups = tuple(_beside(before, after, names, threshold) for before, after in both)
    return Comparison(groups=groups, threshold=threshold, notes=tuple(notes))


def _beside(before: Finding, after: Finding, names: tuple[str, str], threshold: float) -> Group:
    """One run of the newer record beside the same of the older one."""
    run = after.placement.run
    contrast = _contrast(f"{run.impl} {names[1]}", before, after, threshold, together=False)
    label = f"{run.impl} {names[0]}"
    return Group(workload=run.workload, label=label, baseline=before, contrasts=(contrast,))


def _differences(old: Study, new: Study) -> Sequence[str]:
    """What makes two records less than comparable."""
    notes = []
    a, b = old.record, new.record
    if a.device.name != b.device.name:
        notes.append(f"different devices: {a.device.name} and {b.device.name}")
    if a.backend != b.backend:
        notes.append(f"different backends: {a.backend} and {b.backend}")
    for name in ("driver", "torch", "triton", "cuda_runtime", "cudnn"):
        one, two = getattr(a.environment, name), getattr(b.environment, name)
        if one != two:
            notes.append(f"{name} {one} and {two}")
    return notes


def _contrast(label: str, base: Finding, candidate: Finding, threshold: float, *, together: bool) -> Contrast:
    one, two = base.placement, candidate.placement
    broken = next((p for p in (one, two) if p.invalid or p.run.status != "measured"), None)
    if broken is not None or one.run.timing is None or two.run.timing is None:
        speedup, verdict = _unmeasured(base, candidate)
    else:
        timings = one.run.timing, two.run.timing
        speedup, verdict = compare_times(*timings, threshold, together=together)
    return Contrast(
        label=label,
        candidate=candidate,
        speedup=speedup,
        verdict=verdict,
        ratios=_ratios(one.run, two.run),
    )


def _unmeasured(base: Finding, candidate: Finding) -> tuple[Ratio | None, SpeedVerdict]:
    """No two times to compare: why, and the ratio of the least times where both are only modelled."""
    for finding in (base, candidate):
        placement = finding.placement
        if placement.invalid:
            reason = f"{placement.run.impl} is INVALID: {placement.invalid}"
            return None, SpeedVerdict(status="unmeasured", reason=reason)
        if placement.run.status not in ("measured", "modelled"):
            reason = (
                f"{placement.run.impl} {placement.run.status}: {placement.run.reason or 'no reason given'}"
            )
            return None, SpeedVerdict(status="unmeasured", reason=reason)
    one, two = base.placement.least_s, candidate.placement.least_s
    verdict = SpeedVerdict(status="unmeasured", reason="modelled: the ratio of the least times")
    return (Ratio(value=one / two) if one and two else None), verdict


def _ratios(base: Run, candidate: Run) -> dict[str, float]:
    found = {}
    for name, choices in RATIOS.items():
        for tags in choices:
            one, two = total(base, tags), total(candidate, tags)
            if one and two is not None:
                found[name] = two / one
                break
    return found


def total(run: Run, tags: Sequence[str]) -> float | None:
    """The sum of the numbers `tags`; None where one is absent."""
    values = [run.value(tag) for tag in tags]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
