"""The tables of the law in the HTML report: exponents, every point that was fitted, and on-chip memory."""

from collections.abc import Iterator, Sequence
from typing import Final

from perfkit.analysis.law import LAWS, VARIABLES, FittedLaw
from perfkit.analysis.onchip import OnChip
from perfkit.analysis.sweeps import Source, Trial, Variable
from perfkit.model.units import short_count, significant
from perfkit.reports.html.cells import MARKS, Cell, Looks, Row, Table, absent, columns, once, shown, words
from perfkit.reports.html.law import memory_text, tile_text
from perfkit.reports.law import exponent_text, range_text
from perfkit.reports.law_plot import LEVEL_WORDS

#: In the order of their columns.
_SOURCES: Final[tuple[Source, ...]] = ("modelled", "counted", "measured")


def exponents(found: Sequence[FittedLaw], looks: Looks) -> Table:
    """The fitted exponent of every sweep with its interval beside the law's."""
    rows = once([tuple(_exponent(one, looks)) for one in found], 0)
    head = columns(
        "implementation", "bytes", "level", "varied", "range", "exponent", "law", "constant", "verdict",
        text=("bytes", "level", "varied", "range", "verdict"),
    )  # fmt: skip
    return Table(caption="Exponents", columns=head, rows=tuple(Row(cells=row) for row in rows))


def _exponent(one: FittedLaw, looks: Looks) -> Iterator[Cell]:
    law, low, high, mark = LAWS[one.sweep.impl], one.fit.low, one.fit.high, MARKS[one.source]
    interval = None if low is None or high is None else f"95 % interval {low:.4f} to {high:.4f}"
    yield _impl(one.sweep.impl, looks)
    yield words(one.source)
    yield words(LEVEL_WORDS[one.level])
    yield words(one.sweep.variable)
    yield words(range_text(one))
    yield Cell(text=exponent_text(one) + mark, kind=one.source, note=interval, number=True)
    if one.law is None or one.constant is None:
        yield from (absent(one.verdict.reason), absent(one.verdict.reason))
    else:
        yield Cell(text=f"{one.law:g}", note=law.source, number=True)
        theory = f"{law.constant:g} by the law; this is that of the last point"
        yield Cell(text=significant(one.constant) + mark, kind=one.source, note=theory, number=True)
    yield words(one.verdict.status, one.verdict.status, one.verdict.reason)


def points(found: Sequence[FittedLaw], looks: Looks) -> Table:
    """Every mark of the charts: what was varied, where, and the bytes by each source."""
    judged = [one for one in found if one.law is not None]
    bytes_at: dict[tuple[str, Variable, Trial], dict[Source, float]] = {}
    for one in judged:
        for trial, moved in zip(one.sweep.trials, one.traffic, strict=True):
            bytes_at.setdefault((one.sweep.impl, one.sweep.variable, trial), {})[one.source] = moved
    levels = {one.sweep.impl: LEVEL_WORDS[one.level] for one in judged}
    impls = list(levels)
    order = sorted(bytes_at, key=lambda key: (impls.index(key[0]), VARIABLES.index(key[1]), *_size(key[2])))
    sources = [source for source in _SOURCES if any(one.source == source for one in judged)]
    rows = once([(*_place(*key, levels[key[0]], looks), *_bytes(bytes_at[key], sources)) for key in order], 0)
    head = columns(
        "implementation", "varied", "N", "d", "tile", "M (elements)", "level", *sources,
        text=("varied", "level"),
    )  # fmt: skip
    return Table(caption="Points", columns=head, rows=tuple(Row(cells=row) for row in rows))


def _size(trial: Trial) -> tuple[int, int, tuple[int, ...]]:
    return trial.workload.seq_q, trial.workload.head_dim, trial.tile or ()


def _place(impl: str, variable: Variable, trial: Trial, level: str, looks: Looks) -> Iterator[Cell]:
    memory = memory_text(impl, trial)
    yield _impl(impl, looks)
    yield words(variable)
    yield Cell(text=short_count(trial.workload.seq_q), number=True)
    yield Cell(text=str(trial.workload.head_dim), number=True)
    yield Cell(text=tile_text(trial), number=True) if trial.tile else absent("it has no tiles")
    yield Cell(text=memory, number=True) if memory else absent("nothing stays on chip")
    yield words(level)


def _bytes(found: dict[Source, float], sources: Sequence[Source]) -> Iterator[Cell]:
    for source in sources:
        yield shown(found.get(source), "bytes", source, f"no point of a sweep with {source} bytes")


def _impl(name: str, looks: Looks) -> Cell:
    return Cell(text=name, look=looks.get(name), kind="impl")


def memory_table(found: Sequence[OnChip], looks: Looks) -> Table:
    """M as the law counts it, beside what a thread block of the kernel holds on chip."""
    rows = once([tuple(_on_chip(one, looks)) for one in found], 0)
    head = columns(
        "implementation", "kernel", "d", "tile", "M by law", "shared memory", "accumulators", "registers",
        "constant", text=("kernel",),
    )  # fmt: skip
    return Table(caption="On-chip memory", columns=head, rows=tuple(Row(cells=row) for row in rows))


def _on_chip(one: OnChip, looks: Looks) -> Iterator[Cell]:
    compiled = "this kernel was not compiled in this run"
    yield _impl(one.impl, looks)
    yield words(one.kernel, "code")
    yield Cell(text=str(one.head_dim), number=True)
    yield Cell(text=f"{one.block_m} x {one.block_n}", number=True)
    yield shown(one.law_bytes, "bytes", "modelled", "no law is known of it")
    yield shown(one.shared_bytes, "bytes", one.shared_source, None)
    yield shown(one.accumulator_bytes, "bytes", "modelled", None, "a part of the registers")
    yield shown(one.register_bytes, "bytes", "counted", compiled, "counted: by the compiler")
    if one.constant is None:
        yield absent("no law is known of it, or not of this workload")
    else:
        note = "in front of the law if M is shared memory and accumulators"
        yield Cell(
            text=significant(one.constant) + MARKS["modelled"], kind="modelled", note=note, number=True
        )
