"""Where the time of `gpt2` went: its kernels by the steps of the ledger, in launch order."""

from collections.abc import Sequence

import msgspec

from perfkit.ops.attention_gpt2 import gpt2_kernels, gpt2_ledger
from perfkit.ops.base import total
from perfkit.record import KernelCounts, Run


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step: the kernels that it was, and its time and DRAM bytes; None where one of them was not counted.

    `time_s` is under the profiler, where clocks may differ from those of the samples: `share` of the time of
    all kernels is what compares. Counted bytes are raw: what a step leaves dirty in L2 is written during the
    next.
    """

    name: str
    kernels: tuple[str, ...]
    read_modelled: int
    write_modelled: int
    time_s: float | None
    share: float | None
    read_measured: float | None
    write_measured: float | None


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of a run in launch order; None with the reason where its kernels cannot be told apart."""

    steps: tuple[Step, ...] | None
    reason: str | None = None


def steps(run: Run) -> Steps:
    """The steps of a run of `gpt2`, each with the kernels that stand in its place.

    Libraries choose the kernels, so they are known by their order only: where their number is not the
    modelled one there are no steps.
    """
    if run.impl != "gpt2":
        return Steps(steps=None, reason=f"{run.impl} has no steps of its own")
    if not run.kernels:
        return Steps(steps=None, reason="no kernels were counted")
    planned = gpt2_kernels(run.workload)
    expected = sum(count for _, count in planned)
    if len(run.kernels) != expected:
        return Steps(
            steps=None, reason=f"{len(run.kernels)} kernels were counted, and the steps are {expected}"
        )
    whole = _sum(run.kernels, "duration_ns")
    found, at = [], 0
    for name, count in planned:
        found.append(_step(run, name, run.kernels[at : at + count], whole))
        at += count
    return Steps(steps=tuple(found))


def _step(run: Run, name: str, kernels: Sequence[KernelCounts], whole: float | None) -> Step:
    modelled = total(entry for entry in gpt2_ledger(run.workload) if entry.kernel == name)
    took = _sum(kernels, "duration_ns")
    return Step(
        name=name,
        kernels=tuple(kernel.name for kernel in kernels),
        read_modelled=modelled.read_bytes,
        write_modelled=modelled.write_bytes,
        time_s=None if took is None else took / 1e9,
        share=took / whole if took is not None and whole else None,
        read_measured=_sum(kernels, "dram_read_bytes"),
        write_measured=_sum(kernels, "dram_write_bytes"),
    )


def _sum(kernels: Sequence[KernelCounts], counter: str) -> float | None:
    """The sum of a counter over the kernels; None where one of them has none."""
    values = [kernel.values[counter] for kernel in kernels if counter in kernel.values]
    return sum(values) if len(values) == len(kernels) else None
