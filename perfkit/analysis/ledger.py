"""The byte ledger of a run: bytes by kernel and tensor from the IO model, and by kernel from the counters."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from perfkit.ops import find_op
from perfkit.ops.base import IOModel, Ledger, Level, total
from perfkit.record import KernelCounts, Run

#: The line that holds all kernels where libraries choose them, so that none is a step of the model.
ALL_KERNELS: Final = "all kernels"

#: Raw counters of a kernel that are its bytes at a level, best first: at L2 some chips count requests of
#: several SMs for one line as one.
_READ: Final[dict[Level, tuple[str, ...]]] = {
    "L2": ("l1_fill_bytes", "l2_read_bytes"),
    "DRAM": ("dram_read_bytes",),
}
_WRITE: Final[dict[Level, tuple[str, ...]]] = {"L2": ("l2_write_bytes",), "DRAM": ("dram_write_bytes",)}


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one tensor in one kernel or step; of the whole kernel where `tensor` is None.

    None where it is not known: counters do not tell tensors apart, and the model does not know the kernels of
    libraries. DRAM bytes of single kernels are raw; those of all kernels are the run's own.
    """

    kernel: str
    tensor: str | None
    level: Level
    read_modelled: float | None = None
    write_modelled: float | None = None
    read_measured: float | None = None
    write_measured: float | None = None


def ledger(op: str, run: Run) -> tuple[LedgerLine, ...]:
    """The ledger of `run`; empty for a run without numbers, or without the tiles that its model needs."""
    row = find_op(op).implementation(run.impl)
    if not run.numbers:
        return ()
    if row is None or row.io is None:
        return _counted(run.kernels, "L2")
    if not _has_tiles(row.io, run):
        return ()
    moved = row.io.ledger(run.workload, run.uses)
    return _by_kernel(moved, run) if row.io.level == "L2" else _by_step(moved, run)


def _has_tiles(io: IOModel, run: Run) -> bool:
    tiled = {use.kernel for use in run.uses if use.block_m > 0 and use.block_n > 0}
    return tiled.issuperset(io.tiled(run.workload))


def _by_kernel(moved: Ledger, run: Run) -> tuple[LedgerLine, ...]:
    """Each modelled kernel with its tensors, then the kernels that ran and are not in the model."""
    names = tuple(dict.fromkeys(entry.kernel for entry in moved))
    lines: list[LedgerLine] = []
    for name in names:
        entries = tuple(entry for entry in moved if entry.kernel == name)
        counts = [counted for counted in run.kernels if counted.name == name]
        read, write = _bytes(counts, _READ["L2"]), _bytes(counts, _WRITE["L2"])
        lines += [*_tensors(entries, "L2"), _whole(name, "L2", entries, read, write)]
    return (*lines, *_counted((counted for counted in run.kernels if counted.name not in names), "L2"))


def _by_step(moved: Ledger, run: Run) -> tuple[LedgerLine, ...]:
    """Each step with its tensors, their sum beside the settled counters, then the kernels that ran."""
    whole = _whole(ALL_KERNELS, "DRAM", moved, run.value("dram_read"), run.value("dram_write"))
    return (*_tensors(moved, "DRAM"), whole, *_counted(run.kernels, "DRAM"))


def _tensors(moved: Ledger, level: Level) -> tuple[LedgerLine, ...]:
    return tuple(
        LedgerLine(
            kernel=entry.kernel,
            tensor=entry.tensor,
            level=level,
            read_modelled=entry.traffic.read_bytes,
            write_modelled=entry.traffic.write_bytes,
        )
        for entry in moved
    )


def _whole(kernel: str, level: Level, moved: Ledger, read: float | None, write: float | None) -> LedgerLine:
    modelled = total(moved)
    return LedgerLine(
        kernel=kernel,
        tensor=None,
        level=level,
        read_modelled=modelled.read_bytes,
        write_modelled=modelled.write_bytes,
        read_measured=read,
        write_measured=write,
    )


def _counted(kernels: Iterable[KernelCounts], level: Level) -> tuple[LedgerLine, ...]:
    """One line per kernel, in launch order, with what was counted and no model."""
    return tuple(
        LedgerLine(
            kernel=counted.name,
            tensor=None,
            level=level,
            read_measured=_bytes([counted], _READ[level]),
            write_measured=_bytes([counted], _WRITE[level]),
        )
        for counted in kernels
    )


def _bytes(kernels: Sequence[KernelCounts], counters: Sequence[str]) -> float | None:
    """The sum over `kernels` of the first of `counters` that all of them have; None where there is none."""
    for counter in counters:
        values = [kernel.values[counter] for kernel in kernels if counter in kernel.values]
        if kernels and len(values) == len(kernels):
            return sum(values)
    return None
