"""A decode map in words: the texts of its cells and the sentences below it, for every kind of report."""

from collections.abc import Iterator, Sequence
from typing import Final

from perfkit.analysis.decode_map import DecodeCell, DecodeMap, by_family
from perfkit.analysis.decode_rivals import pace, winners
from perfkit.analysis.study import Study
from perfkit.model.units import short_count, show
from perfkit.record import Run
from perfkit.reports.places import common, joined
from perfkit.reports.words import io_check

#: What tokens/s of this table are, and are not.
ONE_LAYER: Final = (
    "of one layer of attention alone: a model with L layers decodes at most 1/L of it, without its matrices"
)
MODELLED: Final = "* modelled, not measured: of the least time"
#: Where the report of each run is, which would be pages long.
ELSEWHERE: Final = "--html and --csv have the rest of each run: roofline, IO check, where the time went"


def about(one: DecodeMap) -> str:
    """What all cells have in common: `N_q 1, 32 heads over 8 K/V heads, d 128, bf16, full mask, forward`."""
    asked = [run.setting for _, run in _ran(one)]
    return f"N_q {one.workload.seq_q}, {common(asked)}"


def cache_words(one: DecodeMap) -> str:
    """The sizes of the K/V cache, from the least to the largest."""
    sizes = [run.workload.cache_bytes for _, run in _ran(one)]
    return f"K/V cache {' to '.join(dict.fromkeys(show(end(sizes), 'bytes') for end in (min, max)))}"


def _ran(one: DecodeMap) -> Iterator[tuple[DecodeCell, Run]]:
    return ((cell, cell.placement.run) for cell in one.cells if cell.placement)


def bandwidth_words(one: DecodeMap, backend: str) -> str:
    """What the shares are of: `DRAM's 4.80 TB/s (data sheet)`."""
    rate = next((cell.bandwidth for cell in one.cells if cell.bandwidth), None)
    whose = "measured ceiling" if backend == "cpu" else "data sheet"
    return f"DRAM's {show(rate, 'byte_rate')} ({whose})" if rate else "a bandwidth that is not known"


def how_words(maps: Sequence[DecodeMap], backend: str) -> str:
    """How to read the maps of a record, and who is the fastest, in a few sentences."""
    told = (
        f"Batch by context: bytes of the K/V cache over the time, and the share of "
        f"{bandwidth_words(maps[0], backend)}",
        f"Tokens/s are {ONE_LAYER}",
        "The bound is the resource that needs the longest, and it allows the tokens/s under at most",
        *(f"{text[0].upper()}{text[1:]}" for text in _contests(maps)),
    )
    return " ".join(f"{text}." for text in told)


def _contests(maps: Sequence[DecodeMap]) -> Iterator[str]:
    for family in by_family(maps):
        yield from winner_words(family)


def mark(cell: DecodeCell) -> str:
    """What stands behind numbers that are not of a measured time."""
    return "*" if cell.provenance == "modelled" else ""


def absent(cell: DecodeCell) -> str:
    """What stands where there is no number."""
    return "INVALID" if cell.placement and cell.placement.invalid else "-"


def share_text(share: float | None) -> str:
    """`76%`, and `1.2%` below 10 %."""
    return "" if share is None else f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def rate_text(cell: DecodeCell) -> str:
    """`3.67 TB/s 76%`: bytes of K and V over the time, and the share of DRAM's bandwidth."""
    if cell.rate is None:
        return absent(cell)
    return f"{show(cell.rate, 'byte_rate')} {share_text(cell.share)}".rstrip() + mark(cell)


def count_text(value: float | None) -> str:
    """A rate of tokens as people read it, k being 1000: `107 k`."""
    return show(value, "flop").removesuffix("FLOP").rstrip()


def tokens_text(cell: DecodeCell) -> str:
    """`107 k of 134 k`: tokens/s, and the most that the bound allows; that alone where it is modelled."""
    if cell.tokens_per_s is None:
        return absent(cell)
    if cell.provenance == "modelled":
        return count_text(cell.most_tokens_per_s) + mark(cell)
    most = cell.most_tokens_per_s
    return count_text(cell.tokens_per_s) + (f" of {count_text(most)}" if most else "")


def bound_text(cell: DecodeCell) -> str:
    """`DRAM 80%`: the resource that needs the longest, and the least time as a share of the time."""
    if cell.time_s is None:
        return absent(cell)
    return f"{cell.bound or '-'} {share_text(cell.of_least)}".rstrip()


def pace_text(base: DecodeCell, other: DecodeCell) -> str:
    """`81% 1.06x`: the share of DRAM's bandwidth, and how many times as fast; ~ where nobody can tell."""
    between = pace(base, other)
    if other.time_s is None:
        return absent(other)
    unsure = "~" if between and not between.apart and not mark(other) else ""
    times = f"{unsure}{between.ratio:.2f}x" if between else ""
    return f"{share_text(other.share)} {times}".strip() + mark(other)


def place_text(cells: Sequence[DecodeCell]) -> str:
    """`batch 4, N_k 1k and 4k; batch 16, N_k 1k`."""
    batches = dict.fromkeys(cell.batch for cell in cells)
    return "; ".join(
        f"batch {batch}, N_k {joined(short_count(cell.context) for cell in cells if cell.batch == batch)}"
        for batch in batches
    )


def missing_words(one: DecodeMap) -> Iterator[str]:
    """Why cells of a map have no numbers, those that ended alike in one sentence."""
    return _each_once(one, [(cell, cell.reason) for cell in one.cells if cell.reason is not None])


def run_words(one: DecodeMap) -> Iterator[str]:
    """What the runs of a map say about themselves, and what held their clocks back."""
    notes = [(cell, text) for cell, run in _ran(one) for text in dict.fromkeys(run.notes)]
    limited = [
        (cell, f"clock limited by {', '.join(run.clock_reasons)}")
        for cell, run in _ran(one)
        if run.clock_reasons
    ]
    return _each_once(one, [*notes, *limited])


def _each_once(one: DecodeMap, told: Sequence[tuple[DecodeCell, str]]) -> Iterator[str]:
    """Each text once, with the cells that it is of; without them where it is of all."""
    found: dict[str, list[DecodeCell]] = {}
    for cell, text in told:
        found.setdefault(text, []).append(cell)
    for text, cells in found.items():
        where = "" if len(cells) == len(one.cells) else f" at {place_text(cells)}"
        yield f"{one.impl}{where}: {text}"


def whole_words(study: Study, maps: Sequence[DecodeMap]) -> Iterator[str]:
    """What stands for the reports of single runs: the IO check in numbers, notes, and where the rest is."""
    yield from io_check(study)
    for one in maps:
        yield from run_words(one)
    yield ELSEWHERE


def winner_words(family: Sequence[DecodeMap]) -> Iterator[str]:
    """Who is the fastest in how many cells: `fastest: flash-decode in 5 of 9 cells, sdpa-flash in 3; ...`."""
    found = winners(family)
    cells = sum(found.values())
    alone = [(names[0], count) for names, count in found.items() if len(names) == 1]
    level = [(names, count) for names, count in found.items() if len(names) > 1]
    said = [f"{name} in {count}" for name, count in alone]
    parts = [f"fastest of {cells} cells: {', '.join(said)}"] if said else []
    parts += [f"{joined(names)} cannot be told apart in {count} of {cells}" for names, count in level]
    if parts:
        yield "; ".join(parts)
