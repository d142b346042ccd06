"""Writing reports to files, to a path or to standard output, never over a file by accident."""

import csv
import io
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

from perfkit.analysis.report import Report
from perfkit.analysis.study import rows
from perfkit.errors import UsageError
from perfkit.record import dump


def as_json(report: Report) -> bytes:
    """The one record of the report; what follows from it is computed again by whoever reads it."""
    if len(report.parts) != 1:
        raise UsageError("a record holds one run of perfkit", "write several as CSV, HTML or Markdown")
    return dump(report.parts[0].study.record)


def as_csv(report: Report) -> bytes:
    """One tidy row per number, recorded and derived, with unit and provenance; `source` names the part."""
    table = [{"source": part.name, **row} for part in report.parts for row in rows(part.study)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


#: Option -> the function "module:name" that makes the file from a Report. Lazy: plotly takes its time.
FORMATS: Final = {
    "json": "perfkit.reports.files:as_json",
    "csv": "perfkit.reports.files:as_csv",
    "md": "perfkit.reports.markdown.page:as_markdown",
    "html": "perfkit.reports.html.page:as_html",
}


def render(name: str, report: Report) -> bytes:
    """The content of a file in the format `name`."""
    module, function = FORMATS[name].split(":")
    content: bytes = getattr(import_module(module), function)(report)
    return content


def check_target(path: str, force: bool) -> None:
    """Refuse a target before anything is measured: an existing file, or a folder that is not there."""
    target = Path(path)
    if path == "-":
        return
    if target.is_dir():
        raise UsageError(f"{path} is a folder", "name a file in it")
    if target.exists() and not force:
        raise UsageError(f"{path} exists", "choose another name, or overwrite it with --force")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder", "create it first")


def write(content: bytes, path: str) -> None:
    """Write `content` to `path`, whole or not at all; `-` is standard output."""
    if path == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    partial = target.with_name(f".{target.name}.part")
    partial.write_bytes(content)
    partial.replace(target)
