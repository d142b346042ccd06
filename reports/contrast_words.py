"""One candidate beside its baseline in words: how much faster, how sure, at what cost, and where not."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from perfkit.analysis.comparison import RATIOS, Comparison, Contrast, Group, total
from perfkit.analysis.speed import Ratio
from perfkit.model.units import show, significant
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.reports.places import every, joined, noun, place, places
from perfkit.reports.ratios import FEWER, inverse, numbers_text, ratio_text

#: Ratios from this to its inverse are "about as many".
_NEAR: Final = 1.05
_ORDER: Final = ("faster", "same", "undecided", "slower", "only modelled", "not compared")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate at one workload, with the group that it belongs to."""

    group: Group
    contrast: Contrast


def pairs(comparison: Comparison) -> tuple[tuple[Row, ...], ...]:
    """The rows of each baseline and candidate over all workloads, in the order of their first one."""
    found: dict[tuple[str, str], list[Row]] = {}
    for group in comparison.groups:
        for contrast in group.contrasts:
            row = Row(group=group, contrast=contrast)
            found.setdefault((group.label, contrast.label), []).append(row)
    return tuple(tuple(rows) for rows in found.values())


def modelled_speedup(contrast: Contrast) -> bool:
    """Whether the speed-up is a ratio of least times, of which nothing was measured."""
    return contrast.speedup is not None and contrast.verdict.status == "unmeasured"


def modelled_ratio(group: Group, contrast: Contrast, name: str) -> bool:
    """Whether the ratio `name` is one of formulas: the first known pair of numbers is not measured."""
    for tags in RATIOS[name]:
        base, run = group.baseline.placement.run, contrast.candidate.placement.run
        if total(base, tags) and total(run, tags) is not None:
            return any(side.numbers[tag].provenance != "measured" for side in (base, run) for tag in tags)
    return False


def pair_words(rows: Sequence[Row], among: Sequence[AttentionWorkload], threshold: float) -> tuple[str, ...]:
    """The sentences on one candidate: the longest workload with an answer, then all workloads.

    None where no workload has one: then `missing_words` says why.
    """
    if all(row.contrast.speedup is None for row in rows):
        return ()
    head = max(rows, key=lambda row: (_rank(row.contrast), row.group.workload.seq_k))
    first = f"{_headline(head, among, threshold)}."
    return (first,) if len(rows) == 1 else (first, f"{_over_all(rows, among)}.")


def _rank(contrast: Contrast) -> int:
    """What to speak of first: a decided verdict, then a measured one, then a model, then a reason."""
    status = contrast.verdict.status
    if status in ("faster", "slower"):
        return 3
    return 2 if status != "unmeasured" else int(contrast.speedup is not None)


def _headline(row: Row, among: Sequence[AttentionWorkload], threshold: float) -> str:
    contrast, base = row.contrast, row.group.label
    name, status, speedup = contrast.label, contrast.verdict.status, contrast.speedup
    assert speedup is not None
    where = place(row.group.workload, among)
    at = f" at {where}" if where else ""
    if status == "unmeasured":
        return _modelled(row, at)
    if status in ("faster", "slower"):
        ratio = speedup if status == "faster" else inverse(speedup)
        by = f"{numbers_text(ratio)[0]}x {status}"
        return f"{name} is {by} than {base}{at}{_interval(ratio)}, certain{_cost(row)}"
    if status == "same":
        return f"{name} is as fast as {base}{at} within {threshold * 100:g} %{_interval(speedup)}{_cost(row)}"
    return (
        f"{name} and {base} cannot be told apart{at}: the speed-up is {numbers_text(speedup)[0]}x"
        f"{_cost(row)}; undecided, because {contrast.verdict.reason}"
    )


def _modelled(row: Row, at: str) -> str:
    contrast = row.contrast
    assert contrast.speedup is not None
    one, two = row.group.baseline.placement.least_s, contrast.candidate.placement.least_s
    ratio = contrast.speedup if contrast.speedup.value >= 1 else inverse(contrast.speedup)
    by = f"{significant(ratio.value)}x {'shorter' if contrast.speedup.value >= 1 else 'longer'}"
    return (
        f"By the model, not measured: the least time of {contrast.label} is {by} "
        f"than that of {row.group.label}{at} ({show(two, 'time')} against {show(one, 'time')}){_cost(row)}"
    )


