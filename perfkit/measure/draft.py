"""A run while it is being measured: it only grows, so that whatever interrupts leaves what was obtained."""

import math
from dataclasses import dataclass, field

from perfkit.errors import PerfkitError
from perfkit.model.median import median
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse
from perfkit.record import KernelCounts, Number, Provenance, Run, Status, Timing, number, unavailable


class Refused(PerfkitError):
    """The implementation cannot serve this workload here; the message says why."""


class Incorrect(PerfkitError):
    """The result is wrong by more than the rule allows."""


class OutOfMemory(PerfkitError):
    """The device has not the memory that this needs."""


@dataclass(slots=True)
class Draft:
    """What one implementation has given so far."""

    row: Implementation
    workload: AttentionWorkload
    asked: AttentionWorkload | None = None
    numbers: dict[str, Number] = field(default_factory=dict)
    timing: Timing | None = None
    uses: list[KernelUse] = field(default_factory=list)
    kernels: tuple[KernelCounts, ...] = ()
    clock_reasons: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def put(
        self,
        tag: str,
        value: float | None,
        provenance: Provenance,
        *,
        note: str | None = None,
        absent: str = "",
    ) -> None:
        """Add a number, with a `note` on it; None, NaN and infinity make it unavailable because `absent`."""
        if value is None or not math.isfinite(value):
            self.numbers[tag] = unavailable(
                tag, absent or ("not obtained" if value is None else f"it is {value}")
            )
        else:
            self.numbers[tag] = number(tag, value, provenance, note)

    def timed(self, timing: Timing, no_clock: str) -> None:
        """Add what a timing gave, with notes on what is wrong; `no_clock` says why there is no clock."""
        self.timing = timing
        self.put("time", timing.median_s, "measured")
        self.put("time_low", timing.ci_low_s, "measured", absent="fewer than 6 samples")
        self.put("time_high", timing.ci_high_s, "measured", absent="fewer than 6 samples")
        clocks = [hz for hz in timing.clock_hz if hz is not None]
        self.put("clock", median(clocks) if clocks else None, "measured", absent=no_clock)
        if not timing.converged:
            self.notes.append(f"timing did not settle: {timing.stop_reason}")
        if not timing.launch_hidden:
            self.notes.append("launch overhead is in the time: the work waits for the host")

    def lack(self, tags: tuple[str, ...], reason: str) -> None:
        """Mark every one of `tags` that is not there yet as unavailable for `reason`."""
        for tag in tags:
            self.numbers.setdefault(tag, unavailable(tag, reason))

    def finish(self, status: Status, reason: str | None = None) -> Run:
        """The run as it stands; a run that was not measured to the end keeps no time."""
        numbers = dict(self.numbers)
        if status in ("incorrect", "failed", "out-of-memory"):
            numbers = {tag: found for tag, found in numbers.items() if not tag.startswith("time")}
        return Run(
            impl=self.row.name,
            workload=self.workload,
            asked=self.asked,
            status=status,
            reason=reason,
            numbers=numbers,
            timing=self.timing if status in ("measured", "interrupted") else None,
            uses=tuple(self.uses),
            kernels=self.kernels,
            clock_reasons=self.clock_reasons,
            notes=tuple(self.notes),
        )
