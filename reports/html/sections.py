"""The sections of one record in the HTML report: what each shows, and one sentence on how to read it."""

from collections.abc import Iterator

import msgspec

from perfkit.analysis.decode_map import decode_maps
from perfkit.analysis.figure2 import figure2
from perfkit.analysis.law import laws
from perfkit.analysis.onchip import on_chip
from perfkit.analysis.study import Study
from perfkit.reports.decode_map_words import how_words
from perfkit.reports.figure2_words import figure_words
from perfkit.reports.html.bars import Bar, bars
from perfkit.reports.html.cells import Looks, Table
from perfkit.reports.html.decode_map import decode_chart, decode_table
from perfkit.reports.html.environment import all_numbers, device, environment, missing
from perfkit.reports.html.figure2 import figure2_chart
from perfkit.reports.html.figure2_tables import figure2_tables
from perfkit.reports.html.kernels import byte_ledger, kernels, tiles
from perfkit.reports.html.law import Chart, law_chart
from perfkit.reports.html.law_tables import exponents, memory_table, points
from perfkit.reports.html.tables import correctness, loss_names, memory_and_energy, time_parts, verdicts
from perfkit.reports.studies import parted

_COUNTED = (
    " Counted is what executing the kernels on a CPU moved; where that differs from the model, its title "
    "says by how much and why."
)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One section of a record: its key and title, how to read it, its chart, tables, bars and notes.

    `absent` says why there is nothing to show; `folded` sections open on demand.
    """

    key: str
    title: str
    how: str
    tables: tuple[Table, ...]
    absent: str
    chart: Chart | None = None
    bars: tuple[Bar, ...] = ()
    parts: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    folded: bool = False


def sections(study: Study, looks: Looks, name: str) -> tuple[Section, ...]:
    """All sections of one record, in their order; empty tables are left out. `name` is the record's id."""
    asked, _ = parted(study)
    found = (
        *_decode(study, looks, name), *_bytes(study, looks, name), *_paper(study, looks, name),
        *_speed(asked, looks), *_details(study, looks),
    )  # fmt: skip
    return tuple(
        msgspec.structs.replace(one, tables=tuple(table for table in one.tables if table.rows))
        for one in found
    )


def _decode(study: Study, looks: Looks, name: str) -> Iterator[Section]:
    maps = decode_maps(study)
    if maps:
        yield Section(
            key="decode",
            title="Decode map",
            how=how_words(maps, study.record.backend),
            chart=decode_chart(maps, f"{name}-decode"),
            tables=(decode_table(maps, looks),),
            absent="No cell has numbers.",
        )


def _bytes(study: Study, looks: Looks, name: str) -> Iterator[Section]:
    yield Section(
        key="bytes",
        title="Byte ledger",
        how="Bytes of each kernel and tensor at each memory level: what the IO model says beside what the "
        "counters read. Counters know kernels and not tensors, and the model does not know the kernels of "
        "libraries: there - stands." + (_COUNTED if any(run.counted for run in study.record.runs) else ""),
        tables=(byte_ledger(study, looks),),
        absent="Neither a model nor counters split the bytes of these runs.",
    )
    found = laws(study.record)
    if found:
        yield Section(
            key="law",
            title="The law",
            how="Bytes grow as N^a d^b M^c: in each chart one of the three varies, and lines have the slope "
            "that the law says, through the last mark of each. Modelled and counted bytes are of matrices, "
            "measured ones are all; M is the elements that stay on chip.",
            chart=law_chart(found, looks, f"{name}-law"),
            tables=(
                exponents(found, looks),
                points(found, looks),
                memory_table(on_chip(study.record), looks),
            ),
            absent="Nothing was swept.",
        )


def _paper(study: Study, looks: Looks, name: str) -> Iterator[Section]:
    figure = figure2(study.record)
    if figure is not None:
        yield Section(
            key="figure2",
            title="Figure 2 of FlashAttention",
            how=" ".join(figure_words(figure)),
            chart=figure2_chart(figure, looks, f"{name}-figure2"),
            tables=figure2_tables(figure, looks),
            absent="No panel of the figure was run.",
        )


def _speed(study: Study, looks: Looks) -> Iterator[Section]:
    yield Section(
        key="time",
        title="Where the time went",
        how="Each measured time as parts that add up to it: ideal is the convention's FLOPs at the peak, "
        "and what comes after it was lost; a negative clock part is a chip above the data sheet's clock.",
        tables=(time_parts(study, looks),),
        bars=bars(study, looks),
        parts=loss_names(study),
        absent="No time was measured that could be split.",
    )
    yield Section(
        key="memory",
        title="Memory and energy",
        how="Peak memory is what a run takes above its inputs; energy, power and the sustained numbers are "
        "of runs back to back, the clock is that of the timed samples.",
        tables=(memory_and_energy(study, looks),),
        absent="None of this was measured.",
    )


def _details(study: Study, looks: Looks) -> Iterator[Section]:
    yield Section(
        key="correctness",
        title="Correctness",
        how="A result is correct if its largest error against float64 is at most twice that of the eager "
        "path, plus a small floor for the dtype; one that is not has no time.",
        tables=(correctness(study, looks),),
        absent="Nothing ran, so nothing was checked.",
    )
    yield Section(
        key="kernels",
        title="Kernels",
        how="Raw counters of each kernel in launch order, and the tile and compiled code of those whose "
        "tiles are known; DRAM writes count here without lines that were still in L2.",
        tables=(kernels(study, looks), tiles(study, looks)),
        absent="No kernel was counted, and no tiles are known.",
    )
    yield Section(
        key="io",
        title="IO check",
        how="Measured traffic and FLOPs held against the model: off is how far measured lies from expected, "
        "and why says what the expectation rests on or what is missing.",
        tables=(verdicts(study, looks),),
        absent="No run has numbers to check.",
    )
    yield Section(
        key="environment",
        title="Environment",
        how="Where the record was made, with which versions, and the rates that the roofs rest on with their "
        "sources.",
        tables=(environment(study), device(study)),
        absent="The record does not say where it was made.",
    )
    yield Section(
        key="numbers",
        title="All numbers",
        how="Every recorded and derived number; all digits are in the files at the end.",
        tables=(all_numbers(study),),
        notes=missing(study),
        absent="There is no number in this record.",
        folded=True,
    )
