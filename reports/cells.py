"""The text of single cells, the same in the terminal and in Markdown: times, bytes, ratios, their marks.

`*` marks what was modelled, `+` bytes that are at least so many.
"""

from collections.abc import Sequence

from perfkit.analysis.comparison import Contrast, Group
from perfkit.analysis.placement import Placement, Point
from perfkit.analysis.verdict import Verdict
from perfkit.model.units import Hint, show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Level
from perfkit.record import Run
from perfkit.reports.contrast_words import modelled_ratio, modelled_speedup
from perfkit.reports.places import only_length, place
from perfkit.reports.ratios import numbers_text, ratio_text


def ended_well(run: Run) -> bool:
    """Whether the run has numbers of its own, measured or modelled on purpose."""
    return run.status in ("measured", "modelled")


def time_text(placement: Placement) -> str:
    """The median with half its interval as a share of it; the least time, marked, where all is modelled."""
    run, time_s = placement.run, placement.time_s
    if time_s is None:
        return (
            f"{show(placement.least_s, 'time')}*" if run.status == "modelled" and placement.least_s else "-"
        )
    low, high = run.value("time_low"), run.value("time_high")
    spread = f" ±{(high - low) / 2 / time_s:.1%}" if low is not None and high is not None else ""
    return show(time_s, "time") + spread


def rate_text(placement: Placement) -> str:
    """The achieved rate, or what could be, marked, where all is modelled."""
    if placement.invalid:
        return "INVALID"
    if placement.run.status == "modelled" and placement.best:
        return f"{show(placement.best, 'flop_rate')}*"
    return show(placement.achieved, "flop_rate")


def bytes_text(point: Point | None) -> str:
    """Bytes at one level with their marks."""
    if point is None:
        return "-"
    mark = "" if point.provenance == "measured" else "*"
    return f"{show(point.bytes, 'bytes')}{'+' if point.upper else ''}{mark}"


def level_text(placement: Placement, level: Level) -> str:
    """Bytes of a run at `level` with their marks."""
    return bytes_text(placement.point(level))


def number_text(run: Run, tag: str, hint: Hint) -> str:
    """The number `tag` of a run, marked where it was modelled."""
    found = run.numbers.get(tag)
    if found is None or found.value is None:
        return "-"
    return f"{show(found.value, hint)}{'*' if found.provenance == 'modelled' else ''}"


def speedup_text(contrast: Contrast) -> str:
    """The speed-up with its interval; the ratio of least times, marked, where nothing was measured."""
    if contrast.speedup is None:
        return "-"
    value, low, high = numbers_text(contrast.speedup)
    if modelled_speedup(contrast):
        return f"{value}x*"
    return f"{value}x" if contrast.speedup.low is None else f"{value}x [{low}, {high}]"


def beside(group: Group, contrast: Contrast, name: str, less: str) -> str:
    """The ratio `name` of a candidate to its baseline, marked where it is one of formulas."""
    ratio = contrast.ratios.get(name)
    if ratio is None:
        return "-"
    return f"{ratio_text(ratio, less)}{'*' if modelled_ratio(group, contrast, name) else ''}"


def verdict_hint(verdict: Verdict) -> Hint:
    """How the numbers of a check are shown."""
    if "FLOPs" in verdict.check:
        return "flop"
    return "rows" if "height" in verdict.check else "bytes"


def place_header(among: Sequence[AttentionWorkload]) -> str:
    """The heading of the column that tells workloads apart: `N` where they differ in N alone."""
    return "N" if only_length(among) else "workload"


def place_text(workload: AttentionWorkload, among: Sequence[AttentionWorkload]) -> str:
    """The cell under `place_header`."""
    text = place(workload, among)
    return text.removeprefix("N ") if only_length(among) and "," not in text else text
