"""The backend of an NVIDIA GPU: correctness, time, clock, energy, counters and memory of each run."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

from perfkit.errors import PerfkitError
from perfkit.measure import correctness, counters, replay
from perfkit.measure.clock import ClockProbe, open_clock
from perfkit.measure.compiling import compilation, words
from perfkit.measure.counter_errors import CountersUnavailable
from perfkit.measure.draft import Draft, OutOfMemory, Refused
from perfkit.measure.energy import energy_per_op
from perfkit.measure.environment import environment
from perfkit.measure.flush import L2Flush
from perfkit.measure.memory import free_memory, peak_memory
from perfkit.measure.nvml import GpuMonitor, monitor_of_torch
from perfkit.measure.options import Options
from perfkit.measure.sampling import sampling
from perfkit.measure.session import Stage, Work
from perfkit.measure.stopping import StoppingRule
from perfkit.measure.targets import bound
from perfkit.measure.timing import time_cuda
from perfkit.model.device import DeviceProfile
from perfkit.model.units import show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Op
from perfkit.record import Environment, Status, Timing

#: What the record needs; `l1` writes repeat what L2 counts, at the price of more passes.
GROUPS: Final = ("core", "flops")
COUNTED: Final = tuple(counters.RECORD_TAGS)
ENERGY: Final = ("energy", "power", "sustained_time", "sustained_clock")


class CudaBackend:
    """Measures on torch's current CUDA device."""

    name = "cuda"
    hardware: str | None = "cuda"
    missing = "not obtained"
    status: Status = "measured"

    def __init__(self, profile: DeviceProfile, options: Options) -> None:
        self.profile = profile
        self.options = options
        self._notes: list[str] = []
        self._bench = correctness.Bench("cuda")

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record says about the whole session."""
        return tuple(self._notes)

    def environment(self) -> Environment:
        """Versions and names, torch's included."""
        return environment(with_torch=True)

    @cached_property
    def monitor(self) -> GpuMonitor | None:
        """NVML on torch's device; None, with a note, where it cannot be had."""
        try:
            return monitor_of_torch()
        except PerfkitError as error:
            self._notes.append(f"no clock, power and energy from the driver: {error.message}")
            return None

    @cached_property
    def clock(self) -> ClockProbe | None:
        """Where the clock of each sample comes from."""
        return open_clock(self.monitor)

    @cached_property
    def counters_refused(self) -> str | None:
        """Why hardware counters cannot be believed, with the fix; None if they can, or were never read."""
        check = counters.self_check()
        if check.ok or not check.measured:
            return None  # believed; or nothing could be counted, and `collect` will say why or ask ncu
        text = check.reason + (f" (fix: {check.fix})" if check.fix else "")
        self._notes.append(f"no hardware counters: {text}")
        return text

    @contextmanager
    def _step(self, drafts: Sequence[Draft]) -> Iterator[None]:
        """Say out of memory with the predicted need; leave the device idle and its memory given back."""
        import torch

        # Autograd's thread has no context until cuBLAS makes one there: torch warns of what is no fault.
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
        try:
            yield
        except torch.OutOfMemoryError as error:
            text = str(error).split(". ")[0]
            need = ", ".join(show(draft.row.workspace(draft.workload), "bytes") for draft in drafts)
            raise OutOfMemory(f"{text}; predicted need {need}") from error
        finally:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def prepare(self, op: Op, draft: Draft, stage: Stage) -> Work:  # noqa: ARG002
        """Compile, and hold the result against the oracle."""
        from triton.runtime.errors import OutOfResources

        w, row = draft.workload, draft.row
        with self._step([draft]):
            self._check_memory(row, w)
            stage("making inputs")
            attention = bound(row)
            inputs, judge = self._bench.inputs(w)
            uses: list[Any] = []
            try:
                with compilation(stage) as compiled:
                    work, result = correctness.callables(w, inputs, attention, uses)
                    produced = result()
            except (ValueError, NotImplementedError) as error:
                raise Refused(str(error).splitlines()[0]) from error
            except OutOfResources as error:
                raise Refused(
                    f"a tile needs {error.required} of {error.name}, and the device has {error.limit}"
                ) from error
            except RuntimeError as error:
                if "No available kernel" in str(error) or "no viable backend" in str(error).lower():
                    raise Refused("torch has no kernel of this kind for the workload") from error
                raise
            draft.uses.extend(KernelUse(**use._asdict()) for use in dict.fromkeys(uses))
            if compiled:
                draft.notes.append(words(compiled))
            stage("checking against the oracle")
            errors = judge.errors(produced)
            del produced
            work, _ = correctness.callables(w, inputs, attention, None)  # recording costs host time
            draft.put("error", errors.error, "measured", note=f"against float64, {errors.scope}")
            draft.put("eager_error", errors.eager_error, "measured", note=errors.scope)
            correctness.require(w, errors)
            return work

    def time(self, drafts: Sequence[Draft], works: Sequence[Work], stage: Stage) -> None:
        """Time with the clock of each sample; what limited the clock is of all that were timed together."""
        stage("timing")
        with self._step(drafts):
            callables = [work for work in works if work is not None]
            if self.monitor is None:
                timings = self._timings(callables)
            else:
                with sampling(self.monitor) as looks:
                    timings = self._timings(callables)
                summary = looks.summary
                reasons = tuple(f"{name} ({share:.0%})" for name, share in summary.clock_reasons.items())
                for draft in drafts:
                    draft.clock_reasons = reasons
                    if summary.temperature_c:
                        draft.put("temperature", summary.temperature_c.median, "measured")
            for draft, timing in zip(drafts, timings, strict=True):
                draft.timed(timing, "no clock could be read for a sample this short")

    def _timings(self, works: Sequence[Callable[[], object]]) -> list[Timing]:
        return time_cuda(
            works,
            flush=None if self.options.warm else L2Flush(),
            rule=StoppingRule(limit_s=self.options.limit_s),
            clock=self.clock,
            use_graph=self.options.graph,
        )

    def examine(self, op: Op, draft: Draft, work: Work, stage: Stage) -> None:
        """Energy, memory and hardware counters: each may fail for itself."""
        assert work is not None
        with self._step([draft]):
            if self.options.energy:
                stage("energy")
                self._optional(draft, ENERGY, lambda: self._energy(draft, work))
            else:
                draft.lack(ENERGY, "not asked for (--no-energy)")
            stage("memory")
            self._optional(draft, ("peak_memory",), lambda: self._memory(draft))
            stage("hardware counters")
            self._optional(draft, COUNTED, lambda: self._count(op, draft, work))

    def _optional(self, draft: Draft, tags: tuple[str, ...], step: Callable[[], None]) -> None:
        """A step whose failure costs its own numbers only."""
        import torch

        try:
            step()
        except torch.OutOfMemoryError:
            draft.lack(tags, "out of memory while measuring it")
        except CountersUnavailable as error:
            draft.lack(tags, error.reason + (f" (fix: {error.fix})" if error.fix else ""))
        except PerfkitError as error:
            draft.lack(tags, error.message)
        draft.lack(tags, "not obtained")

    def _check_memory(self, row: Implementation, w: AttentionWorkload) -> None:
        stored = w.cache_bytes if w.page or w.cache_dtype or w.append else 0
        inputs = 0 if self._bench.has(w) else 2 * w.query_bytes + 2 * w.key_bytes + stored
        results = w.query_bytes + (0 if w.pass_ == "fwd" else w.query_bytes + 2 * w.key_bytes)
        need, free = row.workspace(w) + inputs + results, free_memory()
        if need > free:
            raise Refused(f"needs {show(need, 'bytes')}, and {show(free, 'bytes')} of device memory are free")

    def _energy(self, draft: Draft, work: Callable[[], object]) -> None:
        if self.monitor is None:
            raise PerfkitError("the driver's energy counter cannot be read")
        found = energy_per_op(work, self.monitor, clock=self.clock)
        draft.put("energy", found.joules_per_op, "measured", absent=found.reason)
        draft.put("power", found.watts, "measured", absent=found.reason)
        draft.put("sustained_time", found.seconds_per_op, "measured", absent=found.reason)
        draft.put("sustained_clock", found.clock_hz, "measured", absent=found.reason or "no clock probe")

    def _memory(self, draft: Draft) -> None:
        w, attention = draft.workload, bound(draft.row)
        inputs, _ = self._bench.inputs(w)
        if w.pass_ == "fwd":
            work, _ = correctness.callables(w, inputs, attention, None)
            draft.put("peak_memory", peak_memory(work), "measured")
            return

        def whole() -> object:
            return correctness.callables(w, inputs, attention, None)[0]()

        draft.put("peak_memory", peak_memory(whole), "measured", note="forward and backward together")

    def _count(self, op: Op, draft: Draft, work: Callable[[], object]) -> None:
        if self.counters_refused:
            raise CountersUnavailable(self.counters_refused, "")
        reading = counters.collect(
            work,
            chip_hint=self.profile.chip,
            dtype=draft.workload.dtype,
            groups=GROUPS,
            command=replay.command(op.name, draft.row, draft.workload),
        )
        draft.kernels = reading.kernels
        draft.put("launches", len(reading.kernels), "measured")
        for tag, sources in counters.RECORD_TAGS.items():
            source = next((name for name in sources if name in reading.totals), None)
            if source is None:
                draft.put(tag, None, "measured", absent="this chip has no such counter")
                continue
            settled = reading.settled and source in counters.DRAM
            note = f"{reading.method}: {source}{', dirty lines settled' if settled else ''}"
            draft.put(tag, reading.totals[source], "measured", note=note)
        draft.notes.extend(reading.notes)
