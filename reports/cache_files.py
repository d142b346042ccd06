"""What `perfkit cache` found as files: all of it as JSON, and one row a number as CSV."""

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Final

import msgspec

from perfkit.analysis.cache_outcome import CacheStudy, Outcome
from perfkit.reports.files import write

SCHEMA: Final = "perfkit.cache/1"
_SLOTS: Final = ("capacity", "used", "reserved", "unused", "external", "scattered", "free", "saved")
_PEAKS: Final = ("peak_used", "peak_allocated", "peak_waste")
_OTHERS: Final = (
    ("waste", "1"), ("peak_table_bytes", "B"), ("batch", "requests"), ("peak_batch", "requests"),
    ("steps", "steps"), ("busy", "steps"), ("generated", "tokens"), ("throughput", "tokens/step"),
    ("wait", "steps"), ("preempted", "1"), ("restored", "tokens"),
)  # fmt: skip


def numbers(study: CacheStudy, one: Outcome) -> Iterator[tuple[str, float, str]]:
    """(number, value, unit) of one policy; slots as bytes."""
    for name in (*_SLOTS, *_PEAKS):
        yield name, getattr(one, name) * study.shape.token_bytes, "B"
    for name, unit in _OTHERS:
        yield name, getattr(one, name), unit


def as_csv(study: CacheStudy) -> bytes:
    """One tidy row a number and policy, with its unit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("policy", "page", "number", "value", "unit"))
    for one in study.outcomes:
        for name, value, unit in numbers(study, one):
            writer.writerow((one.policy.kind, one.policy.page or "", name, value, unit))
    return text.getvalue().encode()


def as_json(study: CacheStudy) -> bytes:
    """Everything, with the thinned timeline of each policy, in slots of `token_bytes` each."""
    found: dict[str, Any] = {"schema": SCHEMA, **msgspec.to_builtins(study)}
    found["shape"]["token_bytes"] = study.shape.token_bytes
    for row, one in zip(found["outcomes"], study.outcomes, strict=True):
        row |= {"throughput": one.throughput, "free": one.free}
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


#: Option -> the function "module:name" that makes the file. Lazy: plotly takes its time.
FORMATS: Final = {
    "json": "perfkit.reports.cache_files:as_json",
    "csv": "perfkit.reports.cache_files:as_csv",
    "html": "perfkit.reports.html.cache:as_html",
}


def write_files(study: CacheStudy, targets: Mapping[str, str | None]) -> None:
    """Write every target that was asked for."""
    for name, path in targets.items():
        if path:
            module, function = FORMATS[name].split(":")
            write(getattr(import_module(module), function)(study), path)
            if path != "-":
                print(f"wrote {path}", file=sys.stderr)
