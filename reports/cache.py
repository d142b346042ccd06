"""What `perfkit cache` prints: where the memory of a K/V cache goes, and what that costs."""

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perfkit.analysis.cache_outcome import CacheStudy, Outcome
from perfkit.model.units import show, significant
from perfkit.reports.cache_plot import memory_plot
from perfkit.reports.cache_words import NOTES, contrasted, sentences, subject
from perfkit.reports.grid import Column, Row, grid

MEMORY: Final = ("policy", "tokens", "later", "never", "holes", "free", "wasted", "most wasted")
REQUESTS: Final = ("policy", "at once", "most", "steps", "wait", "swapped out", "shared", "tables")


def render(study: CacheStudy, width: int = 80) -> RenderableType:
    """The whole output."""
    parts: list[RenderableType] = [Text("K/V cache, contiguous and paged", "bold")]
    parts += [Text(line) for line in subject(study)]
    parts += [Text(), *map(_bullet, sentences(study))]
    parts += [Text(), Text("Memory", "bold"), _table(MEMORY, memory_rows(study), width)]
    parts += [Text(), Text("Requests", "bold"), _table(REQUESTS, request_rows(study), width)]
    parts += [Padding(Text(note, "dim"), (0, 0, 0, 2), expand=False) for note in NOTES]
    return Group(*parts, *_plots(study, width))


def _bullet(line: str) -> RenderableType:
    """The line after a dash, its other lines indented as far."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row("-", Text(line))
    return table


def _plots(study: CacheStudy, width: int) -> Iterator[RenderableType]:
    both = contrasted(study)
    last = max(max(one.steps for one in both) - 1, 1)
    for one in both:
        yield Text()
        yield Text.assemble((one.policy.name, "bold"), ": line taken, dots tokens, over decode steps")
        yield memory_plot(study, one, last, width)


def memory_rows(study: CacheStudy) -> list[tuple[str, ...]]:
    """Shares of the memory by policy."""
    return [
        (
            one.policy.name,
            *(show(part / one.capacity, "percent") for part in parts(one)),
            show(one.waste, "percent"),
            show(one.peak_waste * study.shape.token_bytes, "bytes"),
        )
        for one in study.outcomes
    ]


def parts(one: Outcome) -> tuple[float, float, float, float, float]:
    """Slots with tokens, filled later, never filled, in useless holes and free; together the capacity."""
    return one.used, one.reserved, one.unused, one.external, one.free


def request_rows(study: CacheStudy) -> list[tuple[str, ...]]:
    """Batch, steps and what else a policy costs."""
    return [
        (
            one.policy.name,
            significant(one.batch),
            f"{one.peak_batch:,}",
            f"{one.steps:,}",
            f"{one.wait:,.0f}",
            f"{one.preempted:,}" if one.policy.page else "-",
            show(one.saved * study.shape.token_bytes, "bytes") if one.policy.page else "-",
            show(one.peak_table_bytes, "bytes") if one.policy.page else "-",
        )
        for one in study.outcomes
    ]


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> RenderableType:
    columns = [Column(name=name, justify="right" if at else "left") for at, name in enumerate(names)]
    return grid(columns, [Row(cells=row) for row in rows], width)
