"""What `perfkit io` runs and counts: the workloads that were asked for, and the trials of the law."""

from collections.abc import Iterator, Sequence

import msgspec

from perfkit.analysis.sweeps import Source, trials
from perfkit.cli.progress import progress
from perfkit.errors import UsageError
from perfkit.model.device import DeviceProfile
from perfkit.ops.attention_tiles import with_tiles
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation
from perfkit.ops.plan import table_capability
from perfkit.record import Record, Run

#: Rows of queries and of keys; None leaves a side as the table has it.
Sides = tuple[int | None, int | None]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One run: an implementation with its tiles, a workload, whether it is a trial, and to be counted."""

    row: Implementation
    workload: AttentionWorkload
    trial: bool
    counted: bool


def cases(
    rows: Sequence[Implementation],
    workloads: Sequence[AttentionWorkload],
    device: DeviceProfile,
    sides: Sides,
    sweep: bool,
    count: bool,
) -> list[Case]:
    """Every run in its order. UsageError for tiles that were asked for and cannot be."""
    asked = [
        Case(row=with_tiles(row, row.workload(w), device, *sides), workload=w, trial=False, counted=count)
        for w in workloads
        for row in rows
    ]
    return [*asked, *(_swept(rows, workloads[0].dtype, device, count) if sweep else ())]


def _swept(rows: Sequence[Implementation], dtype: str, device: DeviceProfile, count: bool) -> Iterator[Case]:
    for row in rows:
        counted = set(trials(row, ("counted",))) if count else set()
        sources: tuple[Source, ...] = ("modelled", "counted") if count else ("modelled",)
        for trial in trials(row, sources):
            w = msgspec.structs.replace(trial.workload, dtype=dtype)
            tiled = with_tile(row, w, device, trial.tile)
            yield Case(row=tiled, workload=w, trial=True, counted=trial in counted)


def with_tile(
    row: Implementation, w: AttentionWorkload, device: DeviceProfile, tile: Sides | None
) -> Implementation:
    """The row with the tile of a trial; one that refuses where the device has not the memory for it."""
    try:
        return with_tiles(row, w, device, *tile) if tile else row
    except UsageError as error:
        message = error.message
        return msgspec.structs.replace(row, refuses=lambda _: message)


def marked(record: Record, asked: Sequence[Case]) -> Record:
    """The record with its trials marked as such."""
    runs = zip(record.runs, asked, strict=True)
    return msgspec.structs.replace(
        record, runs=tuple(msgspec.structs.replace(run, trial=case.trial) for run, case in runs)
    )


def _as_it_ran(row: Implementation, run: Run) -> Implementation:
    """The row as the run had it: counting runs one K/V head, which alone might be dealt out otherwise."""
    pinned = {} if row.pinned is None else row.pinned(run.uses)
    return msgspec.structs.replace(row, options={**row.options, **pinned}, plan=lambda *_: run.uses)


def counted(record: Record, asked: Sequence[Case]) -> Record:
    """The record with every run that is to be counted executed on the CPU, one K/V head of it."""
    from perfkit.measure.counting.recorded import with_counts
    from perfkit.measure.counting.types import Sampling, request

    capability = table_capability(record.device)
    requests = [
        request(
            _as_it_ran(case.row, run),
            run.workload,
            Sampling(programs="alike" if case.trial else "all"),
            capability,
        )
        if case.counted and run.status in ("measured", "modelled")
        else None
        for case, run in zip(asked, record.runs, strict=True)
    ]
    with progress(sum(one is not None for one in requests)) as stage:
        return with_counts(record, requests, stage)
