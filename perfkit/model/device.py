"""Device profiles: what a GPU's data sheet allows, in base units, with a source for every number.

A profile is data (`profiles/<slug>.toml`) and checks itself when it is made, so one that contradicts
itself cannot exist. Every roof can be drawn at any SM clock, because per-clock rates are kept beside the
printed peaks: a power cap lowers the clock and every on-chip roof with it, but not DRAM.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from perfkit.model.device_figures import (
    Figure,
    Figures,
    Interconnect,
    LevelFigures,
    LevelName,
    Match,
    Memory,
    MemoryLevel,
    Part,
    Peak,
)

__all__ = ["DeviceProfile", "Figure", "Interconnect", "MemoryLevel", "Peak"]

#: How far the printed peak may lie from SMs x clock x FLOP/clock/SM: data sheets round to 2 or 3 digits.
PEAK_TOLERANCE: Final = 0.02


class DeviceProfile(Part, frozen=True, kw_only=True):
    """What one device allows. Made from a file, or from a driver's properties (then `derived`)."""

    name: str
    model: str
    vendor: str
    architecture: str
    chip: str
    compute_capability: str
    derived: bool = False
    peaks: tuple[Peak, ...]
    interconnects: tuple[Interconnect, ...] = ()
    match: Match = Match()
    figures: Figures
    memory: Memory
    sources: dict[str, str]

    def __post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem:
            raise ValueError(problem)

    @property
    def sm_count(self) -> int:
        return self.figures.sm_count.value

    @property
    def boost_hz(self) -> float:
        return self.figures.boost_hz.value

    @property
    def tensor_hz(self) -> float:
        """The clock at which the data sheet quotes tensor peaks: boost unless it says otherwise."""
        return (self.figures.tensor_hz or self.figures.boost_hz).value

    @property
    def registers_bytes_per_sm(self) -> int:
        return self.figures.registers_bytes_per_sm.value

    @property
    def shared_bytes_per_sm(self) -> int:
        return self.memory.shared.capacity_bytes.value

    @property
    def shared_bytes_per_block(self) -> int:
        return self.figures.shared_bytes_per_block.value

    @property
    def max_threads_per_sm(self) -> int | None:
        """None only in a derived profile of an unknown compute capability."""
        return self.figures.max_threads_per_sm.value if self.figures.max_threads_per_sm else None

    @property
    def power_limit_w(self) -> float | None:
        """None only in a derived profile whose driver does not say."""
        return self.figures.power_limit_w.value if self.figures.power_limit_w else None

    def clock_hz(self, peak: Peak) -> float:
        """The SM clock at which the data sheet quotes `peak`."""
        return self.tensor_hz if peak.clock == "tensor" else self.boost_hz

    def peak(self, dtype: str, pipe: str) -> Peak | None:
        """The dense peak; where the accumulator matters, the one with fp32 accumulation.

        That is what attention gets: scores and outputs are accumulated in fp32, so on GeForce its
        roof is half of the fp16-accumulate rate that data sheets put first.
        """
        rows = [peak for peak in self.peaks if (peak.dtype, peak.pipe) == (dtype, pipe)]
        return min(rows, key=lambda peak: peak.accumulate != "fp32", default=None)

    def ceiling(self, dtype: str, pipe: str, clock_hz: float) -> float | None:
        """FLOP/s at an SM clock: SMs x FLOP/clock/SM x clock."""
        peak = self.peak(dtype, pipe)
        return self.sm_count * peak.flop_per_clock_per_sm * clock_hz if peak else None

    def exp_per_s(self, clock_hz: float) -> float:
        """Exponentials per second of the special function units (MUFU) at an SM clock."""
        return self.sm_count * self.figures.exp_per_clock_per_sm.value * clock_hz

    def level(self, name: LevelName) -> MemoryLevel:
        """A memory level; KeyError for one that this device has not. `shared` has its capacity per SM."""
        level: LevelFigures | None = getattr(self.memory, name, None)
        if level is None:
            raise KeyError(name)
        return level.resolve(name, self.sm_count, self.boost_hz)

    def ridge(self, dtype: str) -> float | None:
        """FLOP/byte where the printed peak (tensor if there is one, else vector) meets DRAM bandwidth."""
        peak = self.peak(dtype, "tensor") or self.peak(dtype, "vector")
        bandwidth = self.level("dram").bandwidth()
        return peak.flop_per_s / bandwidth if peak and bandwidth else None

    def sourced(self) -> Iterator[Figure[int] | Figure[float] | Peak | Interconnect]:
        """Everything that carries a source."""
        yield from self.peaks
        yield from self.interconnects
        for group in (self.figures, *_levels(self.memory).values()):
            yield from (part for part in msgspec.structs.astuple(group) if part is not None)


def _levels(memory: Memory) -> dict[str, LevelFigures]:
    return {name: level for name, level in msgspec.structs.asdict(memory).items() if level is not None}


def _problems(profile: DeviceProfile) -> Iterator[str]:
    """What contradicts itself in a profile, most basic first."""
    if not re.fullmatch(r"\d+\.\d+", profile.compute_capability):
        yield f"compute_capability must look like 9.0, not '{profile.compute_capability}'"
    yield from _source_problems(profile)
    if not profile.derived:
        yield from _gaps(profile)
    seen: set[str] = set()
    for peak in profile.peaks:
        if peak.label in seen:
            yield f"two peaks for {peak.label}"
        seen.add(peak.label)
        yield from _peak_problems(profile, peak)
    dram = profile.memory.dram
    if dram.bytes_per_clock or dram.bytes_per_clock_per_sm:
        yield "memory.dram takes bytes_per_s only: the SM clock does not move DRAM"
    if profile.shared_bytes_per_block > profile.shared_bytes_per_sm:
        yield "shared_bytes_per_block is more than an SM has"


def _source_problems(profile: DeviceProfile) -> Iterator[str]:
    used = {part.source for part in profile.sourced()}
    for key in sorted(used - profile.sources.keys()):
        yield f"source '{key}' is not in [sources]"
    for key in sorted(profile.sources.keys() - used):
        yield f"[sources] has '{key}', which no figure uses"


def _gaps(profile: DeviceProfile) -> Iterator[str]:
    """What only a derived profile may leave out."""
    for key in ("max_threads_per_sm", "power_limit_w"):
        if getattr(profile.figures, key) is None:
            yield f"Object missing required field `{key}` - at `$.figures`"
    for name, level in _levels(profile.memory).items():
        if len(level.rates) != 1:
            yield f"memory.{name} needs one bandwidth, in byte/s or per clock, and has {len(level.rates)}"


def _peak_problems(profile: DeviceProfile, peak: Peak) -> Iterator[str]:
    if peak.clock == "tensor" and profile.figures.tensor_hz is None:
        yield f"{peak.label} is quoted at the tensor clock, and figures.tensor_hz is absent"
    if peak.accumulate == "fp16" and profile.peak(peak.dtype, peak.pipe) is peak:
        yield f"{peak.label} needs its fp32-accumulate row beside it"
    clock = profile.clock_hz(peak)
    rate = profile.sm_count * peak.flop_per_clock_per_sm * clock
    off = peak.flop_per_s / rate - 1
    if abs(off) > PEAK_TOLERANCE:
        guess = "a sparse rate?" if 0.9 < off < 1.1 else "a clock or a rate in the wrong unit?"
        yield (
            f"{peak.label}: {profile.sm_count} SMs x {clock:.4g} Hz x {peak.flop_per_clock_per_sm} FLOP/clock"
            f" = {rate:.4g} FLOP/s, but flop_per_s is {peak.flop_per_s:.4g} ({guess})"
        )
