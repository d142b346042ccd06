"""The SM clock that a piece of GPU work really had, in hertz.

Two readings of (%globaltimer, %clock64, %smid) on one SM, one before and one after the work: cycles over
nanoseconds is the average clock in between, throttling included. NVML's clock is one instantaneous value,
tens of milliseconds old, and the fallback where Triton is missing. PTX ISA, section "Special Registers".
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol

from perfkit.measure.nvml import GpuMonitor

ClockSource = Literal["probe", "nvml", "none"]

#: Slots per batch of samples; a slot is two stamps of three 64-bit integers.
SLOTS: Final = 4096
#: %globaltimer may advance in steps of 1.024 us (seen down to 32 ns): a shorter stretch says too little.
SHORTEST_NS: Final = 20_000


class ClockProbe(Protocol):
    """Where the clock of each sample comes from. Everything is queued on the current stream."""

    @property
    def source(self) -> ClockSource:
        """What the values are, for the record."""

    def before(self, slot: int) -> None:
        """Queue the reading that opens sample `slot`."""

    def after(self, slot: int) -> None:
        """Queue the reading that closes sample `slot`."""

    def queued(self) -> None:
        """Everything of this batch is queued, and the GPU is at work on it."""

    def read(self, slots: int) -> list[float | None]:
        """The clock of each of the first `slots` samples, once the stream is idle; None where unknown."""


def clock_between(before: Sequence[int], after: Sequence[int]) -> float | None:
    """Average SM clock in Hz between two stamps (nanoseconds, cycles, SM); None where they do not compare.

    Cycle counters of two SMs have different origins, and stamps closer than SHORTEST_NS are mostly rounding.
    """
    nanoseconds, cycles = after[0] - before[0], after[1] - before[1]
    if before[2] != after[2] or nanoseconds < SHORTEST_NS or cycles <= 0:
        return None
    return cycles * 1e9 / nanoseconds


def stamp_kernel() -> Any:
    """The Triton kernel that writes (globaltimer, clock64, smid) to out[slot]; ImportError without Triton."""
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["slot"])
    def perfkit_stamp(out, slot):  # type: ignore[no-untyped-def]
        # One asm block, so that nothing is scheduled between the three reads.
        nanoseconds, cycles, sm = tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer; mov.u64 $1, %clock64; mov.u32 $2, %smid;",
            "=l,=l,=r",
            [],
            dtype=(tl.int64, tl.int64, tl.int32),
            is_pure=False,
            pack=1,
        )
        at = out + slot.to(tl.int64) * 3
        tl.store(at, nanoseconds)
        tl.store(at + 1, cycles)
        tl.store(at + 2, sm.to(tl.int64))

    return perfkit_stamp


class StampProbe:
    """ClockProbe by stamps on the GPU: one block of one warp, about 2 us, outside the timed region."""

    source: ClockSource = "probe"

    def __init__(self) -> None:
        import torch

        self._stamps = torch.zeros(2 * SLOTS, 3, dtype=torch.int64, device="cuda")
        self._launch = stamp_kernel()[(1,)]
        self.before(0)  # compiles here, not in the first sample
        self.after(0)
        torch.cuda.synchronize()

    def before(self, slot: int) -> None:
        """Queue the opening stamp of `slot`."""
        self._launch(self._stamps, 2 * slot, num_warps=1)

    def after(self, slot: int) -> None:
        """Queue the closing stamp of `slot`."""
        self._launch(self._stamps, 2 * slot + 1, num_warps=1)

    def queued(self) -> None:
        """Nothing to do: the GPU reads its own clock."""

    def read(self, slots: int) -> list[float | None]:
        """One copy to the host for the whole batch."""
        stamps: list[list[int]] = self._stamps[: 2 * slots].tolist()
        return [clock_between(stamps[2 * slot], stamps[2 * slot + 1]) for slot in range(slots)]


class NvmlClock:
    """ClockProbe without Triton: the clock NVML reports while a batch runs, the same for all its samples."""

    source: ClockSource = "nvml"

    def __init__(self, read_hz: Callable[[], float | None]) -> None:
        self._read_hz = read_hz
        self._hz: float | None = None

    def before(self, slot: int) -> None:
        """Nothing is queued."""

    def after(self, slot: int) -> None:
        """Nothing is queued."""

    def queued(self) -> None:
        """The GPU is busy now: the moment to ask."""
        self._hz = self._read_hz()

    def read(self, slots: int) -> list[float | None]:
        """What `queued` saw, once a sample."""
        return [self._hz] * slots


def open_clock(monitor: GpuMonitor | None) -> ClockProbe | None:
    """The best clock that this machine has: stamps, else NVML, else None."""
    try:
        return StampProbe()
    except ImportError:
        return NvmlClock(lambda: monitor.state().sm_clock_hz) if monitor else None
