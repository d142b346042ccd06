"""Requests to an LLM server as lengths in tokens, read from a CSV file.

Nothing of their content matters to a cache: when a request arrives, how many tokens it brings, how many it
generates, and which of its first tokens others bring too.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

import msgspec

from perfkit.errors import UsageError
from perfkit.model.units import MAX_DIGITS

REQUIRED: Final = ("arrival", "prompt", "generated")
OPTIONAL: Final = ("prefix", "prefix_tokens")
_COLUMNS: Final = "columns: arrival,prompt,generated and, if prompts share a beginning, prefix,prefix_tokens"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request: `arrival` in decode steps, `prompt` tokens brought, `generated` tokens, 1 or more each.

    The first `prefix_tokens` of the prompt are the same in all requests with the same `prefix`.
    """

    arrival: float
    prompt: int
    generated: int
    prefix: str | None = None
    prefix_tokens: int = 0

    def __post_init__(self) -> None:
        """ValueError for what cannot be; the message says what."""
        if not (math.isfinite(self.arrival) and self.arrival >= 0):
            raise ValueError(f"arrival must be a time of 0 or more, not {self.arrival:g}")
        if self.prompt < 1 or self.generated < 1:
            raise ValueError("prompt and generated must be 1 token or more each")
        if not 0 <= self.prefix_tokens <= self.prompt:
            raise ValueError(f"prefix_tokens must lie within the prompt of {self.prompt} tokens")
        if (self.prefix is None) != (self.prefix_tokens == 0):
            raise ValueError("prefix and prefix_tokens stand together or not at all")

    @property
    def step(self) -> int:
        """The first decode step that can take it up."""
        return math.ceil(self.arrival)

    @property
    def tokens(self) -> int:
        """The tokens that it holds at its end."""
        return self.prompt + self.generated


def read_trace(path: str, step_time: float = 1.0) -> tuple[Request, ...]:
    """The requests of a CSV file by their arrival, which is divided by `step_time`, the length of a step.

    Equal arrivals keep their order; columns of other names are left alone. UsageError with the line for
    anything that is missing, no number or out of range, and for a file that is empty or cannot be read.
    """
    try:
        # A byte order mark, as spreadsheets write it, is no part of the first column's name.
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            found = list(_requests(path, file, step_time))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the trace {path}: {why}", _COLUMNS) from error
    if not found:
        raise UsageError(f"the trace {path} holds no requests", "one a line below the names of the columns")
    return tuple(sorted(found, key=lambda request: request.arrival))


def _requests(path: str, file: TextIO, step_time: float) -> Iterator[Request]:
    lines = csv.reader(file, strict=True)
    try:
        names = [name.strip() for name in next(lines, [])]
        _check_names(path, names)
        for cells in lines:
            if cells:
                yield _request(dict(_paired(names, cells)), step_time)
    except UnicodeDecodeError:
        raise
    except (csv.Error, ValueError) as error:
        raise UsageError(f"{path}, line {lines.line_num}: {error}", _COLUMNS) from error


def _check_names(path: str, names: Sequence[str]) -> None:
    if not names:
        raise UsageError(f"the trace {path} is empty", _COLUMNS)
    missing = [name for name in REQUIRED if name not in names]
    if ("prefix" in names) != ("prefix_tokens" in names):
        missing += [name for name in OPTIONAL if name not in names]
    if missing:
        raise ValueError(f"column {', '.join(missing)} is missing")
    twice = [name for name in (*REQUIRED, *OPTIONAL) if names.count(name) > 1]
    if twice:
        raise ValueError(f"column {', '.join(twice)} stands there twice")


def _paired(names: Sequence[str], cells: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} values for {len(names)} columns")
    return zip(names, (cell.strip() for cell in cells), strict=True)


def _request(row: dict[str, str], step_time: float) -> Request:
    shared = row.get("prefix_tokens", "")
    return Request(
        arrival=_time(row["arrival"]) / step_time,
        prompt=_count(row, "prompt"),
        generated=_count(row, "generated"),
        prefix=row.get("prefix") or None,
        prefix_tokens=_count(row, "prefix_tokens") if shared else 0,
    )


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"arrival must be a time of 0 or more, not '{text}'") from None


def _count(row: dict[str, str], name: str) -> int:
    text = row[name]
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise ValueError(f"{name} must be a whole number of tokens, not '{text}'")
    return int(text)
