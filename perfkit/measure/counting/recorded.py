"""Counts in a record: the runs of a session executed on the CPU, and what they moved added to them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Final

import msgspec

from perfkit.measure.counting.count import answers
from perfkit.measure.counting.types import Count, CountFailed, Failure, Request
from perfkit.ops.base import total
from perfkit.record import Number, Record, Run, number, unavailable

TAGS: Final = ("l2_read_counted", "l2_write_counted")
LEFT: Final = "interrupted before it was counted"


def with_counts(
    record: Record, requests: Sequence[Request | None], stage: Callable[[str, str], None]
) -> Record:
    """The record with the count of each run that has a request, in the order of its runs.

    Processes run side by side, one a core. What cannot be counted keeps the reason; where that is known
    beforehand no process is started. After Ctrl-C a run that was not counted is an interrupted one, and keeps
    all numbers that it has.
    """
    runs, wanted = list(record.runs), []
    for at, request in enumerate(requests):
        if request is not None and request.uncounted is not None:
            runs[at] = _left_out(runs[at], request.uncounted)
        elif request is not None:
            wanted.append((at, request))
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        started = {pool.submit(answers, [request]): at for at, request in wanted}
        for done, future in enumerate(as_completed(started)):
            at = started[future]
            stage(f"{runs[at].impl} ({done + 1} of {len(wanted)})", "executed on the CPU")
            runs[at] = with_count(runs[at], _answer(future))
    except KeyboardInterrupt:
        for at, _ in wanted:
            if not runs[at].counted:
                left = _with(runs[at], _absent(LEFT))
                runs[at] = msgspec.structs.replace(left, status="interrupted", reason=LEFT)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return msgspec.structs.replace(record, runs=tuple(runs))


def _answer(future: Future[tuple[Count | Failure, ...]]) -> Count | Failure:
    """The one answer of a process; a process that died is an answer too."""
    try:
        (answer,) = future.result()
    except CountFailed as error:
        return Failure(message=error.message, hint=error.hint)
    return answer


def _left_out(run: Run, reason: str) -> Run:
    """The run with a note that its kernels cannot be counted: that is no failure of a count."""
    noted = msgspec.structs.replace(run, notes=(*run.notes, f"{run.impl} is not counted: {reason}"))
    return _with(noted, _absent(f"not counted here: {reason}"))


def with_count(run: Run, answer: Count | Failure) -> Run:
    """The run with what was counted, by tensor and in sum, or with the reason why there is nothing."""
    if isinstance(answer, Failure):
        return _with(run, _absent(answer.message))
    notes = tuple(f"counted: {note}" for note in answer.notes)
    counted = msgspec.structs.replace(run, counted=answer.moved, notes=(*run.notes, *notes))
    return _with(counted, numbers_of(answer))


def numbers_of(counted: Count) -> dict[str, Number]:
    """The bytes between SMs and L2 as they were counted; absent where a part of them was not seen."""
    if counted.passes:
        return _absent("passes of torch over tensors were counted, not what its kernels load and store")
    traffic = total(counted.moved)
    note = "; ".join(counted.notes + _atomics(counted)) or None
    values = (traffic.read_bytes, traffic.write_bytes)
    return {tag: number(tag, value, "counted", note) for tag, value in zip(TAGS, values, strict=True)}


def _atomics(counted: Count) -> tuple[str, ...]:
    bytes_apart = sum(entry.operand_bytes for entry in counted.atomics)
    return (f"{bytes_apart} bytes of atomic operations apart",) if bytes_apart else ()


def _absent(reason: str) -> dict[str, Number]:
    return {tag: unavailable(tag, reason) for tag in TAGS}


def _with(run: Run, numbers: dict[str, Number]) -> Run:
    return msgspec.structs.replace(run, numbers={**run.numbers, **numbers})
