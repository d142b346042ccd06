"""A session: implementations on workloads, one after the other or together, and nothing measured is lost."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from perfkit.errors import PerfkitError
from perfkit.measure.draft import Draft, Incorrect, OutOfMemory, Refused
from perfkit.measure.modelled import add_model
from perfkit.model.device import DeviceProfile
from perfkit.model.units import short_count
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Op
from perfkit.ops.plan import capability_of
from perfkit.record import BY_TAG, Environment, Record, Run, Status

#: Told which implementation is at which stage; called often, must be cheap.
Stage = Callable[[str], None]
#: What a backend times: one execution of an implementation. None where nothing runs.
Work = Callable[[], object] | None

NOT_STARTED: Final = "not started: the session was interrupted"


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

    def prepare(self, op: Op, draft: Draft, stage: Stage) -> Work:
        """Make the work ready and check its result. Raises Refused, Incorrect or OutOfMemory."""

    def time(self, drafts: Sequence[Draft], works: Sequence[Work], stage: Stage) -> None:
        """Time what was prepared, several interleaved; every draft keeps what there is, also after Ctrl-C."""

    def examine(self, op: Op, draft: Draft, work: Work, stage: Stage) -> None:
        """Measure all the rest. Whatever was put into the draft before a failure stays."""


def refusal(
    row: Implementation, w: AttentionWorkload, profile: DeviceProfile, hardware: str | None = None
) -> str | None:
    """Why `row` cannot serve the workload on this device at all; None if it can."""
    if hardware is not None and hardware not in row.hardware:
        return f"it runs on {' and '.join(row.hardware)} only"
    if reason := row.refusal(w):
        return reason
    if w.dtype == "bf16" and profile.vendor == "NVIDIA" and capability_of(profile) < (8, 0):
        return f"dtype bf16: {profile.model} has no bf16; use --dtype fp16"
    ours = row.role == "shipped" and profile.vendor == "NVIDIA"
    if w.cache_dtype and ours and capability_of(profile) < (8, 9):
        return f"cache dtype {w.cache_dtype}: kernels convert it from compute capability 8.9 on"
    return None


def run_session(
    op: Op,
    workloads: Sequence[AttentionWorkload],
    rows: Sequence[Implementation],
    backend: Backend,
    stage: Callable[[str, str], None],
    baseline: str | None = None,
) -> Record:
    """Run every row on every workload: see `run_cases`."""
    return run_cases(op, [(w, rows) for w in workloads], backend, stage, baseline)


def run_cases(
    op: Op,
    cases: Sequence[tuple[AttentionWorkload, Sequence[Implementation]]],
    backend: Backend,
    stage: Callable[[str, str], None],
    baseline: str | None = None,
) -> Record:
    """Run the rows of each case on its workload; Ctrl-C ends it early with what there is.

    With a `baseline` the rows are timed together, interleaved, so that they can be compared; without one, one
    after the other. `stage(run, what)` reports progress.
    """
    runs: list[Run] = []
    environment = backend.environment()  # a kernel that crashes may take the device with it
    several = len({w for w, _ in cases}) > 1
    for w, rows in cases:
        drafts = [_draft(row, w) for row in rows]
        for group in [drafts] if baseline is not None else [[draft] for draft in drafts]:
            if any(run.status == "interrupted" for run in runs):
                runs += [draft.finish("interrupted", NOT_STARTED) for draft in group]
            else:
                runs += _Group(op, group, backend, _named(stage, w, several)).run()
    return Record(
        op=op.name,
        backend=backend.name,
        device=backend.profile,
        environment=environment,
        runs=tuple(runs),
        notes=backend.notes,
        baseline=baseline,
    )


def _draft(row: Implementation, asked: AttentionWorkload) -> Draft:
    """A run of `row` where `asked` is asked for, with a note where it runs something else."""
    w = row.workload(asked)
    if w == asked:
        return Draft(row=row, workload=w)
    changed = (
        f"{name} {getattr(w, name)} for {getattr(asked, name)}"
        for name in w.__struct_fields__
        if getattr(w, name) != getattr(asked, name)
    )
    return Draft(row=row, workload=w, asked=asked, notes=[f"runs its own workload: {', '.join(changed)}"])


def _named(stage: Callable[[str, str], None], w: AttentionWorkload, several: bool) -> Callable[[str], Stage]:
    """Progress of one run: under its implementation's name, and its length where there are several."""
    suffix = f" N {short_count(w.seq_q)}" if several else ""
    return lambda name: lambda what: stage(f"{name}{suffix}", what)


