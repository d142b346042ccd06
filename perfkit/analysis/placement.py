"""Where a run stands: its points on the roofline, its floors, its bound, and whether it can be true."""

from typing import Final, Literal

import msgspec

from perfkit.model.device import DeviceProfile
from perfkit.model.roofline import Bound, Floor, attainable, floors
from perfkit.ops.base import Level
from perfkit.record import Provenance, Record, Run

#: How far above a roof a rate may lie before it is called impossible: the error of clocks and counters.
ROOF_TOLERANCE: Final = 0.01


class Roof(msgspec.Struct, frozen=True, kw_only=True):
    """The ceilings at one SM clock: compute (FLOP/s), exp (1/s), DRAM and L2 bandwidth (byte/s)."""

    source: Literal["datasheet", "run clock"]
    clock_hz: float
    compute: float
    exp_rate: float | None
    bandwidth: dict[Level, float]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One run at one level: intensity in FLOP/byte, and what bytes it was computed from.

    `upper` says that only compulsory bytes are known, so that the true intensity is lower.
    """

    level: Level
    bytes: float
    intensity: float
    provenance: Provenance
    upper: bool


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A run against its roofs. `roof` is at the run's clock, or the data sheet's where no clock was read."""

    run: Run
    datasheet: Roof | None
    roof: Roof | None
    points: tuple[Point, ...]
    floors: tuple[Floor, ...]
    invalid: str | None

    @property
    def time_s(self) -> float | None:
        """The measured time."""
        return self.run.value("time")

    @property
    def achieved(self) -> float | None:
        """FLOP/s by the field's convention; None where no time was measured."""
        flops, time_s = self.run.value("flops_convention"), self.time_s
        return flops / time_s if flops and time_s else None

    @property
    def least_s(self) -> float | None:
        """The least time that any resource allows: the longest floor."""
        return self.floors[0].time_s if self.floors else None

    @property
    def best(self) -> float | None:
        """FLOP/s by the convention if the op took its least time: what it could reach."""
        flops = self.run.value("flops_convention")
        return flops / self.least_s if flops and self.least_s else None

    @property
    def bound(self) -> Bound | None:
        """The resource with the longest floor."""
        return self.floors[0].resource if self.floors else None

    def point(self, level: Level) -> Point | None:
        """The point at `level`."""
        return next((point for point in self.points if point.level == level), None)

    def attainable(self, roof: Roof | None) -> float | None:
        """FLOP/s that `roof` allows at the intensities of this run: the least over all levels."""
        if roof is None or not self.points:
            return None
        reached = [roof.compute]
        for point in self.points:
            if point.level in roof.bandwidth:
                reached.append(attainable(point.intensity, roof.compute, roof.bandwidth[point.level]))
        return min(reached)


def roof_at(profile: DeviceProfile, dtype: str, clock_hz: float | None) -> Roof | None:
    """The ceilings of `profile` for `dtype` at an SM clock; None means the data sheet's. None if unknown."""
    pipe = "tensor" if profile.peak(dtype, "tensor") else "vector"
    peak = profile.peak(dtype, pipe)
    if peak is None:
        return None
    clock = clock_hz or profile.clock_hz(peak)
    bandwidth: dict[Level, float] = {}
    for level, name in (("DRAM", "dram"), ("L2", "l2")):
        try:
            rate = profile.level(name).bandwidth(clock)  # type: ignore[arg-type]
        except KeyError:
            continue
        if rate:
            bandwidth[level] = rate  # type: ignore[index]
    compute = profile.ceiling(dtype, pipe, clock) if clock_hz else peak.flop_per_s
    return Roof(
        source="run clock" if clock_hz else "datasheet",
        clock_hz=clock,
        compute=compute or peak.flop_per_s,
        exp_rate=None if profile.vendor == "CPU" else profile.exp_per_s(clock),
        bandwidth=bandwidth,
    )


def place(record: Record, run: Run) -> Placement:
    """Place one run of `record` on the roofline of its device."""
    dtype = run.workload.dtype
    datasheet = roof_at(record.device, dtype, None)
    clock = run.value("clock")
    roof = roof_at(record.device, dtype, clock) if clock else datasheet
    points = _points(run)
    if datasheet is None or roof is None or run.value("flops_convention") is None:
        return Placement(run=run, datasheet=datasheet, roof=roof, points=points, floors=(), invalid=None)
    work: dict[Bound, tuple[float, float | None]] = {
        "compute": (run.value("flops_issued") or run.value("flops_convention") or 0, roof.compute),
        "exp": (run.value("exps") or 0, roof.exp_rate),
    }
    for point in points:
        work[point.level] = (point.bytes, roof.bandwidth.get(point.level))
    rows = floors(work, launches=int(run.value("launches") or 1))
    placement = Placement(run=run, datasheet=datasheet, roof=roof, points=points, floors=rows, invalid=None)
    return msgspec.structs.replace(placement, invalid=impossible(placement))


def _points(run: Run) -> tuple[Point, ...]:
    flops = run.value("flops_convention")
    if not flops:
        return ()
    found = []
    for level, tags in (("DRAM", ("dram_read", "dram_write")), ("L2", ("l2_read", "l2_write"))):
        for suffix in ("", "_modelled", "_compulsory"):
            parts = [run.numbers.get(tag + suffix) for tag in tags]
            values = [part.value for part in parts if part is not None and part.value is not None]
            total = sum(values)
            if len(values) == len(tags) and total > 0:
                found.append(
                    Point(
                        level=level,  # type: ignore[arg-type]
                        bytes=total,
                        intensity=flops / total,
                        provenance="modelled" if suffix else "measured",
                        upper=suffix == "_compulsory",
                    )
                )
                break
    return tuple(found)


_SUSPECTS: Final[dict[Bound, str]] = {
    "compute": "the kernel did not do the work, FLOPs are counted wrongly, or the clock was read wrongly",
    "exp": "the kernel skips scores, or computes exp on other units",
    "DRAM": "reads were served by L2 (warm cache), or the profile is of another card",
    "L2": "bytes were counted that never crossed (L1 hits), or the profile's L2 rate is too low",
    "overhead": "the kernel did not run",
}


def impossible(placement: Placement) -> str | None:
    """Why the time cannot be true: it is shorter than a floor. None where it can be.

    Only what must happen counts: issued FLOPs, and bytes that were measured. Exps may be computed by other
    units than the special function units, and modelled bytes may be wrong; neither proves anything.
    """
    time_s = placement.time_s
    if time_s is None:
        return None
    measured = {point.level for point in placement.points if point.provenance == "measured"}
    for floor in placement.floors:
        if floor.resource in ("exp", "overhead") or (
            floor.resource in ("DRAM", "L2") and floor.resource not in measured
        ):
            continue
        if time_s < floor.time_s * (1 - ROOF_TOLERANCE):
            over = floor.time_s / time_s
            return f"{over:.2f}x above the {floor.resource} roof: {_SUSPECTS[floor.resource]}"
    return None
