"""A session: each implementation on the workload, one after the other, and nothing measured is ever lost."""

from collections.abc import Callable, Sequence
from typing import Protocol

from perfkit.errors import PerfkitError
from perfkit.measure.draft import Draft, Incorrect, OutOfMemory, Refused
from perfkit.measure.modelled import add_model, capability_of
from perfkit.model.device import DeviceProfile
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Op
from perfkit.record import BY_TAG, Environment, Record, Run, Status

#: Told which implementation is at which stage; called often, must be cheap.
Stage = Callable[[str], None]


class Backend(Protocol):
    """Something that can run implementations, or say why it cannot measure."""

    @property
    def name(self) -> str:
        """How the record names it."""

    @property
    def profile(self) -> DeviceProfile:
        """The device that the numbers are of."""

    @property
    def hardware(self) -> str | None:
        """What implementations must run on to be measured; None where nothing runs."""

    @property
    def missing(self) -> str:
        """Why a number is absent that nothing else gave a reason for."""

    @property
    def status(self) -> Status:
        """What a run is that went well."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record says about the whole session."""

    def environment(self) -> Environment:
        """What the record says about this machine."""

    def measure(self, op: Op, draft: Draft, stage: Stage) -> None:
        """Fill the draft. Raises Refused, Incorrect or OutOfMemory; whatever was put before stays."""


def refusal(
    row: Implementation, w: AttentionWorkload, profile: DeviceProfile, hardware: str | None = None
) -> str | None:
    """Why `row` cannot serve the workload on this device at all; None if it can."""
    if hardware is not None and hardware not in row.hardware:
        return f"it runs on {' and '.join(row.hardware)} only"
    if w.dtype not in row.dtypes:
        return f"dtype {w.dtype}: {row.name} takes {', '.join(row.dtypes)}"
    if w.dtype == "bf16" and profile.vendor == "NVIDIA" and capability_of(profile) < (8, 0):
        return f"dtype bf16: {profile.model} has no bf16; use --dtype fp16"
    return row.refuses(w) if row.refuses else None


def run_session(
    op: Op,
    w: AttentionWorkload,
    rows: Sequence[Implementation],
    backend: Backend,
    stage: Callable[[str, str], None],
) -> Record:
    """Run every row; Ctrl-C ends it early with what there is. `stage(impl, what)` reports progress."""
    runs: list[Run] = []
    stopped = False
    environment = backend.environment()  # a kernel that crashes may take the device with it
    for row in rows:
        draft = Draft(row=row, workload=w)
        if stopped:
            runs.append(draft.finish("interrupted", "not started: the session was interrupted"))
            continue
        runs.append(_run(op, draft, backend, lambda what, name=row.name: stage(name, what)))  # type: ignore[misc]
        stopped = runs[-1].status == "interrupted"
    return Record(
        op=op.name,
        backend=backend.name,
        device=backend.profile,
        environment=environment,
        runs=tuple(runs),
        notes=backend.notes,
    )


def _run(op: Op, draft: Draft, backend: Backend, stage: Stage) -> Run:
    reason = refusal(draft.row, draft.workload, backend.profile, backend.hardware)
    if reason:
        return draft.finish("refused", reason)
    try:
        backend.measure(op, draft, stage)
    except KeyboardInterrupt:
        return _finish(op, draft, backend, "interrupted", "interrupted while it was measured")
    except Refused as error:
        return draft.finish("refused", error.message)
    except Incorrect as error:
        return _finish(op, draft, backend, "incorrect", error.message)
    except OutOfMemory as error:
        return _finish(op, draft, backend, "out-of-memory", error.message)
    except PerfkitError as error:
        return _finish(op, draft, backend, "failed", error.message)
    except Exception as error:
        # A kernel may fail in any way; the others go on, and the row says how this one failed.
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        return _finish(op, draft, backend, "failed", f"{type(error).__name__}: {text}"[:300])
    return _finish(op, draft, backend, backend.status, None)


def _finish(op: Op, draft: Draft, backend: Backend, status: Status, reason: str | None) -> Run:
    add_model(op, draft, backend.profile)
    draft.lack(tuple(BY_TAG), backend.missing)
    return draft.finish(status, reason)
