"""The report as one HTML file that needs nothing else: no network, and no JavaScript for its tables."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from perfkit.analysis.comparison import workloads
from perfkit.analysis.report import Report, Titled, changes, comparison_of
from perfkit.analysis.study import Study
from perfkit.reports.html.cells import CLASSES, MARKS, Looks, Table
from perfkit.reports.html.contrasts import changed, contrasts
from perfkit.reports.html.embed import downloads, plotly, plotly_notice, script_json
from perfkit.reports.html.figure import Figure
from perfkit.reports.html.lengths import length_charts
from perfkit.reports.html.looks import DARK, LIGHT, SYMBOLS, looks
from perfkit.reports.html.results import all_results
from perfkit.reports.html.roofline import rooflines
from perfkit.reports.html.sections import Section, sections
from perfkit.reports.html.summary import Badge, badges, summary
from perfkit.reports.law_words import sentences
from perfkit.reports.places import common, joined, place
from perfkit.reports.studies import parted
from perfkit.reports.words import comparison_words

#: Up to so many records stand open; the others are a line each that opens.
OPEN: Final = 2


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the report with everything about it."""

    id: str
    name: str
    about: str
    sentences: tuple[str, ...]
    badges: tuple[Badge, ...]
    comparison: Table | None
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    open: bool


def as_html(report: Report) -> bytes:
    """The report as one file, the same bytes for the same report. UsageError where nothing compares."""
    report = _readable(report)
    look = looks(report)
    since = changes(report)
    asked = _asked(report)
    charts, lengths = rooflines(asked, look), length_charts(asked, look)
    entries = [_entry(report, part, i, look) for i, part in enumerate(report.parts)]
    figures = [*charts, *(figure for one in lengths for figure in one.figures), *_law_figures(entries)]
    tables = [changed(comparison, look, part.name) for part, comparison in since]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary(report, since),
            results=all_results(asked.parts, look),
            entries=entries,
            several=len(entries) > 1,
            charts=charts,
            lengths=lengths,
            changes=tables,
            baseline=report.baseline,
            threshold=f"{report.threshold * 100:.4g} %",
            looks=look,
            symbols=SYMBOLS,
            light=LIGHT,
            dark=DARK,
            marks=MARKS,
            classes=CLASSES,
            figures=Markup(script_json(figures)),
            downloads=downloads(report),
            plotly=Markup(plotly()) if figures else None,
            notice=plotly_notice(),
        )
    )
    return page.encode()


@cache
def _environment() -> Environment:
    """Templates with escaping on: whatever a record says is text. An undefined name is an error."""
    return Environment(
        loader=PackageLoader("perfkit.reports.html"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _readable(report: Report) -> Report:
    """The report with names that can be encoded: a file name may hold bytes that are no text."""

    def cleaned(part: Titled) -> Titled:
        return msgspec.structs.replace(part, name=part.name.encode(errors="replace").decode())

    return msgspec.structs.replace(
        report,
        parts=tuple(map(cleaned, report.parts)),
        baseline=cleaned(report.baseline) if report.baseline else None,
    )


def _asked(report: Report) -> Report:
    """The report without the trials of sweeps: they have charts of their own, and no place beside others."""

    def without(part: Titled) -> Titled:
        return msgspec.structs.replace(part, study=parted(part.study)[0])

    return msgspec.structs.replace(
        report,
        parts=tuple(map(without, report.parts)),
        baseline=without(report.baseline) if report.baseline else None,
    )


def _law_figures(entries: Sequence[Entry]) -> Iterator[Figure]:
    for section in (section for entry in entries for section in entry.sections):
        yield from section.chart.figures if section.chart else ()


def _entry(report: Report, part: Titled, index: int, look: Looks) -> Entry:
    study = part.study
    comparison = comparison_of(study, report.threshold)
    compared = comparison_words(comparison) if comparison else ()
    name = f"record-{index + 1}"
    return Entry(
        id=name,
        name=part.name,
        about=_about(parted(study)[0]),
        sentences=(*sentences(study), *compared),
        badges=badges((study,)),
        comparison=contrasts(comparison, look) if comparison else None,
        sections=sections(study, look, name),
        notes=tuple(_notes(study)),
        open=index < OPEN,
    )


def _about(study: Study) -> str:
    """Op, device and workloads of a record in one line."""
    among = workloads(study)
    where = joined(place(w, among) for w in among) if len(among) > 1 else ""
    parts = [study.record.op, study.record.device.model, common(among) if among else "no runs", where]
    return ", ".join(part for part in parts if part)


def _notes(study: Study) -> Iterator[str]:
    """What the record and its runs say about themselves, each once."""
    yield from study.record.notes
    for finding in study.findings:
        run = finding.placement.run
        lines = [*run.notes, *(f"clock limited by {reason}" for reason in run.clock_reasons)]
        yield from (f"{run.impl}: {line}" for line in dict.fromkeys(lines))
