"""Decode steps over batches and contexts: how fast the K/V cache is read, and tokens/s, cell by cell.

A decode step is a forward pass of a few query tokens over a longer K/V cache. Each token of the cache is read
once, so that the bytes of the cache over the time, held against what DRAM can do, says how good a kernel is.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from perfkit.analysis.placement import Placement
from perfkit.analysis.study import Study
from perfkit.model.roofline import Bound
from perfkit.ops import find_op
from perfkit.ops.attention_decode import MOST_TOKENS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Provenance

#: Batches, and contexts, below which there is no map.
LEAST: Final = 2

#: What varies over a map.
_AXES: Final = ("batch", "seq_k")


class DecodeCell(msgspec.Struct, frozen=True, kw_only=True):
    """One batch at one context. `placement` is None where the record has no such run."""

    batch: int
    context: int
    placement: Placement | None

    @property
    def provenance(self) -> Provenance:
        """Whether its numbers are of a measured time or of the least time; unavailable where neither is."""
        if self.placement is None or self.time_s is None:
            return "unavailable"
        return "modelled" if self.placement.run.status == "modelled" else "measured"

    @property
    def time_s(self) -> float | None:
        """The measured time, the least time of a modelled run; None where there is none that can be true."""
        if self.placement is None or self.placement.invalid:
            return None
        if self.placement.run.status == "modelled":
            return self.placement.least_s
        return self.placement.time_s if self.placement.run.status == "measured" else None

    @property
    def rate(self) -> float | None:
        """Bytes of the K/V cache over the time, in byte/s."""
        if self.placement is None or self.time_s is None:
            return None
        return self.placement.run.workload.cache_bytes / self.time_s

    @property
    def bandwidth(self) -> float | None:
        """What DRAM allows, in byte/s: the data sheet's rate, or on a CPU the ceiling measured there."""
        roof = self.placement.roof if self.placement else None
        return roof.bandwidth.get("DRAM") if roof else None

    @property
    def share(self) -> float | None:
        """The rate over the bandwidth of DRAM; above 1 the cache was not read from DRAM."""
        return self.rate / self.bandwidth if self.rate is not None and self.bandwidth else None

    @property
    def tokens_per_s(self) -> float | None:
        """Query tokens over the time, of one layer of attention."""
        return self._tokens / self.time_s if self.time_s else None

    @property
    def most_tokens_per_s(self) -> float | None:
        """Query tokens over the least time that any resource allows."""
        least = self.placement.least_s if self.placement and self.time_s is not None else None
        return self._tokens / least if least else None

    @property
    def of_least(self) -> float | None:
        """The least time over the measured time: how near to its bound the run is."""
        measured = self.provenance == "measured"
        least = self.placement.least_s if self.placement and measured else None
        return least / self.time_s if least and self.time_s else None

    @property
    def bound(self) -> Bound | None:
        """The resource that needs the longest; None where there are no numbers."""
        return self.placement.bound if self.placement and self.time_s is not None else None

    @property
    def reason(self) -> str | None:
        """Why there are no numbers; None where there are."""
        if self.time_s is not None:
            return None
        if self.placement is None:
            return "not run"
        run = self.placement.run
        if self.placement.invalid:
            return f"INVALID: {self.placement.invalid}"
        if run.status in ("measured", "modelled"):
            return "no time was measured" if run.status == "measured" else "no floor is known"
        return f"{run.status}: {run.reason or 'no reason given'}"

    @property
    def _tokens(self) -> int:
        return self.batch * self.placement.run.workload.seq_q if self.placement else 0


