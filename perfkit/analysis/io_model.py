"""What the mathematics says of one workload: every implementation's ledger, its tiles, and its distance from
the lower bounds."""

from collections.abc import Sequence

import msgspec

from perfkit.analysis.bounds import Bounds, bounds
from perfkit.analysis.law import LAWS, matrix_bytes
from perfkit.errors import UsageError
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Ledger, Uses
from perfkit.ops.plan import planned


class Distance(msgspec.Struct, frozen=True, kw_only=True):
    """How far an implementation is from the lower bounds, in elements a head.

    `memory` is M as its law counts it; `moved` what it reads and writes of matrices.
    """

    memory: float
    moved: float
    bounds: Bounds


class Deviation(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted of one kernel and tensor where it is not what the ledger says.

    `reason` says why it must differ on a CPU; None where nothing explains it.
    """

    kernel: str
    tensor: str
    counted: Traffic
    reason: str | None


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A count held against the ledger: where they differ (nowhere, if they are equal), and how it was run."""

    deviations: tuple[Deviation, ...]
    notes: tuple[str, ...]

    @property
    def explained(self) -> bool:
        """Whether every difference has a reason; true for none."""
        return all(one.reason is not None for one in self.deviations)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation on one workload, with the tiles that it would run and its ledger."""

    row: Implementation
    workload: AttentionWorkload
    uses: Uses
    ledger: Ledger

    @property
    def level(self) -> str:
        """The level at which the ledger is exact, as people write it."""
        return "DRAM" if self.row.io is not None and self.row.io.level == "DRAM" else "SM<->L2"

    @property
    def distance(self) -> Distance | None:
        """Of a forward pass without a mask, for what has a tile and a law; None for all else."""
        w, law = self.workload, LAWS.get(self.row.name)
        if law is None or law.tile is None or w.causal or w.pass_ != "fwd":
            return None
        memory = float(law.resident * getattr(self.uses[0], law.tile) * w.head_dim)
        moved = matrix_bytes(self.ledger) / w.element_bytes / (w.batch * w.heads)
        return Distance(memory=memory, moved=moved, bounds=bounds(w, memory))


def subjects(
    rows: Sequence[Implementation], w: AttentionWorkload, profile: DeviceProfile
) -> tuple[Subject, ...]:
    """Every one of `rows` on `w`, with the tiles of `profile`; UsageError for one without an IO model."""
    found = []
    for row in rows:
        if row.io is None:
            raise UsageError(f"{row.name} has no IO model: its tiles are not known", "name another one")
        if reason := row.refusal(w):
            raise UsageError(f"{row.name} cannot serve it: {reason}")
        needed = row.io.tiled(w)
        uses = tuple(use for use in planned(row, w, profile) if use.kernel in needed)
        found.append(Subject(row=row, workload=w, uses=uses, ledger=row.io.ledger(w, uses)))
    return tuple(found)
