"""What the charts of the HTML report share: figures as data for plotly, who is drawn, how marks look."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from perfkit.analysis.placement import Placement
from perfkit.analysis.report import Report
from perfkit.analysis.study import Finding
from perfkit.model.units import Hint, show
from perfkit.record import Record
from perfkit.reports.html.cells import Look

Trace = dict[str, Any]
Layout = dict[str, Any]

MARK_SIZE: Final = 11


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One chart: where it goes, what it is called, its traces and layout, and texts that marks refer to.

    `meta` of a trace says what the page may do with it: `hue` (its colour in the style sheet; absent for
    roofs), `look` (the entry of the legend that switches it), `texts` (for each mark the index in `texts`).
    """

    id: str
    title: str
    data: list[Trace]
    layout: Layout
    texts: list[str] = []


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A finding with the record and the name of the part that it comes from."""

    finding: Finding
    record: Record
    source: str
    baseline: bool

    @property
    def placement(self) -> Placement:
        """Where it stands."""
        return self.finding.placement


def everything(report: Report) -> Iterator[Shown]:
    """All findings of the report, the baseline's last."""
    for part in report.parts:
        for finding in part.study.findings:
            yield Shown(finding=finding, record=part.study.record, source=part.name, baseline=False)
    if report.baseline is not None:
        old = report.baseline
        for finding in old.study.findings:
            yield Shown(
                finding=finding, record=old.study.record, source=f"baseline: {old.name}", baseline=True
            )


def symbol(look: Look, baseline: bool, dot: bool = False) -> str:
    """plotly's symbol: hollow for the baseline, with a dot at SM<->L2."""
    return look.symbol + ("-open" if baseline else "") + ("-dot" if dot else "")


def error_bars(values: Iterable[tuple[float | None, float | None, float | None]]) -> Layout:
    """Error bars of (value, low, high); none where an end is missing."""
    rows = list(values)
    return {
        "type": "data",
        "symmetric": False,
        "array": [h - v if v is not None and h is not None else 0 for v, _, h in rows],
        "arrayminus": [v - low if v is not None and low is not None else 0 for v, low, _ in rows],
        "thickness": 1,
        "width": 3,
    }


def axis(title: str, low: float, high: float, ticks: dict[float, str] | None = None) -> Layout:
    """A logarithmic axis over [low, high] in powers of ten, with these ticks or a tick a decade."""
    found: Layout = {"title": {"text": title}, "type": "log", "range": [low, high]}
    if ticks:
        found |= {"tickvals": list(ticks), "ticktext": list(ticks.values())}
    return found


def value_ticks(low: float, high: float, hint: Hint) -> dict[float, str]:
    """A tick a decade, `10 ms`; with 2 and 5 between them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return {value: _round(show(value, hint)) for value in values}


def _round(text: str) -> str:
    """`10 ms` for `10.0 ms`: a tick is an exact power of ten."""
    value, _, unit = text.partition(" ")
    return f"{float(value):g} {unit}"
