"""Counting bytes by executing the kernels that are shipped, on any CPU: every load and store by tensor.

The count is held against the ledger of the IO model, entry by entry. It needs no GPU and no counters; what
hardware adds (lines that are fetched in part, spilled registers) it does not see.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import perfkit
from perfkit.errors import UsageError
from perfkit.measure.counting.types import (
    DEFAULT_CAPABILITY,
    Count,
    CountFailed,
    Failure,
    Request,
    Sampling,
    request,
)
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Op


def count(
    op: Op,
    row: Implementation,
    w: AttentionWorkload,
    *,
    programs: Sampling | None = None,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    descriptors: bool = False,
) -> Count:
    """Execute `row` once on the CPU, in a process of its own, and count what it moves.

    One K/V head runs for all unless `programs` says otherwise. UsageError for what `row` cannot serve,
    CountFailed where it cannot be executed.
    """
    if (reason := refusal(op, row, w, capability)) is not None:
        raise UsageError(f"{row.name} cannot be counted: {reason}")
    return count_all([request(row, w, programs, capability, descriptors)])[0]


def refusal(
    op: Op, row: Implementation, w: AttentionWorkload, capability: tuple[int, int] = DEFAULT_CAPABILITY
) -> str | None:
    """Why what `row` would run on the workload cannot be counted; None if it can."""
    if not isinstance(w, op.workload):
        return f"the workload is not one of {op.name}"
    if row.io is None:
        return "its kernels are not perfkit's own"
    return row.refusal(w) or row.not_counted(w, capability)


def count_all(requests: Sequence[Request]) -> tuple[Count, ...]:
    """The counts of all requests, in one process: starting one takes seconds. The first failure is raised."""
    counts = []
    for found in answers(requests):
        if isinstance(found, Failure):
            raise CountFailed(found.message, found.hint)
        counts.append(found)
    return tuple(counts)


def answers(requests: Sequence[Request]) -> tuple[Count | Failure, ...]:
    """A count for each request, or why there is none. CountFailed where the process itself fails."""
    done = subprocess.run(
        [sys.executable, "-m", "perfkit.measure.counting.child"],
        input=msgspec.json.encode(requests),
        capture_output=True,
        env=_environment(),
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CountFailed(
            f"the process that counts ended with status {done.returncode}: {said[-1] if said else 'no word'}"
        )
    return msgspec.json.decode(done.stdout, type=tuple[Count | Failure, ...])


def _environment() -> dict[str, str]:
    """No GPU, Triton's interpreter, and this perfkit."""
    root = str(Path(perfkit.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
