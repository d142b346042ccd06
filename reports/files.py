"""Writing reports to files: JSON and CSV, to a path or to standard output, never over a file by accident."""

import csv
import io
import sys
from pathlib import Path

from perfkit.analysis.study import Study, rows
from perfkit.errors import UsageError
from perfkit.record import dump


def as_json(study: Study) -> bytes:
    """The record; what follows from it is computed again by whoever reads it."""
    return dump(study.record)


def as_csv(study: Study) -> bytes:
    """One tidy row per number, recorded and derived, with unit and provenance."""
    table = rows(study)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


#: Option -> how a study becomes a file.
FORMATS = {"json": as_json, "csv": as_csv}


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
