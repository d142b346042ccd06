"""Published figures beside what was measured here: other people's numbers, with device and source."""

from collections.abc import Iterator

from rich.console import Group, RenderableType

from perfkit.analysis.comparison import workloads
from perfkit.analysis.metrics import METRICS
from perfkit.analysis.published import Published, published
from perfkit.analysis.study import Finding, Study
from perfkit.model.units import show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import BY_TAG, Number
from perfkit.reports.cells import place_header, place_text
from perfkit.reports.grid import Column, Row, grid
from perfkit.reports.lines import note
from perfkit.reports.ratios import ratio_text

_LABELS = {**{tag: q.label for tag, q in BY_TAG.items()}, **{m.tag: m.label for m in METRICS}}


def figures(study: Study, width: int) -> RenderableType | None:
    """A table of what others published for these workloads; None where there is nothing."""
    among = workloads(study)
    found = [(workload, figure) for workload in among for figure in published(study.record.op, workload)]
    if not found:
        return None
    columns = (
        Column(name=place_header(among) if len(among) > 1 else "", justify="left", wide=True),
        Column(name="impl", justify="left"), Column(name="number", justify="left", wide=True),
        Column(name="published"), Column(name="here"), Column(name="ratio"),
        Column(name="published on", justify="left", wide=True),
    )  # fmt: skip
    rows = [_row(study, workload, figure, among) for workload, figure in found]
    return Group(grid(columns, rows, width), *map(note, dict.fromkeys(_sources(found))))


def _row(
    study: Study, workload: AttentionWorkload, figure: Published, among: tuple[AttentionWorkload, ...]
) -> Row:
    here = number_here(study, workload, figure)
    value = None if here is None else here.value
    mark = "*" if here is not None and here.provenance == "modelled" else ""
    ratio = "-" if value is None or not figure.value else ratio_text(value / figure.value, "less") + mark
    return Row(
        cells=(
            place_text(workload, among),
            figure.impl,
            _LABELS.get(figure.tag, figure.tag),
            show(figure.value, figure.hint),
            "-" if value is None else show(value, figure.hint) + mark,
            ratio,
            figure.device,
        )
    )


def number_here(study: Study, workload: AttentionWorkload, figure: Published) -> Number | None:
    """The same number of the same implementation in this study; None where it has none or cannot be true."""
    for finding in study.findings:
        placement = finding.placement
        if (placement.run.impl, placement.run.workload) == (figure.impl, workload) and not placement.invalid:
            return _number(finding, figure.tag)
    return None


def _number(finding: Finding, tag: str) -> Number | None:
    return finding.metrics.get(tag) or finding.placement.run.numbers.get(tag)


def _sources(found: list[tuple[AttentionWorkload, Published]]) -> Iterator[str]:
    for _, figure in found:
        yield f"published on {figure.device}: {figure.source}{f'; {figure.note}' if figure.note else ''}"
