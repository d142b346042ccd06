"""The tables of one record: where the time went, memory and energy, correctness, IO check."""

from collections.abc import Iterator
from typing import Final

from perfkit.analysis.study import Finding, Study
from perfkit.analysis.verdict import Verdict
from perfkit.model.units import Hint, show
from perfkit.record import BY_TAG
from perfkit.reports.html.cells import (
    Cell,
    Column,
    Looks,
    Table,
    absent,
    columns,
    number_cell,
    shown,
    tag_cell,
    words,
)
from perfkit.reports.html.rows import by_workload, impl_cell

#: The recorded numbers of a run's conditions, in the order of their columns.
_MEMORY: Final = (
    "peak_memory",
    "energy",
    "power",
    "clock",
    "temperature",
    "sustained_time",
    "sustained_clock",
)


def memory_and_energy(study: Study, looks: Looks) -> Table:
    """Recorded numbers of every run that was timed or has peak memory."""

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        run = finding.placement.run
        if all(run.value(tag) is None for tag in _MEMORY):
            return []
        held = ", ".join(run.clock_reasons)
        numbers = (tag_cell(run, tag, BY_TAG[tag].hint) for tag in _MEMORY)
        return [
            (
                impl_cell(finding, looks),
                *numbers,
                words(held or "-", note=None if held else "nothing was seen"),
            )
        ]

    head = tuple(
        Column(name=BY_TAG[tag].label, number=True, note=BY_TAG[tag].description) for tag in _MEMORY
    )  # fmt: skip
    columns_ = (Column(name="implementation"), *head, Column(name="clock held back by"))
    return Table(caption="Memory and energy", columns=columns_, rows=by_workload(study, cells))


def correctness(study: Study, looks: Looks) -> Table:
    """The error of every run beside that of the eager path."""

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        run = finding.placement.run
        error, eager = run.numbers.get("error"), run.numbers.get("eager_error")
        if run.status == "incorrect":
            errors = (tag_cell(run, tag, "error") for tag in ("error", "eager_error"))
            reason = words(run.reason or "-", "long")
            return [
                (impl_cell(finding, looks), *errors, absent(run.reason), words("incorrect", "bad"), reason)
            ]
        if error is None or error.value is None:
            return []
        twice = None if eager is None or eager.value is None else 2 * eager.value
        allowed = shown(twice, "error", "measured", "the eager path's error is not known")
        return [(impl_cell(finding, looks), number_cell(error, "error"), number_cell(eager, "error"),
                 allowed, words("correct", "good"), words(error.reason or "-"))]  # fmt: skip

    head = columns(
        "implementation",
        "error",
        "eager error",
        "allowed, 2x",
        "result",
        "checked",
        text=("result", "checked"),
    )
    return Table(caption="Correctness", columns=head, rows=by_workload(study, cells))


def time_parts(study: Study, looks: Looks) -> Table:
    """The parts of each measured time, in time and as shares."""
    names = loss_names(study)
    said = {part.name: part.description for f in reversed(study.findings) for part in f.losses}

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        time_s = finding.placement.time_s
        if not finding.losses or not time_s:
            return []
        parts = (
            Cell(text=f"{show_signed(part.time_s)} ({part.time_s / time_s:.0%})*", kind="modelled",
                 note=part.description if part.description != said[part.name] else None, number=True)
            for part in finding.losses
        )  # fmt: skip
        return [(impl_cell(finding, looks), shown(time_s, "time", "measured", None), *parts)]

    head = (*columns("implementation", "time"), *(Column(name=n, number=True, note=said[n]) for n in names))
    return Table(caption="Where the time went", columns=head, rows=by_workload(study, cells))


def loss_names(study: Study) -> tuple[str, ...]:
    """The names of the parts, in their order."""
    return next((tuple(part.name for part in f.losses) for f in study.findings if f.losses), ())


def show_signed(seconds: float) -> str:
    """A time that may be negative, or nothing."""
    if seconds == 0:
        return "0"
    return ("-" if seconds < 0 else "") + show(abs(seconds), "time")


def verdicts(study: Study, looks: Looks) -> Table:
    """Every check of every run with what it rests on."""

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        return [(impl_cell(finding, looks), *_verdict(one)) for one in finding.verdicts]

    head = columns(
        "implementation", "check", "expected", "measured", "off", "verdict", "why",
        text=("check", "verdict", "why"),
    )  # fmt: skip
    return Table(caption="IO check", columns=head, rows=by_workload(study, cells))


def _verdict(one: Verdict) -> Iterator[Cell]:
    hint: Hint = "flop" if "FLOPs" in one.check else "rows" if "height" in one.check else "bytes"
    off = one.deviation
    yield words(one.check)
    yield shown(one.expected, hint, "modelled", one.reason)
    yield shown(one.measured, hint, "measured", one.reason)
    if off is None:
        yield absent(one.reason)
    else:
        yield Cell(
            text=f"{off:+.2%}" if abs(off) < 0.995 else f"{off + 1:.0f}x", kind="measured", number=True
        )
    yield words(one.status, one.status)
    yield words(one.reason, "long")
