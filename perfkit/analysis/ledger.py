"""The byte ledger of a run: bytes by kernel and tensor from the IO model and as executing the kernels counted
them, and by kernel from the counters."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from perfkit.analysis.io_check import zeros_counted
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops import find_op
from perfkit.ops.base import IOModel, Ledger, Level, Moved, by_tensor, total
from perfkit.record import KernelCounts, Run

#: The line that holds all kernels where libraries choose them, so that none is a step of the model.
ALL_KERNELS: Final = "all kernels"
#: What is no tensor, but in what the SM counted as read, and so in the total of a kernel.
ZEROS: Final = "zeros by TMA"

#: Raw counters of a kernel that are its bytes at a level, best first: at L2 some chips count requests of
#: several SMs for one line as one.
_READ: Final[dict[Level, tuple[str, ...]]] = {
    "L2": ("l1_fill_bytes", "l2_read_bytes"),
    "DRAM": ("dram_read_bytes",),
}
_WRITE: Final[dict[Level, tuple[str, ...]]] = {"L2": ("l2_write_bytes",), "DRAM": ("dram_write_bytes",)}


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one tensor, or of `ZEROS`, in one kernel or step; of the whole kernel where `tensor` is None.

    None where it is not known: counters do not tell tensors apart, and the model does not know the kernels of
    libraries. DRAM bytes of single kernels are raw; those of all kernels are the run's own. Measured is what
    hardware counters read; counted is what executing the kernels on a CPU moved.
    """

    kernel: str
    tensor: str | None
    level: Level
    read_modelled: float | None = None
    write_modelled: float | None = None
    read_counted: float | None = None
    write_counted: float | None = None
    read_measured: float | None = None
    write_measured: float | None = None


def ledger(op: str, run: Run, device: DeviceProfile | None = None) -> tuple[LedgerLine, ...]:
    """The ledger of `run`; empty for a run without numbers. Without tiles the counters stand alone.

    With the `device` that it ran on, kernels have the zeros that TMA fills in, where the SM counted them.
    """
    row = find_op(op).implementation(run.impl)
    if not run.numbers:
        return ()
    if row is None or row.io is None:
        return _launched(run.kernels, "L2")
    if not _has_tiles(row.io, run):
        return _launched(run.kernels, row.io.level)
    moved = row.io.ledger(run.workload, run.uses)
    if row.io.level == "DRAM":
        return _by_step(moved, run)
    return _by_kernel((*moved, *_zeros(row.io, run, device)), run)


def _zeros(io: IOModel, run: Run, device: DeviceProfile | None) -> Iterator[Moved]:
    if device is None or io.zeros is None or not zeros_counted(run):
        return
    for one in io.zeros(run.workload, run.uses, device):
        if one.counted:
            traffic = Traffic(read_bytes=one.counted, write_bytes=0)
            yield Moved(kernel=one.kernel, tensor=ZEROS, traffic=traffic)


def _has_tiles(io: IOModel, run: Run) -> bool:
    tiled = {use.kernel for use in run.uses if use.block_m > 0 and use.block_n > 0}
    return tiled.issuperset(io.tiled(run.workload, run.uses))


def _by_kernel(moved: Ledger, run: Run) -> tuple[LedgerLine, ...]:
    """Each modelled kernel with its tensors, then the kernels that ran and are not in the model."""
    names = tuple(dict.fromkeys(entry.kernel for entry in (*moved, *run.counted)))
    lines: list[LedgerLine] = []
    for name in names:
        entries = tuple(entry for entry in moved if entry.kernel == name)
        counted = tuple(entry for entry in run.counted if entry.kernel == name) if run.counted else None
        launches = [kernel for kernel in run.kernels if kernel.name == name]
        read, write = _bytes(launches, _READ["L2"]), _bytes(launches, _WRITE["L2"])
        lines += [*_tensors(entries, counted, "L2"), _whole(name, "L2", entries, counted, read, write)]
    return (*lines, *_launched((kernel for kernel in run.kernels if kernel.name not in names), "L2"))


def _by_step(moved: Ledger, run: Run) -> tuple[LedgerLine, ...]:
    """Each step with its tensors, their sum beside the settled counters, then the kernels that ran."""
    read, write = run.value("dram_read"), run.value("dram_write")
    counted = run.counted or None
    whole = _whole(ALL_KERNELS, "DRAM", moved, counted, read, write)
    return (*_tensors(moved, counted, "DRAM"), whole, *_launched(run.kernels, "DRAM"))


def _tensors(moved: Ledger, counted: Ledger | None, level: Level) -> Iterator[LedgerLine]:
    """A line for each kernel and tensor of the model or of the count, which is 0 where it saw nothing."""
    modelled, seen = by_tensor(moved), by_tensor(counted or ())
    for kernel, tensor in {**modelled, **seen}:
        found = None if counted is None else seen.get((kernel, tensor), total(()))
        yield _line(kernel, tensor, level, modelled.get((kernel, tensor)), found)


def _whole(
    kernel: str, level: Level, moved: Ledger, counted: Ledger | None, read: float | None, write: float | None
) -> LedgerLine:
    found = None if counted is None else total(counted)
    line = _line(kernel, None, level, total(moved) if moved else None, found)
    return msgspec.structs.replace(line, read_measured=read, write_measured=write)


def _line(
    kernel: str, tensor: str | None, level: Level, modelled: Traffic | None, counted: Traffic | None
) -> LedgerLine:
    return LedgerLine(
        kernel=kernel,
        tensor=tensor,
        level=level,
        read_modelled=None if modelled is None else modelled.read_bytes,
        write_modelled=None if modelled is None else modelled.write_bytes,
        read_counted=None if counted is None else counted.read_bytes,
        write_counted=None if counted is None else counted.write_bytes,
    )


def _launched(kernels: Iterable[KernelCounts], level: Level) -> tuple[LedgerLine, ...]:
    """One line per kernel, in launch order, with what its counters read and no model."""
    return tuple(
        LedgerLine(
            kernel=kernel.name,
            tensor=None,
            level=level,
            read_measured=_bytes([kernel], _READ[level]),
            write_measured=_bytes([kernel], _WRITE[level]),
        )
        for kernel in kernels
    )


def _bytes(kernels: Sequence[KernelCounts], counters: Sequence[str]) -> float | None:
    """The sum over `kernels` of the first of `counters` that all of them have; None where there is none."""
    for counter in counters:
        values = [kernel.values[counter] for kernel in kernels if counter in kernel.values]
        if kernels and len(values) == len(kernels):
            return sum(values)
    return None
