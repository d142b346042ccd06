"""Where one record was made, what its device allows, and every number in it."""

from collections.abc import Iterator, Sequence

import msgspec

from perfkit.analysis.comparison import workloads
from perfkit.analysis.metrics import METRICS
from perfkit.analysis.study import Finding, Study
from perfkit.model.units import Hint
from perfkit.record import QUANTITIES, Number, Provenance, Record
from perfkit.reports.html.cells import Cell, Column, Row, Table, absent, columns, number_cell, shown, words
from perfkit.reports.html.rows import named
from perfkit.reports.places import place

#: Every kind of number, recorded and derived: tag, label, how to show it, what it means.
_KINDS = tuple((row.tag, row.label, row.hint, row.description) for row in QUANTITIES) + tuple(
    (row.tag, row.label, row.hint, row.description) for row in METRICS
)


def environment(study: Study) -> Table:
    """Names and versions, and what the record says about itself."""
    record = study.record
    rows = [Row(cells=(words(name), _fact(value))) for name, value in _facts(record)]
    rows += [Row(cells=(words("note"), words(note, "long"))) for note in record.notes]
    return Table(caption="Environment", columns=columns("what", "value", text=("value",)), rows=tuple(rows))


def device(study: Study) -> Table:
    """The rates and sizes that the roofs and the L2 model rest on, with their sources."""
    rows = (
        Row(cells=(words(name), shown(value, hint, provenance, "not in the profile"), words(source, "long")))
        for name, value, hint, provenance, source in _device(study)
    )
    head = columns("what", "value", "source", text=("source",))
    return Table(caption="Device", columns=head, rows=tuple(rows))


def _fact(value: str | None) -> Cell:
    return words(value, "long") if value else words("-", "unavailable", "absent, or it does not say")


def _facts(record: Record) -> Iterator[tuple[str, str | None]]:
    profile = f"profile {record.device.name}{', derived' if record.device.derived else ''}"
    yield "device", f"{record.device.model} ({profile})"
    yield "backend", record.backend
    for name, value in msgspec.structs.asdict(record.environment).items():
        yield name.replace("_", " "), " ".join(value) if name == "command" else value


def _device(study: Study) -> Iterator[tuple[str, float | None, Hint, Provenance, str]]:
    """Rates of the profile that the roofs rest on, with where each comes from."""
    device = study.record.device
    measured = study.record.backend == "cpu"
    kind: Provenance = "measured" if measured else "datasheet"
    for dtype in dict.fromkeys(w.dtype for w in workloads(study)):
        peak = device.peak(dtype, "tensor") or device.peak(dtype, "vector")
        if peak:
            yield f"peak, {peak.label}", peak.flop_per_s, "flop_rate", kind, device.sources[peak.source]
    for name, level in (("DRAM", device.memory.dram), ("L2", device.memory.l2)):
        rate = device.level("dram" if name == "DRAM" else "l2").bandwidth()
        source = ", ".join(dict.fromkeys(device.sources[figure.source] for figure in level.rates))
        yield f"{name} bandwidth", rate, "byte_rate", kind, source
        size = level.capacity_bytes
        yield f"{name} capacity", size.value, "bytes", "datasheet", device.sources[size.source]


def all_numbers(study: Study) -> Table:
    """Every number, recorded and derived: a row each, a column for each run."""
    among = workloads(study)
    head = [Column(name="number")]
    for finding in study.findings:
        run = finding.placement.run
        where = place(run.setting, among)
        head.append(Column(name=f"{named(finding, study)}{f', {where}' if where else ''}", number=True))
    rows = []
    for tag, label, hint, text in _KINDS:
        numbers = [_find(finding, tag) for finding in study.findings]
        if any(number is not None for number in numbers):
            rows.append(Row(cells=(words(label, note=text), *(_number(n, hint) for n in numbers))))
    return Table(caption="All numbers", columns=tuple(head), rows=tuple(rows))


def _find(finding: Finding, tag: str) -> Number | None:
    """The number `tag` of a run, recorded or derived."""
    return finding.placement.run.numbers.get(tag) or finding.metrics.get(tag)


def _number(number: Number | None, hint: Hint) -> Cell:
    """A number; why one is absent is said below the table."""
    if number is not None and number.value is None and number.reason:
        return absent(None)
    return number_cell(number, hint)


def missing(study: Study) -> tuple[tuple[str, str], ...]:
    """What is unavailable and why: (reason, which numbers of which implementations)."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for finding in study.findings:
        run = finding.placement.run
        for tag, label, _, _ in _KINDS:
            number = _find(finding, tag)
            if number is not None and number.value is None:
                found.setdefault(number.reason or "", {}).setdefault(label, {})[run.impl] = None
    return tuple((reason, "; ".join(_who(labels))) for reason, labels in found.items())


def _who(labels: dict[str, dict[str, None]]) -> Sequence[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for label, impls in labels.items():
        groups.setdefault(tuple(impls), []).append(label)
    return [f"{', '.join(impls)}: {', '.join(names)}" for impls, names in groups.items()]
