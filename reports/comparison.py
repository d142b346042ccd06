"""A comparison in the terminal: what it says in words first, then speed, cost, pictures and notes."""

from collections.abc import Iterable, Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfkit.analysis.comparison import Comparison
from perfkit.analysis.study import Finding, Study
from perfkit.ops.base import Level
from perfkit.record import Run
from perfkit.reports import comparison_tables as tables
from perfkit.reports import sweep_plot
from perfkit.reports.cells import ended_well
from perfkit.reports.contrast_words import Row, pairs
from perfkit.reports.kernel_words import of_runs
from perfkit.reports.kv_words import kv_words
from perfkit.reports.lines import note, title
from perfkit.reports.places import common, joined, place, places
from perfkit.reports.published import figures
from perfkit.reports.words import comparison_words

#: The columns of bytes, that modelled ones may stand in for, and their levels.
_LEVELS: Final[dict[str, Level]] = {"DRAM": "DRAM", "SM<->L2": "L2"}


def render(study: Study, comparison: Comparison, width: int = 80) -> RenderableType:
    """The whole report for a terminal of `width` columns."""
    parts: list[RenderableType] = [_header(study, comparison), Text()]
    parts += [_sentences(comparison_words(comparison))]
    parts += [
        Text(),
        title("Speed", "above 1x is faster than the baseline"),
        tables.speed(comparison, width),
    ]
    parts += map(note, _reasons(comparison))
    parts += [Text(), title("Cost", "each beside the baseline's"), tables.cost(comparison, width)]
    parts += map(note, _absences(comparison))
    parts += _pictures(study, width)
    shown = figures(study, width)
    if shown is not None:
        parts += [Text(), title("Published", "beside what was measured here"), shown]
    return Group(*parts, Text(), *map(note, _notes(study, comparison)))


def _sentences(words: Iterable[str]) -> Table:
    """One sentence a row, behind a dash, so that folded lines stand under their own."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for sentence in words:
        table.add_row("-", Text(sentence))
    return table


def _header(study: Study, comparison: Comparison) -> Text:
    record, everywhere = study.record, tables.among(comparison)
    text = title(f"{record.op} on {record.device.model}")
    text.append(f"\n{common(everywhere)}")
    if len(everywhere) > 1:
        text.append(f"\nat {places(place(w, everywhere) for w in everywhere)}")
    text.append(f"\n{kv_words([finding.placement.run for finding in _findings(comparison)])}")
    if record.backend in ("model", "fake"):
        word = "MODELLED" if record.backend == "model" else "FAKE"
        text.append(f"\n{word}: no number here was measured", "bold yellow")
    return text


def _pictures(study: Study, width: int) -> Iterator[RenderableType]:
    """Time and traffic against N, where there are at least two N."""
    time, traffic = sweep_plot.time_plot(study, width), sweep_plot.traffic_plot(study, width)
    measured = study.record.backend != "model"
    if time is not None:
        yield from (Text(), title("Time" if measured else "Least time", "against N"), time)
    if traffic is not None:
        rest = "against N; letters measured, dots modelled" if measured else "against N, modelled"
        yield from (Text(), title("DRAM bytes", rest), traffic)
    if time is not None or traffic is not None:
        yield Text(", ".join(f"{letter} {name}" for name, letter in sweep_plot.letters(study).items()))


def _reasons(comparison: Comparison) -> Iterator[str]:
    """What verdicts rest on: those that are certain once, the others with the runs that they are on.

    What was not compared at all is in the summary already.
    """
    everywhere = tables.among(comparison)
    certain: dict[str, list[str]] = {}
    others: dict[tuple[str, str], list[Row]] = {}
    for row in (row for rows in pairs(comparison) for row in rows):
        verdict = row.contrast.verdict
        if verdict.status in ("faster", "slower"):
            certain.setdefault(verdict.reason, []).append(verdict.status)
        elif row.contrast.speedup is not None:
            others.setdefault((verdict.status, verdict.reason), []).append(row)
    for reason, statuses in certain.items():
        yield f"{joined(dict.fromkeys(statuses))}: {reason}"
    for (status, reason), rows in others.items():
        who = joined(dict.fromkeys(row.contrast.label for row in rows))
        at = f" at {places(place(r.group.workload, everywhere) for r in rows)}" if len(everywhere) > 1 else ""
        yield f"{status}: {who}{at}: {reason}"


def _absences(comparison: Comparison) -> Iterator[str]:
    """Why cells of the tables of cost are `-`, a line for each reason and the runs that it is true of."""
    missing: dict[tuple[str, str], list[str]] = {}
    for finding in _findings(comparison):
        for name, reason in _missing(finding):
            missing.setdefault((name, reason), []).append(finding.placement.run.impl)
    lines: dict[tuple[str, str], list[str]] = {}
    for (name, reason), impls in missing.items():
        lines.setdefault((joined(dict.fromkeys(impls)), reason), []).append(name)
    for (who, reason), names in lines.items():
        yield f"- {', '.join(names)} of {who}: {reason}"


def _missing(finding: Finding) -> Iterator[tuple[str, str]]:
    """The numbers that a run should have in the tables of cost and has not, with the reason."""
    placement = finding.placement
    if not ended_well(placement.run):
        return
    for name, tags in tables.COST_TAGS.items():
        if name in _LEVELS and placement.point(_LEVELS[name]):
            continue
        for number in (found for tag in tags if (found := placement.run.numbers.get(tag))):
            if number.value is None:
                yield name, number.reason or "not measured"
                break


def _findings(comparison: Comparison) -> Iterator[Finding]:
    for group in comparison.groups:
        yield group.baseline
        yield from (contrast.candidate for contrast in group.contrasts)


def _labelled(comparison: Comparison) -> Iterator[tuple[str, Run]]:
    """Every run that ended well, under the name that the tables have for it."""
    for group in comparison.groups:
        named = [(group.label, group.baseline), *((one.label, one.candidate) for one in group.contrasts)]
        yield from ((label, f.placement.run) for label, f in named if ended_well(f.placement.run))


def _notes(study: Study, comparison: Comparison) -> Iterator[str]:
    record, everywhere = study.record, tables.among(comparison)
    points = [point for f in _findings(comparison) for point in f.placement.points]
    if any(point.provenance != "measured" for point in points):
        yield "* modelled, not measured"
    if any(point.upper for point in points):
        yield "+ at least: compulsory traffic, the implementation's tiles are not known"
    yield f"device profile: {record.device.name}{' (derived)' if record.device.derived else ''}"
    yield from (*comparison.notes, *record.notes)
    yield from of_runs(record.op, _labelled(comparison), everywhere)
    for finding in study.findings:
        run = finding.placement.run
        where = place(run.setting, everywhere)
        limited = [f"clock limited by {', '.join(run.clock_reasons)}"] if run.clock_reasons else []
        for text in dict.fromkeys((*run.notes, *limited)):
            yield f"{run.impl}{f' at {where}' if where else ''}: {text}"
