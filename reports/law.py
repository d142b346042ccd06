"""The law in the terminal: exponents beside theory's, and bytes against N, d and M."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from perfkit.analysis.law import LAWS, FittedLaw
from perfkit.model.units import short_count, significant
from perfkit.reports.grid import Column, Row, grid
from perfkit.reports.law_plot import LEVEL_WORDS, law_plots
from perfkit.reports.lines import note, title


def law_parts(found: Sequence[FittedLaw], width: int) -> Iterator[RenderableType]:
    """Title, pictures and table; nothing where nothing was swept."""
    if found:
        yield Text()
        yield title("The law", "bytes ~ N^a d^b M^c, one head, forward")
        yield from law_plots(found, width)
        yield Text()
        yield laws_table(found, width)


def laws_table(found: Sequence[FittedLaw], width: int) -> RenderableType:
    """Exponent with its interval, and constant, of every sweep beside the law's."""
    names = ("impl", "bytes", "level", "varied", "range", "exponent", "law", "constant", "verdict")
    right = ("exponent", "law", "constant")
    columns = tuple(Column(name=name, justify="right" if name in right else "left") for name in names)
    rows: list[Row] = []
    last = ("", "", "")
    for one in found:
        head = (one.sweep.impl, one.source, LEVEL_WORDS[one.level])
        rows.append(Row(cells=(*_head(head, last), *_cells(one))))
        last = head
    sources = dict.fromkeys(f"{one.sweep.impl}: {LAWS[one.sweep.impl].source}" for one in found)
    notes = [
        "modelled and counted bytes are of the leading term; measured ones are all: l, m and LSE with them, "
        "and the S of square",
        "where d varies, on-chip bytes do not; counted sweeps are shorter than measured ones",
    ]
    return Group(grid(columns, rows, width), *map(note, (*notes, *sources)))


def _head(head: tuple[str, str, str], last: tuple[str, str, str]) -> tuple[str, ...]:
    if head == last:
        return "", "", ""
    return "" if head[0] == last[0] else head[0], *head[1:]


def _cells(one: FittedLaw) -> tuple[str, ...]:
    return (
        one.sweep.variable,
        range_text(one),
        exponent_text(one),
        "" if one.law is None else f"{one.law:g}",
        "" if one.constant is None else significant(one.constant),
        "" if one.verdict.status == "found" else one.verdict.status,
    )


def range_text(one: FittedLaw) -> str:
    """From the first to the last value of what was varied."""
    return "-".join(short_count(int(one.xs[at])) for at in (0, -1))


def exponent_text(one: FittedLaw) -> str:
    """The exponent, and half the width of its 95 % interval where it is not tiny."""
    fit = one.fit
    if fit.low is None or fit.high is None:
        return f"{fit.exponent:.3f}"
    return f"{fit.exponent:.3f} ±{(fit.high - fit.low) / 2:.3f}"
