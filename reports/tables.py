"""The tables of the terminal report: results, verdicts, ceilings, losses, conditions."""

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfkit.analysis import io_check
from perfkit.analysis.study import Study
from perfkit.analysis.verdict import Verdict
from perfkit.model.units import Hint, show
from perfkit.reports import plot
from perfkit.reports.cells import bytes_text, time_text, verdict_hint

STATUS_STYLE: Final = {
    "holds": "green", "violated": "bold red", "found": "cyan", "undecided": "yellow", "unchecked": "dim",
}  # fmt: skip

_WITHIN: Final = (
    f"holds within: IO model {io_check.L2_TOLERANCE:.0%} at SM<->L2, "
    f"{io_check.DRAM_ALGORITHM_TOLERANCE:.0%} at DRAM; "
    f"L2 model {io_check.DRAM_MODEL_TOLERANCE:.0%}; FLOPs {io_check.FLOPS_TOLERANCE:.1%}"
)


def measured(study: Study) -> bool:
    """Whether the record is of a measurement."""
    return study.record.backend != "model"


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", expand=False)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def results(study: Study) -> Table:
    """Time, rate, bytes and bound of every run that has numbers."""
    timed = measured(study)
    table = _table(
        ("", "left"), ("impl", "left"), ("time" if timed else "least time", "right"),
        ("achieved" if timed else "at best", "right"), *([("of roof", "right")] if timed else []),
        ("DRAM", "right"), ("SM<->L2", "right"), ("FLOP/B", "right"), ("bound", "left"),
    )  # fmt: skip
    marks = plot.letters(study)
    for finding in study.findings:
        placement, run = finding.placement, finding.placement.run
        if not run.numbers or run.status in ("refused", "failed"):
            continue
        dram, l2 = placement.point("DRAM"), placement.point("L2")
        rate = placement.achieved if timed else placement.best
        shown = "INVALID" if placement.invalid else show(rate, "flop_rate").removesuffix("LOP/s")
        of_roof = None if placement.invalid else finding.metrics["efficiency_clock"].value
        table.add_row(
            marks.get(run.impl, ""),
            run.impl,
            time_text(placement),
            shown if timed else f"{shown}*",
            *([show(of_roof, "percent")] if timed else []),
            bytes_text(dram),
            bytes_text(l2),
            "-" if dram is None else f"{'<' if dram.upper else ''}{dram.intensity:.0f}",
            placement.bound or "-",
            style="bold red" if placement.invalid else "",
        )
    return table


def verdicts(study: Study) -> RenderableType:
    """Expected, measured and how far off; where nothing was measured, only what is expected."""
    judged = any(v.measured is not None for finding in study.findings for v in finding.verdicts)
    compared = (("measured", "right"), ("off", "right")) if judged else ()
    table = _table(("impl", "left"), ("check", "left"), ("expected", "right"), *compared, ("verdict", "left"))
    for finding in study.findings:
        name = finding.placement.run.impl
        for verdict in finding.verdicts:
            if verdict.status == "unchecked" and verdict.expected is None:
                continue
            hint = verdict_hint(verdict)
            cells = (show(verdict.measured, hint), _off(verdict)) if judged else ()
            status = Text(verdict.status, STATUS_STYLE[verdict.status])
            table.add_row(name, verdict.check, show(verdict.expected, hint), *cells, status)
            name = ""
    return Group(table, Text(_WITHIN, "dim")) if judged else table


def _off(verdict: Verdict) -> str:
    """How far measured is from expected: in percent, or as a factor where it is far."""
    off = verdict.deviation
    if off is None:
        return "-"
    return f"{off:+.2%}" if abs(off) < 0.995 else f"{off + 1:.0f}x"


def ceilings(study: Study) -> Table:
    """What data sheet, run clock and exp allow, and the share of each that was achieved."""
    table = _table(
        ("impl", "left"), ("data sheet", "right"), ("", "right"), ("run clock", "right"), ("", "right"),
        ("exp, not hidden", "right"), ("", "right"),
    )  # fmt: skip
    pairs = (
        ("attainable_datasheet", "efficiency_datasheet"),
        ("attainable_clock", "efficiency_clock"),
        ("exp_ceiling", "efficiency_exp"),
    )
    for finding in study.findings:
        placement = finding.placement
        if placement.achieved is None or placement.invalid:
            continue
        cells: list[str] = []
        for ceiling, share in pairs:
            rate = show(finding.metrics[ceiling].value, "flop_rate").removesuffix("LOP/s")
            cells += [rate, show(finding.metrics[share].value, "percent")]
        table.add_row(placement.run.impl, *cells)
    return table


def losses(study: Study) -> Table:
    """The parts of each measured time, as shares of it."""
    timed = [finding for finding in study.findings if finding.losses]
    table = _table(("impl", "left"), ("time", "right"), *((loss.name, "right") for loss in timed[0].losses))
    for finding in timed:
        time_s = finding.placement.time_s or 1.0
        shares = (f"{loss.time_s / time_s:.0%}" for loss in finding.losses)
        table.add_row(finding.placement.run.impl, show(time_s, "time"), *shares)
    return table


def conditions(study: Study) -> Table:
    """Clock, power, energy, memory and errors of every timed run."""
    table = _table(
        ("impl", "left"), ("SM clock", "right"), ("power", "right"), ("energy/op", "right"),
        ("peak memory", "right"), ("error", "right"), ("eager", "right"),
    )  # fmt: skip
    tags: tuple[tuple[str, Hint], ...] = (
        ("clock", "hertz"), ("power", "watt"), ("energy", "joule"), ("peak_memory", "bytes"),
        ("error", "error"), ("eager_error", "error"),
    )  # fmt: skip
    for finding in study.findings:
        run = finding.placement.run
        if run.value("time") is not None:
            table.add_row(run.impl, *(show(run.value(tag), hint) for tag, hint in tags))
    return table
