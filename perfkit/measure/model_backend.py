"""The backend of a machine that cannot measure: every measured number is unavailable, with the reason."""

from collections.abc import Sequence

from perfkit.measure.draft import Draft
from perfkit.measure.environment import environment
from perfkit.measure.session import Stage, Work
from perfkit.model.device import DeviceProfile
from perfkit.ops.base import Op
from perfkit.record import Environment, Status


class ModelBackend:
    """Gives only what formulas give, on the profile of any device."""

    name = "model"
    hardware: str | None = None
    status: Status = "modelled"

    def __init__(self, profile: DeviceProfile, reason: str) -> None:
        self.profile = profile
        self.missing = reason
        self.notes: tuple[str, ...] = (f"nothing was measured: {reason}",)

    def environment(self) -> Environment:
        """This machine, without importing torch."""
        return environment(with_torch=False)

    def prepare(self, op: Op, draft: Draft, stage: Stage) -> Work:  # noqa: ARG002
        """Nothing: the session adds the model, and `missing` to all the rest."""
        return None

    def time(self, drafts: Sequence[Draft], works: Sequence[Work], stage: Stage) -> None:
        """Nothing runs."""

    def examine(self, op: Op, draft: Draft, work: Work, stage: Stage) -> None:
        """Nothing runs."""
