"""Which kernels a run took, in words: the tile and compiled code of each, so that its path can be seen."""

from collections.abc import Iterable, Iterator

from perfkit.ops import find_op
from perfkit.ops.attention_decode_ledger import COMBINE
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Uses
from perfkit.record import Run
from perfkit.reports.cells import ended_well
from perfkit.reports.places import place, places


def kernel_words(op: str, run: Run) -> Iterator[str]:
    """A line for each kernel that was compiled; of a run without, one with the tiles that its model is of."""
    compiled = [use for use in run.uses if use.registers is not None]
    yield from map(_compiled, compiled)
    if not compiled and ended_well(run) and (uses := needed(op, run)):
        yield tile_words(uses)


def needed(op: str, run: Run) -> Uses:
    """The tiles of the kernels without which the pass of a run has no ledger."""
    row = find_op(op).implementation(run.impl)
    kernels = row.io.tiled(run.workload, run.uses) if row is not None and row.io is not None else ()
    return tuple(use for use in run.uses if use.kernel in kernels)


def tile_words(uses: Uses) -> str:
    """`tiles flash_dkdv 64x64, flash_dq 128x64`."""
    return f"tiles {', '.join(f'{use.kernel} {side_words(use)}'.rstrip() for use in uses)}"


def side_words(use: KernelUse) -> str:
    """`64x128`; `64 rows` of a kernel without a block of keys, and nothing of one without a tile."""
    if use.block_n:
        return f"{use.block_m}x{use.block_n}"
    # What merges has the partial results of one row, one for each share of the keys.
    unit = "share" if use.kernel == COMBINE else "row"
    return f"{use.block_m} {unit}{'s' if use.block_m > 1 else ''}" if use.block_m else ""


def of_runs(op: str, runs: Iterable[tuple[str, Run]], among: tuple[AttentionWorkload, ...]) -> Iterator[str]:
    """The words of runs with labels, each once: where they are not true on all of `among`, with the place."""
    where: dict[str, list[str]] = {}
    said: dict[tuple[str, str], list[str]] = {}
    for label, run in runs:
        at = place(run.setting, among)
        where.setdefault(label, []).append(at)
        for text in kernel_words(op, run):
            said.setdefault((label, text), []).append(at)
    for (label, text), found in said.items():
        everywhere = set(found) == set(where[label])
        yield f"{label}{'' if everywhere else f' at {places(found)}'}: {text}"


def _compiled(use: KernelUse) -> str:
    shared = f"{(use.shared_bytes or 0) / 1024:.0f} KiB shared"
    taken = (f"{use.num_warps} warps", f"{use.num_stages} stages", shared)
    compiled = (f"{use.registers} registers", f"{use.spills} spilled")
    return f"{use.kernel}: {', '.join(part for part in (side_words(use), *taken, *compiled) if part)}"
