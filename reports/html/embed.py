"""What is carried inside the HTML file: JSON that cannot end its script, packed data, plotly itself."""

import base64
import gzip
import html
from functools import cache
from typing import Any, Final

import msgspec

from perfkit.analysis.report import Report
from perfkit.record import Record, dump
from perfkit.reports.files import as_csv

#: What could end a script or begin markup in it, and line ends that old scripts take for theirs.
_ESCAPES: Final = (
    (b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"),
)  # fmt: skip


#: Packed bytes of records that a report carries, so that 50 records of any kind stay below 6 MB.
ROOM: Final = 1_500_000


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """A file inside the report: its name, what it is, its size in bytes, and its gzip as base64."""

    name: str
    description: str
    size: int
    packed: str


def script_json(value: Any) -> str:
    """`value` as JSON for the inside of a script element: all five characters occur in strings only."""
    text = msgspec.json.encode(value)
    for character, escape in _ESCAPES:
        text = text.replace(character, escape)
    return text.decode()


def plain(text: str) -> str:
    """`text` for plotly, which takes hover texts, names and titles for its own small HTML."""
    return html.escape(text, quote=False)


def packed(content: bytes) -> str:
    """gzip as base64; the same bytes for the same content, so no time of writing in it."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


@cache
def plotly() -> str:
    """plotly.js, packed: a third of its size, and the browser unpacks it in a moment."""
    return packed(_plotly_source().encode())


@cache
def plotly_notice() -> str:
    """The licence notice at the head of plotly.js, which stays readable beside the packed code."""
    head = _plotly_source()[:1000].partition("*/")[0]
    return " ".join(line.strip(" */") for line in head.splitlines()).strip()


def _plotly_source() -> str:
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    source: str = get_plotlyjs()
    return source


def records_json(report: Report, samples: bool = True) -> bytes:
    """All records of the report, the baseline's last, as one JSON list; without raw samples if asked so."""
    parts = [*report.parts, *([report.baseline] if report.baseline else [])]
    records = (part.study.record if samples else without_samples(part.study.record) for part in parts)
    return b"[" + b",\n".join(dump(record).strip() for record in records) + b"]\n"


def without_samples(record: Record) -> Record:
    """The record with medians and intervals, but without the samples that they are of."""
    runs = []
    for run in record.runs:
        bare = run.timing and msgspec.structs.replace(run.timing, samples_s=[], clock_hz=[])
        runs.append(msgspec.structs.replace(run, timing=bare))
    return msgspec.structs.replace(record, runs=tuple(runs))


def downloads(report: Report) -> tuple[Download, ...]:
    """The data of the report as files. Samples beyond ROOM are left out, which their description says."""
    table = as_csv(report)
    records, text = records_json(report), "the records themselves with all samples, as a JSON list"
    data = packed(records)
    if len(data) > ROOM:
        records = records_json(report, samples=False)
        data = packed(records)
        text = "the records as a JSON list, without raw samples: all of them would make this file too large"
    return (
        Download(
            name="perfkit.csv",
            description="one row a number, recorded and derived, with unit, provenance and reason",
            size=len(table),
            packed=packed(table),
        ),
        Download(name="perfkit.json", description=text, size=len(records), packed=data),
    )
