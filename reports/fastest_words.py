"""The fastest implementation in words, and how near to its roof it is; several that cannot be told apart."""

from collections.abc import Iterator, Sequence

from perfkit.analysis.comparison import workloads
from perfkit.analysis.placement import Placement
from perfkit.analysis.speed import compare_times
from perfkit.analysis.study import Finding, Study
from perfkit.model.units import Hint, show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.reports.places import every, joined, place, places


def fastest_words(study: Study) -> tuple[str, ...]:
    """The fastest implementation and how near to its roof it is: a sentence for each set of winners."""
    return tuple(_fastest(study))


def _fastest(study: Study) -> Iterator[str]:
    among = workloads(study)
    winners: dict[tuple[str, ...], list[tuple[AttentionWorkload, Finding]]] = {}
    rivals = 0
    for workload in among:
        ranked = _ranked(study, workload)
        rivals = max(rivals, len(ranked))
        if ranked:
            level = {f.placement.run.impl for f in ranked if _level(ranked[0].placement, f.placement)}
            names = tuple(dict.fromkeys(r.impl for r in study.record.runs if r.impl in level))
            winners.setdefault(names, []).append((workload, ranked[0]))
    for names, won in winners.items():
        timed = won[0][1].placement.time_s is not None
        best = _range([f for _, f in won])
        if len(won) == 1:
            best = f"{won[0][1].placement.run.impl} " * (len(names) > 1) + _one(won[0][1])
        yield f"{_lead(names, timed, rivals)}{_where([w for w, _ in won], among)}: {best}."


def _where(won: Sequence[AttentionWorkload], among: Sequence[AttentionWorkload]) -> str:
    if len(among) == 1:
        return ""
    if len(won) == len(among):
        return f" at {every(among)}"
    return f" at {places(place(w, among) for w in won)}"


def _lead(names: Sequence[str], timed: bool, rivals: int) -> str:
    one = len(names) == 1
    if not timed:
        return f"By the model {joined(names)} {'has' if one else 'have'} the least time"
    if rivals == 1:
        return f"{names[0]} took"
    return (
        f"{names[0]} is the fastest" if one else f"{joined(names)} are the fastest and cannot be told apart"
    )


def _ranked(study: Study, workload: AttentionWorkload) -> list[Finding]:
    """What can be ranked at `workload`, shortest time first; by the least time where nothing was measured."""
    here = [f for f in study.findings if f.placement.run.setting == workload and not f.placement.invalid]
    timed = [f for f in here if f.placement.run.status == "measured" and f.placement.time_s]
    if timed:
        return sorted(timed, key=lambda f: f.placement.time_s or 0.0)
    modelled = [f for f in here if f.placement.run.status == "modelled" and f.placement.least_s]
    return sorted(modelled, key=lambda f: f.placement.least_s or 0.0)


def _level(best: Placement, other: Placement) -> bool:
    """Whether `other` is as fast as the best, as far as the samples tell."""
    if best is other:
        return True
    if best.run.timing is None or other.run.timing is None:
        return best.time_s is None and best.least_s == other.least_s
    _, verdict = compare_times(best.run.timing, other.run.timing)
    return verdict.status != "slower"


def _one(finding: Finding) -> str:
    """Time, rate, share of the roof and bound of one run."""
    placement = finding.placement
    if placement.time_s is None:
        parts = [show(placement.least_s, "time"), f"{show(placement.best, 'flop_rate')} at best"]
    else:
        parts = [show(placement.time_s, "time"), show(placement.achieved, "flop_rate"), _share(finding)]
    return ", ".join([*(part for part in parts if part), f"bound by {placement.bound or 'nothing known'}"])


def _share(finding: Finding) -> str:
    share, roof = finding.metrics["efficiency_clock"].value, finding.placement.roof
    if share is None or roof is None:
        return ""
    clock = "the clock of the run" if roof.source == "run clock" else "the data sheet's clock"
    return f"{show(share, 'percent')} of its roof at {clock}"


def _range(findings: Sequence[Finding]) -> str:
    """The shares of the roof over several runs; their rates where no share is known."""
    shares = [s for f in findings if (s := f.metrics["efficiency_clock"].value) is not None]
    if shares:
        return f"{_ends(shares, 'percent')} of the roof"
    rates = [r for f in findings if (r := f.placement.achieved or f.placement.best) is not None]
    return _ends(rates, "flop_rate") if rates else "no rate is known"


def _ends(values: Sequence[float], hint: Hint) -> str:
    """The least and the greatest, said once where they look alike."""
    return " to ".join(dict.fromkeys(show(value, hint) for value in (min(values), max(values))))