def _interval(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return " (no interval)"
    _, low, high = numbers_text(ratio)
    return f" ({low} to {high})"


def _cost(row: Row) -> str:
    """DRAM bytes beside the baseline's, and FLOPs where they differ."""
    parts = []
    for name, what in (("dram", "DRAM bytes"), ("flops", "tensor FLOPs")):
        ratio = row.contrast.ratios.get(name)
        near = ratio is not None and 1 / _NEAR < ratio < _NEAR
        if ratio is None or (name == "flops" and (near or ratio == 0)):
            continue
        mark = " (modelled)" if modelled_ratio(row.group, row.contrast, name) else ""
        parts.append(f"{_amount(ratio, what, near)}{mark}")
    return f", with {' and '.join(parts)}" if parts else ""


def _amount(ratio: float, what: str, near: bool) -> str:
    if near:
        return f"about as many {what}"
    return f"{ratio_text(ratio)} {what}" if ratio <= FEWER else f"{ratio_text(ratio)} the {what}"


def _over_all(rows: Sequence[Row], among: Sequence[AttentionWorkload]) -> str:
    """What the verdict is over all workloads; where it is one everywhere, with its range."""
    statuses = {row.contrast.verdict.status for row in rows}
    name, base = rows[0].contrast.label, rows[0].group.label
    here = [row.group.workload for row in rows]
    if statuses in ({"faster"}, {"slower"}):
        return f"{name} is {statuses.pop()} than {base} at {every(here)}, each certain: {_span(rows, among)}"
    if all(modelled_speedup(row.contrast) for row in rows):
        return f"{name} beside {base} at {every(here)}, by the model: {_span(rows, among)}"
    return f"{name} beside {base} over {len(rows)} {noun(among)}: {'; '.join(_tally(rows, among))}"


def _span(rows: Sequence[Row], among: Sequence[AttentionWorkload]) -> str:
    """The least and the greatest speed-up with their places."""
    least, *_, most = sorted((_value(row), place(row.group.workload, among)) for row in rows)
    return f"speed-up {significant(least[0])}x at {least[1]} to {significant(most[0])}x at {most[1]}"


def _value(row: Row) -> float:
    assert row.contrast.speedup is not None
    return row.contrast.speedup.value


def _tally(rows: Sequence[Row], among: Sequence[AttentionWorkload]) -> Iterator[str]:
    """The workloads of each verdict, with the range of the speed-up."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        status = row.contrast.verdict.status
        model = "only modelled" if modelled_speedup(row.contrast) else "not compared"
        kinds.setdefault(model if status == "unmeasured" else status, []).append(row)
    for kind in sorted(kinds, key=_ORDER.index):
        found = sorted(_value(row) for row in kinds[kind]) if kind != "not compared" else []
        speed = (
            f" ({' to '.join(dict.fromkeys(f'{significant(v)}x' for v in (found[0], found[-1])))})"
            if found
            else ""
        )
        yield f"{kind} at {places(place(row.group.workload, among) for row in kinds[kind])}{speed}"


def missing_words(found: Sequence[Sequence[Row]], among: Sequence[AttentionWorkload]) -> Iterator[str]:
    """What could not be compared and why, a sentence for each reason."""
    missing: dict[tuple[str, str], list[Row]] = {}
    for row in (row for rows in found for row in rows):
        if row.contrast.speedup is None:
            missing.setdefault((row.group.label, row.contrast.verdict.reason), []).append(row)
    for (base, reason), rows in missing.items():
        who = joined(dict.fromkeys(row.contrast.label for row in rows))
        at = f" at {places(place(row.group.workload, among) for row in rows)}" if len(among) > 1 else ""
        yield f"Not compared with {base}{at}: {who}, because {reason}."