class DecodeMap(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation on workloads that differ in batch and context alone.

    `workload` is the first of them as it was asked for. The cells are those of the first batch over all
    contexts, then those of the next; batches and contexts go up.
    """

    impl: str
    workload: AttentionWorkload
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    cells: tuple[DecodeCell, ...]

    def row(self, batch: int) -> tuple[DecodeCell, ...]:
        """The cells of one batch, over all contexts."""
        return tuple(cell for cell in self.cells if cell.batch == batch)

    @property
    def known(self) -> bool:
        """Whether any cell has numbers."""
        return any(cell.time_s is not None for cell in self.cells)


def is_decode(w: AttentionWorkload) -> bool:
    """Whether it is a decode step: forward, up to 64 query tokens over more keys, all of which are read.

    With a pattern not all of the cache is read, and its bytes say nothing about the time.
    """
    return w.pass_ == "fwd" and w.seq_q <= MOST_TOKENS and w.seq_q < w.seq_k and w.pattern is None


def decode_maps(study: Study) -> tuple[DecodeMap, ...]:
    """The maps of a study: of each implementation on two batches and two contexts of otherwise one workload.

    Maps of one family, of workloads that are alike, stand together and have the same axes. The first of them
    is of the first shipped implementation that has numbers. A family without any number has no maps, and
    trials are in none.
    """
    families: dict[tuple[Any, ...], dict[str, list[Placement]]] = {}
    for finding in study.findings:
        run = finding.placement.run
        if not run.trial and is_decode(run.setting):
            impls = families.setdefault(_alike(run.setting), {})
            impls.setdefault(run.impl, []).append(finding.placement)
    found = (_family(study.record.op, impls) for impls in families.values())
    return tuple(one for maps in found if any(one.known for one in maps) for one in maps)


def by_family(maps: Sequence[DecodeMap]) -> tuple[tuple[DecodeMap, ...], ...]:
    """Maps of alike workloads together; the first of each is to be shown fully."""
    families: dict[tuple[Any, ...], list[DecodeMap]] = {}
    for one in maps:
        families.setdefault(_alike(one.workload), []).append(one)
    return tuple(tuple(family) for family in families.values())


def unmapped(study: Study, maps: Sequence[DecodeMap]) -> Study:
    """The study of the workloads with a run that no map holds; the whole of it where there are no maps."""
    if not maps:
        return study
    held = {id(cell.placement) for one in maps for cell in one.cells}
    rest = {f.placement.run.setting for f in study.findings if id(f.placement) not in held}
    kept = tuple(finding for finding in study.findings if finding.placement.run.setting in rest)
    record = msgspec.structs.replace(study.record, runs=tuple(finding.placement.run for finding in kept))
    return Study(record=record, findings=kept)


def _alike(w: AttentionWorkload) -> tuple[Any, ...]:
    """The workload without batch and context."""
    return tuple(getattr(w, name) for name in w.__struct_fields__ if name not in _AXES)


def _family(op: str, impls: dict[str, list[Placement]]) -> tuple[DecodeMap, ...]:
    grids = {impl: placed for impl, placed in impls.items() if _is_grid(placed)}
    asked = [one.run.setting for placed in grids.values() for one in placed]
    batches = tuple(sorted({w.batch for w in asked}))
    contexts = tuple(sorted({w.seq_k for w in asked}))
    maps = [_map(impl, placed, batches, contexts) for impl, placed in grids.items()]
    return tuple(sorted(maps, key=lambda one: (not one.known, not _shipped(op, one.impl))))


def _is_grid(placed: Sequence[Placement]) -> bool:
    return all(len({getattr(one.run.setting, axis) for one in placed}) >= LEAST for axis in _AXES)


def _shipped(op: str, impl: str) -> bool:
    row = find_op(op).implementation(impl)
    return row is not None and row.role == "shipped"


def _map(
    impl: str, placed: Sequence[Placement], batches: tuple[int, ...], contexts: tuple[int, ...]
) -> DecodeMap:
    """The first run of each place has its cell."""
    at: dict[tuple[int, int], Placement] = {}
    for one in placed:
        at.setdefault((one.run.setting.batch, one.run.setting.seq_k), one)
    cells = tuple(
        DecodeCell(batch=batch, context=context, placement=at.get((batch, context)))
        for batch in batches
        for context in contexts
    )
    return DecodeMap(
        impl=impl, workload=placed[0].run.setting, batches=batches, contexts=contexts, cells=cells
    )