class _Group:
    """Runs that are timed together. One that fails ends for itself; Ctrl-C ends all that are not done."""

    def __init__(
        self, op: Op, drafts: Sequence[Draft], backend: Backend, stage: Callable[[str], Stage]
    ) -> None:
        self._op, self._drafts, self._backend, self._stage = op, drafts, backend, stage
        self._ended: dict[int, Run] = {}
        self._works: dict[int, Work] = {}

    def run(self) -> list[Run]:
        """Every run of the group, in the order of its drafts."""
        for at in self._alive():
            self._attempt([at], self._prepare)
        self._attempt(self._alive(), self._time)
        for at in self._alive():
            self._attempt([at], self._examine)
        for at in self._alive():
            self._ended[at] = self._finish(at, self._backend.status, None)
        return [self._ended[at] for at in range(len(self._drafts))]

    def _alive(self) -> list[int]:
        return [at for at in range(len(self._drafts)) if at not in self._ended]

    def _prepare(self, which: Sequence[int]) -> None:
        (at,) = which
        draft = self._drafts[at]
        w, profile = draft.workload, self._backend.profile
        if reason := refusal(draft.row, w, profile, self._backend.hardware):
            raise Refused(reason)
        self._works[at] = self._backend.prepare(self._op, draft, self._stage(draft.row.name))

    def _time(self, which: Sequence[int]) -> None:
        drafts = [self._drafts[at] for at in which]
        names = " and ".join(draft.row.name for draft in drafts)
        self._backend.time(drafts, [self._works[at] for at in which], self._stage(names))
        if any(draft.timing is not None and draft.timing.interrupted for draft in drafts):
            raise KeyboardInterrupt

    def _examine(self, which: Sequence[int]) -> None:
        (at,) = which
        draft = self._drafts[at]
        self._backend.examine(self._op, draft, self._works[at], self._stage(draft.row.name))

    def _attempt(self, which: Sequence[int], step: Callable[[Sequence[int]], None]) -> None:
        """Do a step for the runs `which`; end them where it fails."""
        if not which or self._interrupted:
            return
        try:
            step(which)
        except KeyboardInterrupt:
            for at in self._alive():
                started = at in self._works or at in which
                reason = "interrupted while it was measured" if started else NOT_STARTED
                self._ended[at] = self._finish(at, "interrupted", reason, model=started)
        except Refused as error:
            self._end(which, "refused", error.message, model=False)
        except Incorrect as error:
            self._end(which, "incorrect", error.message)
        except OutOfMemory as error:
            self._end(which, "out-of-memory", error.message)
        except PerfkitError as error:
            self._end(which, "failed", error.message)
        except Exception as error:
            # A kernel may fail in any way; the others go on, and the row says how this one failed.
            text = next((line for line in str(error).splitlines() if line.strip()), "")
            self._end(which, "failed", f"{type(error).__name__}: {text}"[:300])

    @property
    def _interrupted(self) -> bool:
        return any(run.status == "interrupted" for run in self._ended.values())

    def _end(self, which: Sequence[int], status: Status, reason: str, model: bool = True) -> None:
        for at in which:
            self._ended[at] = self._finish(at, status, reason, model=model)
            self._works.pop(at, None)

    def _finish(self, at: int, status: Status, reason: str | None, model: bool = True) -> Run:
        draft = self._drafts[at]
        if model:
            add_model(self._op, draft, self._backend.profile)
            draft.lack(tuple(BY_TAG), self._backend.missing)
        return draft.finish(status, reason)
