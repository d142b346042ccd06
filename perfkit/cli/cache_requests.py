"""The requests that `perfkit cache` plays: those of a file, or a synthetic trace."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from perfkit.analysis.cache_synthetic import synthetic_trace
from perfkit.analysis.cache_trace import Request, read_trace
from perfkit.errors import UsageError
from perfkit.model.units import parse_count

_REQUESTS: Final = 1000
_RATE: Final = 0.5


def from_file(trace: str, step_time: float | None, synthetic: Mapping[str, object]) -> tuple[Request, ...]:
    """The requests of the file `trace`; UsageError where options of the `synthetic` trace are given, too."""
    given = [name for name, value in synthetic.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} with --trace: a file says that itself", "leave one of them out")
    step = 1.0 if step_time is None else step_time
    if not (math.isfinite(step) and step > 0):
        raise UsageError(f"--step-time must be a time above 0, not {step:g}")
    return read_trace(trace, step)


def requests_of(
    *,
    trace: str | None,
    step_time: float | None,
    requests: str | None,
    rate: float | None,
    prefix_tokens: str | None,
    seed: int | None,
    max_len: int,
) -> tuple[tuple[Request, ...], str]:
    """The requests, and what they are called in a report."""
    if trace is not None:
        synthetic = {"--requests": requests, "--rate": rate, "--prefix-tokens": prefix_tokens, "--seed": seed}
        # A file name may hold bytes that are no text.
        name = Path(trace).name.encode(errors="replace").decode()
        return from_file(trace, step_time, synthetic), name
    if step_time is not None:
        raise UsageError("--step-time without --trace: a synthetic trace counts in steps", "leave it out")
    count = parse_count(requests, "--requests") if requests is not None else _REQUESTS
    prefix = parse_count(prefix_tokens, "--prefix-tokens") if prefix_tokens is not None else 0
    rate = _RATE if rate is None else rate
    found = synthetic_trace(count, seed or 0, rate, max_len, prefix)
    common = f", prefix of {prefix:,} tokens" if prefix else ""
    return found, f"synthetic trace, seed {seed or 0}, {rate:g} requests a step{common}"
