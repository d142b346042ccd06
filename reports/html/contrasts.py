"""Comparisons in the HTML report: candidates beside a baseline, and what changed since an earlier record."""

from collections.abc import Iterator, Sequence
from typing import Final

from perfkit.analysis.comparison import Comparison, Contrast, Group
from perfkit.analysis.study import Finding
from perfkit.model.units import show, significant
from perfkit.record import Provenance
from perfkit.reports.contrast_words import modelled_ratio, modelled_speedup
from perfkit.reports.html.cells import MARKS, Cell, Column, Looks, Row, Table, absent, columns, shown, words
from perfkit.reports.places import common, place
from perfkit.reports.ratios import ratio_text

#: The names of the ratios as heads of columns.
_RATIO_NAMES: Final = {
    "dram": "DRAM", "l2": "SM<->L2", "flops": "FLOPs", "peak_memory": "memory", "energy": "energy",
}  # fmt: skip

_STATUS: Final = {
    "faster": "good",
    "slower": "bad",
    "same": "",
    "undecided": "undecided",
    "unmeasured": "unchecked",
}


def contrasts(comparison: Comparison, looks: Looks, caption: str = "Comparison") -> Table:
    """Per workload the baseline and each candidate: time, speed-up with its interval, verdict, ratios."""
    among = [group.workload for group in comparison.groups]
    rows: list[Row] = []
    for group in comparison.groups:
        where = place(group.workload, among) if len(set(among)) > 1 else ""
        rows.append(Row(heading=f"{where or common([group.workload])}, against {group.label}"))
        rows.append(Row(cells=_base(group, looks), kind="base"))
        rows += [Row(cells=tuple(_contrast(group, one, looks))) for one in group.contrasts]
    return Table(caption=caption, columns=_head("implementation"), rows=tuple(rows))


def changed(comparison: Comparison, looks: Looks, caption: str) -> Table:
    """Each run beside the one of the earlier record: one row a run, with both times."""
    among = [group.workload for group in comparison.groups]
    rows: list[Row] = []
    for at, group in enumerate(comparison.groups):
        where = place(group.workload, among)
        if where and (at == 0 or among[at - 1] != group.workload):
            rows.append(Row(heading=where))
        for one in group.contrasts:
            name, *rest = _contrast(group, one, looks)
            rows.append(Row(cells=(name, _time(group.baseline), *rest)))
    head = columns(
        "implementation", "time before", "time", "speed-up", "interval", "verdict", *_RATIO_NAMES.values(),
        text=("verdict",),
    )  # fmt: skip
    return Table(caption=caption, columns=head, rows=tuple(rows))


def _head(first: str) -> tuple[Column, ...]:
    return columns(
        first, "time", "speed-up", "interval", "verdict", *_RATIO_NAMES.values(), text=("verdict",)
    )


def _base(group: Group, looks: Looks) -> tuple[Cell, ...]:
    run = group.baseline.placement.run
    name = Cell(text=run.impl, look=looks.get(run.impl), kind="impl")
    rest = (Cell(text="1", number=True) for _ in _RATIO_NAMES)
    return (name, _time(group.baseline), Cell(text="1", number=True), words(""), words("baseline"), *rest)


def _contrast(group: Group, one: Contrast, looks: Looks) -> Iterator[Cell]:
    run = one.candidate.placement.run
    yield Cell(text=run.impl, look=looks.get(run.impl), kind="impl")
    yield _time(one.candidate)
    ratio, reason = one.speedup, one.verdict.reason
    provenance: Provenance = "modelled" if modelled_speedup(one) else "measured"
    yield shown(ratio.value if ratio else None, "ratio", provenance, reason)
    if ratio is None or ratio.low is None or ratio.high is None:
        yield absent(reason)
    else:
        ends = f"[{significant(ratio.low, 4)}, {significant(ratio.high, 4)}]"
        yield Cell(text=ends, kind="measured", number=True)
    yield words(one.verdict.status, _STATUS[one.verdict.status], reason)
    for name in _RATIO_NAMES:
        formulas = modelled_ratio(group, one, name)
        yield _ratio(one.ratios.get(name), "modelled" if formulas else "measured")


def _ratio(value: float | None, provenance: Provenance) -> Cell:
    """Candidate over baseline as people say it, `256x fewer`; all digits in its title."""
    if value is None:
        return absent("not known of both")
    return Cell(
        text=ratio_text(value, "less") + MARKS[provenance], kind=provenance, note=f"{value:.6g}x", number=True
    )


def _time(finding: Finding) -> Cell:
    p = finding.placement
    if p.invalid:
        return Cell(text="INVALID", kind="bad", note=p.invalid, number=True)
    if p.time_s is None:
        if p.run.status != "modelled":
            return Cell(text=p.run.status, kind="bad", note=p.run.reason, number=True)
        return shown(p.least_s, "time", "modelled", "no floor is known", "modelled: the least time")
    low, high = p.run.value("time_low"), p.run.value("time_high")
    note = f"95 % interval {show(low, 'time')} to {show(high, 'time')}" if low and high else None
    return shown(p.time_s, "time", "measured", "", note)


def tally(comparisons: Sequence[Comparison]) -> tuple[tuple[str, int], ...]:
    """How many contrasts ended how: (status, count), only those that there are."""
    found = [one.verdict.status for c in comparisons for group in c.groups for one in group.contrasts]
    order = ("faster", "slower", "same", "undecided", "unmeasured")
    return tuple((status, found.count(status)) for status in order if status in found)
