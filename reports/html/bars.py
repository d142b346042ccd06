"""Where the time went as stacked bars, drawn without a script: each run's parts as shares of its time."""

from collections.abc import Sequence
from typing import Final

import msgspec

from perfkit.analysis.comparison import workloads
from perfkit.analysis.losses import Loss
from perfkit.analysis.study import Study
from perfkit.model.units import show
from perfkit.reports.html.cells import Look, Looks
from perfkit.reports.html.tables import show_signed
from perfkit.reports.places import place

#: Pieces from this share on have room for a number.
_ROOM: Final = 0.07


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of a bar: its width in percent, which part it is, the number on it, and its title."""

    width: str
    slot: int
    text: str
    note: str


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One run: who and where, its time, and its pieces from left to right."""

    impl: str
    look: Look | None
    where: str
    time: str
    pieces: tuple[Piece, ...]


def bars(study: Study, looks: Looks) -> tuple[Bar, ...]:
    """A bar for each run whose time was split."""
    among = workloads(study)
    return tuple(
        Bar(
            impl=finding.placement.run.impl,
            look=looks.get(finding.placement.run.impl),
            where=place(workload, among),
            time=show(finding.placement.time_s, "time"),
            pieces=_pieces(finding.losses, finding.placement.time_s),
        )
        for workload in among
        for finding in study.findings
        if finding.placement.run.setting == workload and finding.losses and finding.placement.time_s
    )


def _pieces(losses: Sequence[Loss], time_s: float) -> tuple[Piece, ...]:
    """The pieces of one bar. A negative part is a gain: the pieces before it are shorter by as much."""
    lengths = [loss.time_s for loss in losses]
    for at, length in enumerate(lengths):
        gain = max(0.0, -length)
        lengths[at] = max(0.0, length)
        for before in range(at - 1, -1, -1):
            taken = min(lengths[before], gain)
            lengths[before] -= taken
            gain -= taken
    return tuple(
        Piece(
            width=f"{100 * length / time_s:.3f}",
            slot=at,
            text=f"{length / time_s:.0%}" if length >= _ROOM * time_s else "",
            note=f"{loss.name}: {show_signed(loss.time_s)}; {loss.description}",
        )
        for at, (loss, length) in enumerate(zip(losses, lengths, strict=True))
        if length > 0
    )
