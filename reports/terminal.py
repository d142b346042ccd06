"""The report in the terminal: workload, roofline, table, IO check, where the time went, law, provenance."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from perfkit.analysis.comparison import workloads
from perfkit.analysis.decode_map import decode_maps, unmapped
from perfkit.analysis.figure2 import figure2
from perfkit.analysis.law import laws
from perfkit.analysis.study import Finding, Study
from perfkit.model.units import show
from perfkit.reports import plot, tables
from perfkit.reports.decode_map import decode_parts
from perfkit.reports.decode_map_words import whole_words
from perfkit.reports.figure2 import figure_parts
from perfkit.reports.kernel_words import kernel_words
from perfkit.reports.kv_words import kv_words
from perfkit.reports.law import law_parts
from perfkit.reports.law_words import trial_words
from perfkit.reports.lines import line, note, title
from perfkit.reports.places import common, place, places
from perfkit.reports.studies import of_workload, parted


def render(study: Study, width: int = 80) -> RenderableType:
    """The whole report for a terminal of `width` columns: each workload by itself, sweeps as their law.

    Decode steps over batches and contexts are shown as their maps, and not each by itself.
    """
    asked, swept = parted(study)
    maps = decode_maps(asked)
    mapped, asked = asked, unmapped(asked, maps)
    among = workloads(asked)
    parts: list[RenderableType] = [_header(asked), *decode_parts(maps, study.record.backend, width)]
    for w in among or (() if maps else (None,)):
        if len(among) > 1 and w is not None:
            parts += [Text(), Text(f"At {place(w, among)}", "bold underline")]
        parts += _of_workload(asked if w is None else of_workload(asked, w), width)
    words = tuple(trial_words(swept))
    if words:
        parts += [Text(), title("Series", "runs that show something together"), *map(line, words)]
    parts += law_parts(laws(study.record), width)
    figure = figure2(study.record)
    parts += figure_parts(figure, width) if figure is not None else ()
    parts += [Text(), *_notes(asked, swept)]
    parts += map(note, whole_words(mapped, maps)) if maps else ()
    return Group(*parts)


def _of_workload(study: Study, width: int) -> Iterator[RenderableType]:
    """Picture and tables of runs that can be told apart by their implementations."""
    picture = plot.roofline(study, width)
    if picture is not None:
        yield from (Text(), title("Roofline", "FLOP/s over FLOP/byte"), picture, _legend(study))
    yield from (Text(), tables.results(study))
    yield from _failures(study)
    if any(finding.verdicts for finding in study.findings):
        yield from (Text(), title("IO check", "traffic against the model"), tables.verdicts(study))
    if any(finding.placement.achieved for finding in study.findings):
        what = "what each allows at this intensity, and the share of it achieved"
        yield from (Text(), title("Ceilings", what), tables.ceilings(study))
    if any(finding.losses for finding in study.findings):
        yield from (Text(), title("Where the time went", "parts of each measured time"))
        yield tables.losses(study)
    if any(finding.placement.time_s for finding in study.findings):
        yield from (Text(), title("Run conditions", "clock of the samples; the rest back to back"))
        yield tables.conditions(study)


def _header(study: Study) -> Text:
    record = study.record
    device = record.device
    text = title(f"{record.op} on {device.model}")
    among = workloads(study)
    text.append(f"\n{common(among)}" if among else "")
    text.append(f"\nat {places(place(w, among) for w in among)}" if len(among) > 1 else "")
    text.append(f"\n{kv_words(record.runs)}" if among else "")
    if record.backend == "model":
        text.append("\nMODELLED: no number here was measured", "bold yellow")
    elif record.backend == "fake":
        text.append("\nFAKE: no number here was measured", "bold yellow")
    return text


def _legend(study: Study) -> Text:
    marks = plot.letters(study)
    text = Text("UPPER case at DRAM, lower case at SM<->L2: ")
    text.append(", ".join(f"{letter} {name}" for name, letter in marks.items()))
    text.append("\n")
    text.append(_roof_words(study))
    return text


def _roof_words(study: Study) -> str:
    placed = next((f.placement for f in study.findings if f.placement.datasheet), None)
    if placed is None or placed.datasheet is None:
        return ""
    sheet = placed.datasheet
    name = "measured ceilings" if study.record.backend == "cpu" else "data sheet"
    at = "" if study.record.backend == "cpu" else f" at {show(sheet.clock_hz, 'hertz')}"
    words = f"line: {name}, {show(sheet.compute, 'flop_rate')}{at}"
    roofs = [
        f.placement.roof
        for f in study.findings
        if f.placement.roof and f.placement.roof.source == "run clock"
    ]
    if roofs:
        low = min(roofs, key=lambda roof: roof.clock_hz)
        words += (
            f"\ndots: lowest run clock, {show(low.compute, 'flop_rate')} at {show(low.clock_hz, 'hertz')}"
        )
    elif not tables.measured(study):
        words += "; marks stand at the least time"
    return words


def _failures(study: Study) -> list[RenderableType]:
    lines = []
    for finding in study.findings:
        run, invalid = finding.placement.run, finding.placement.invalid
        if run.reason:
            lines.append(Text.assemble((f"{run.impl}: {run.status}", "yellow"), f": {run.reason}"))
        if invalid:
            lines.append(Text.assemble((f"{run.impl}: INVALID", "bold red"), f": {invalid}"))
    return [line(text) for text in lines]


def _notes(study: Study, swept: Study) -> Iterator[RenderableType]:
    record, among = study.record, workloads(study)
    modelled = any(point.provenance != "measured" for f in study.findings for point in f.placement.points)
    if modelled:
        yield note("* modelled, not measured")
    if any(point.upper for f in study.findings for point in f.placement.points):
        yield note("+ at least: compulsory traffic, the implementation's tiles are not known")
    yield note(f"device profile: {record.device.name}{' (derived)' if record.device.derived else ''}")
    yield from map(note, record.notes)
    for finding in study.findings:
        run = finding.placement.run
        where = place(run.setting, among)
        for text in dict.fromkeys((*run.notes, *_reasons(record.op, finding))):
            yield note(f"{run.impl}{f' at {where}' if where else ''}: {text}")
    runs = [finding.placement.run for finding in swept.findings]
    said = dict.fromkeys(f"{run.impl}, in a series: {text}" for run in runs for text in run.notes)
    yield from map(note, said)


def _reasons(op: str, finding: Finding) -> Iterator[str]:
    """What a reader needs to know about a run's numbers."""
    run = finding.placement.run
    yield from kernel_words(op, run)
    if run.clock_reasons:
        yield f"clock limited by {', '.join(run.clock_reasons)}"
    for verdict in finding.verdicts:
        if verdict.status in ("violated", "undecided"):
            yield f"{verdict.check}: {verdict.status}: {verdict.reason}"
        elif "x the convention" in verdict.reason:
            yield f"FLOPs {verdict.reason}"
        elif "zeros" in verdict.reason:  # expected has them, and the model beside it has not
            yield f"{verdict.check}: {verdict.reason}"
