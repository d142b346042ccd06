"""Kernels of one record: the byte ledger, their raw counters, their tiles and compiled code."""

from collections.abc import Iterator
from typing import Final

import msgspec

from perfkit.analysis.held import held
from perfkit.analysis.ledger import LedgerLine, ledger
from perfkit.analysis.study import Finding, Study
from perfkit.model.units import Hint
from perfkit.ops.attention_counted import Difference
from perfkit.ops.base import KernelUse
from perfkit.reports.html.cells import Cell, Looks, Table, absent, columns, once, shown, words
from perfkit.reports.html.rows import by_workload, impl_cell
from perfkit.reports.kernel_words import side_words


def byte_ledger(study: Study, looks: Looks) -> Table:
    """Bytes of each kernel and tensor at each level: by the model, counted where they were, by counters."""
    op, counted = study.record.op, any(run.counted for run in study.record.runs)

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        run = finding.placement.run
        off = {(d.kernel, d.tensor): d for d in held(op, run) or ()} if counted else None
        lines = ledger(op, run, study.record.device)
        return once([(impl_cell(finding, looks), *_ledger_line(line, off)) for line in lines], 1)

    sources = ("modelled", *(("counted",) if counted else ()), "measured")
    sides = (f"{side}, {source}" for side in ("read", "write") for source in sources)
    head = columns("implementation", "kernel", "tensor", "level", *sides, text=("kernel", "tensor", "level"))
    return Table(caption="Byte ledger", columns=head, rows=by_workload(study, cells))


#: What differs from the ledger by (kernel, tensor); None where nothing in the record was counted.
Differences = dict[tuple[str, str], Difference] | None


def _ledger_line(line: LedgerLine, off: Differences) -> Iterator[Cell]:
    """A line; why numbers are absent is said once, above the table."""
    whole = line.tensor is None
    yield words(line.kernel, "code")
    yield words("all" if whole else line.tensor or "", "total" if whole else "")
    yield words("SM<->L2" if line.level == "L2" else line.level)
    differing = None if off is None or line.tensor is None else off.get((line.kernel, line.tensor))
    for modelled, counted, measured in (
        (line.read_modelled, line.read_counted, line.read_measured),
        (line.write_modelled, line.write_counted, line.write_measured),
    ):
        yield shown(modelled, "bytes", "modelled", None)
        if off is not None:
            yield _counted(counted, modelled, differing)
        yield shown(measured, "bytes", "measured", None)


def _counted(counted: float | None, modelled: float | None, differing: Difference | None) -> Cell:
    """Counted bytes; by how many they differ and why in the title, in red where nothing explains it."""
    cell = shown(counted, "bytes", "counted", None)
    if differing is None or counted is None or counted == (modelled or 0):
        return cell
    by = f"{counted - (modelled or 0):+,.0f} B from the model"
    if differing.reason:
        return msgspec.structs.replace(cell, note=f"{by}: {differing.reason}")
    return msgspec.structs.replace(cell, kind="bad", note=f"DIFFERS: {by}, and nothing explains it")


#: Raw counters: name -> label, how to show it, scale to the base unit. Unknown ones are shown as counts.
_COUNTERS: Final[dict[str, tuple[str, Hint, float]]] = {
    "duration_ns": ("duration", "time", 1e-9),
    "sm_cycles": ("SM cycles", "count", 1),
    "l1_fill_bytes": ("L2->SM, into L1", "bytes", 1),
    "l2_read_bytes": ("L2->SM, at L2", "bytes", 1),
    "l2_write_bytes": ("SM->L2", "bytes", 1),
    "dram_read_bytes": ("DRAM read", "bytes", 1),
    "dram_write_bytes": ("DRAM write, raw", "bytes", 1),
    "tensor_flop": ("FLOPs, tensor", "flop", 1),
    "vector_flop": ("FLOPs, vector", "flop", 1),
    "xu_inst": ("exps and conversions", "count", 1),
}


def kernels(study: Study, looks: Looks) -> Table:
    """Raw counters of each kernel, in launch order."""
    found = {name for run in study.record.runs for kernel in run.kernels for name in kernel.values}
    names = [*(name for name in _COUNTERS if name in found), *sorted(found - _COUNTERS.keys())]

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        rows = []
        for kernel in finding.placement.run.kernels:
            values = (_counter(name, kernel.values.get(name)) for name in names)
            rows.append((impl_cell(finding, looks), words(kernel.name, "code"), *values))
        return rows

    head = columns(
        "implementation",
        "kernel",
        *(_COUNTERS[name][0] if name in _COUNTERS else name for name in names),
        text=("kernel",),
    )
    return Table(caption="Kernels", columns=head, rows=by_workload(study, cells))


def _counter(name: str, value: float | None) -> Cell:
    _, hint, scale = _COUNTERS.get(name, (name, "count", 1.0))
    return shown(None if value is None else value * scale, hint, "measured", "not read for this kernel")


def tiles(study: Study, looks: Looks) -> Table:
    """What each kernel uses: its tile, warps, and what its compiled code takes."""

    def cells(finding: Finding) -> list[tuple[Cell, ...]]:
        uses = finding.placement.run.uses
        return [(impl_cell(finding, looks), *_use(use)) for use in uses]

    head = columns(
        "implementation", "kernel", "tile", "warps", "stages", "registers/thread", "spills/thread",
        "shared memory", text=("kernel",),
    )  # fmt: skip
    return Table(caption="Tiles and compiled code", columns=head, rows=by_workload(study, cells))


def _use(use: KernelUse) -> Iterator[Cell]:
    why = "this kernel was not compiled in this run"
    yield words(use.kernel, "code")
    sides = side_words(use).replace("x", " x ")
    yield Cell(text=sides, number=True) if sides else absent("this kernel has no tile")
    for value in (use.num_warps, use.num_stages):
        yield Cell(text=str(value), number=True) if value is not None else absent("not given")
    for count in (use.registers, use.spills):
        yield shown(count, "count", "counted", why, "counted: by the compiler")
    shared = use.shared_bytes
    text = None if shared is None else f"{shared / 1024:.1f} KiB#"
    yield Cell(text=text, kind="counted", note=f"counted: {shared} B", number=True) if text else absent(why)
