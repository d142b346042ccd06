"""Counting bytes by executing the kernels that are shipped, on any CPU: every load and store by tensor.

The count is held against the ledger of the IO model, entry by entry. It needs no GPU and no counters; what
hardware adds (lines that are fetched in part, spilled registers) it does not see.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

import perfkit
from perfkit.errors import UsageError
from perfkit.measure.counting.names import KNOWN
from perfkit.measure.counting.types import (
    DEFAULT_CAPABILITY,
    Count,
    CountFailed,
    Failure,
    Request,
    Sampling,
    request,
)
from perfkit.measure.draft import Draft
from perfkit.model.traffic import Traffic
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Ledger, Op, by_tensor, total

TAGS: Final = ("l2_read_counted", "l2_write_counted")
_NOTHING: Final = Traffic(read_bytes=0, write_bytes=0)


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
    if (reason := refusal(op, row, w)) is not None:
        raise UsageError(f"{row.name} cannot be counted: {reason}")
    return count_all([request(row, w, programs, capability, descriptors)])[0]


def refusal(op: Op, row: Implementation, w: AttentionWorkload) -> str | None:
    """Why `row` cannot be counted on the workload; None if it can."""
    if not isinstance(w, op.workload):
        return f"the workload is not one of {op.name}"
    if row.io is None:
        return "its kernels are not perfkit's own"
    return row.refusal(w)


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


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel and tensor whose counted bytes are not those of the ledger; zero where it has no entry.

    `reason` says why a count on a CPU must differ there; None where nothing explains it.
    """

    kernel: str
    tensor: str
    counted: Traffic
    expected: Traffic
    reason: str | None = None


def differences(counted: Ledger, expected: Ledger) -> tuple[Difference, ...]:
    """Every entry in which two ledgers differ, in the order of `expected`; none if they are equal."""
    left, right = by_tensor(counted), by_tensor(expected)
    return tuple(
        Difference(
            kernel=key[0],
            tensor=key[1],
            counted=left.get(key, _NOTHING),
            expected=right.get(key, _NOTHING),
            reason=KNOWN.get(key),
        )
        for key in {**right, **left}
        if left.get(key, _NOTHING) != right.get(key, _NOTHING)
    )


def add_counted(draft: Draft, counted: Count) -> None:
    """Add the bytes between SMs and L2 as they were counted; absent where a part of them was not seen."""
    if counted.passes:
        draft.lack(TAGS, "passes of torch over tensors were counted, not what its kernels load and store")
        return
    traffic = total(counted.moved)
    note = "; ".join(counted.notes + _atomics(counted)) or None
    for tag, value in zip(TAGS, (traffic.read_bytes, traffic.write_bytes), strict=True):
        draft.put(tag, value, "counted", note=note)


def _atomics(counted: Count) -> tuple[str, ...]:
    bytes_apart = sum(entry.operand_bytes for entry in counted.atomics)
    return (f"{bytes_apart} bytes of atomic operations apart",) if bytes_apart else ()
