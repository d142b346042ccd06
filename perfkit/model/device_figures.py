"""The parts of a device profile: figures, peaks, memory levels, links; each number with its source."""

from typing import Generic, Literal, TypeVar

import msgspec

from perfkit.model.dtype import DTYPE_BYTES

N = TypeVar("N", int, float)
Pipe = Literal["tensor", "vector"]
LevelName = Literal["dram", "l2", "shared", "infinity_cache"]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A piece of a profile: a key that it does not know is an error."""


def _require_positive(*values: float) -> None:
    for value in values:
        if not 0 < value < float("inf"):
            raise ValueError(f"a figure must be positive and finite, not {value}")


class Figure(Part, Generic[N], frozen=True, kw_only=True):
    """One positive number and where it comes from: a key of the profile's `sources`."""

    value: N
    source: str
    from_memory: bool = False  # nobody has looked it up in that source for this profile

    def __post_init__(self) -> None:
        _require_positive(self.value)


class Peak(Part, frozen=True, kw_only=True):
    """The dense peak of one dtype on one pipe: as printed (FLOP/s), and per clock and SM.

    `clock` names the SM clock at which the data sheet quotes it. `accumulate` is given where the width
    of the accumulator changes the rate, as on GeForce.
    """

    dtype: str
    pipe: Pipe
    accumulate: Literal["fp16", "fp32"] | None = None
    flop_per_s: float
    flop_per_clock_per_sm: int
    clock: Literal["boost", "tensor"] = "boost"
    source: str
    from_memory: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"unknown dtype '{self.dtype}' (known: {', '.join(DTYPE_BYTES)})")
        if (self.dtype, self.pipe) in (("fp32", "tensor"), ("tf32", "vector")):
            raise ValueError("fp32 is a rate of the vector pipe and tf32 one of the tensor pipe")
        _require_positive(self.flop_per_s, self.flop_per_clock_per_sm)

    @property
    def label(self) -> str:
        """`fp16 tensor`, or `fp16 tensor (fp32 accumulate)` where that matters."""
        return f"{self.dtype} {self.pipe}" + (f" ({self.accumulate} accumulate)" if self.accumulate else "")


class Interconnect(Part, frozen=True, kw_only=True):
    """A link to other devices or the host; byte/s of both directions together."""

    name: str
    bytes_per_s: float
    source: str
    from_memory: bool = False

    def __post_init__(self) -> None:
        _require_positive(self.bytes_per_s)


class MemoryLevel(msgspec.Struct, frozen=True, kw_only=True):
    """One level with its roof. `bytes_per_clock` counts all SMs together."""

    name: LevelName
    capacity_bytes: int
    bytes_per_s: float | None
    bytes_per_clock: float | None
    boost_hz: float

    def bandwidth(self, clock_hz: float | None = None) -> float | None:
        """byte/s at an SM clock (boost if not given); DRAM ignores the clock; None if nobody knows."""
        if self.bytes_per_clock is None:
            return self.bytes_per_s
        return self.bytes_per_clock * (clock_hz or self.boost_hz)


class LevelFigures(Part, frozen=True, kw_only=True):
    """One memory level as a file states it: bandwidth in byte/s, or per SM clock for on-chip levels."""

    capacity_bytes: Figure[int]
    bytes_per_s: Figure[float] | None = None
    bytes_per_clock: Figure[float] | None = None
    bytes_per_clock_per_sm: Figure[float] | None = None

    @property
    def rates(self) -> tuple[Figure[float], ...]:
        """The bandwidth figures that are given; a file gives exactly one."""
        given = (self.bytes_per_s, self.bytes_per_clock, self.bytes_per_clock_per_sm)
        return tuple(figure for figure in given if figure is not None)

    def resolve(self, name: LevelName, sm_count: int, boost_hz: float) -> MemoryLevel:
        """The level of a device with `sm_count` SMs."""
        per_clock = self.bytes_per_clock.value if self.bytes_per_clock else None
        if self.bytes_per_clock_per_sm:
            per_clock = self.bytes_per_clock_per_sm.value * sm_count
        return MemoryLevel(
            name=name,
            capacity_bytes=self.capacity_bytes.value,
            bytes_per_s=self.bytes_per_s.value if self.bytes_per_s else None,
            bytes_per_clock=per_clock,
            boost_hz=boost_hz,
        )


class Memory(Part, frozen=True, kw_only=True):
    """The levels, outermost first. `shared` has its capacity per SM; the others per device."""

    dram: LevelFigures
    l2: LevelFigures
    shared: LevelFigures
    infinity_cache: LevelFigures | None = None


class Figures(Part, frozen=True, kw_only=True):
    """The single numbers of a device, each with its source. A file gives all but `tensor_hz`."""

    sm_count: Figure[int]
    boost_hz: Figure[float]
    tensor_hz: Figure[float] | None = None
    exp_per_clock_per_sm: Figure[int]
    registers_bytes_per_sm: Figure[int]
    shared_bytes_per_block: Figure[int]
    max_threads_per_sm: Figure[int] | None = None
    power_limit_w: Figure[float] | None = None


class Match(Part, frozen=True, kw_only=True):
    """The names that a driver gives this device."""

    names: tuple[str, ...] = ()
