"""Bytes by kernel and tensor while they are being counted."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from perfkit.measure.counting.types import Atomics, CountFailed
from perfkit.model.traffic import Traffic
from perfkit.ops.base import Ledger, Moved

#: (kernel, tensor).
Key = tuple[str, str]


@dataclass(slots=True)
class Sums:
    """What one kernel did to one tensor so far."""

    read: int = 0
    written: int = 0
    operations: int = 0
    operand_bytes: int = 0

    def add(self, other: "Sums", times: int = 1) -> None:
        """Add what `other` holds, `times` over."""
        self.read += other.read * times
        self.written += other.written * times
        self.operations += other.operations * times
        self.operand_bytes += other.operand_bytes * times


@dataclass(slots=True)
class Tally:
    """Sums by kernel and tensor, in the order in which they were first touched."""

    sums: dict[Key, Sums] = field(default_factory=dict)

    def of(self, kernel: str, tensor: str) -> Sums:
        """The sums of one kernel and tensor, to be added to."""
        return self.sums.setdefault((kernel, tensor), Sums())

    def add(self, other: Mapping[Key, Sums], times: int = 1) -> None:
        """Add every entry of `other`, `times` over."""
        for key, sums in other.items():
            self.of(*key).add(sums, times)

    def moved(self) -> Ledger:
        """The loads and stores as a ledger."""
        return tuple(
            Moved(
                kernel=kernel,
                tensor=tensor,
                traffic=Traffic(read_bytes=sums.read, write_bytes=sums.written),
            )
            for (kernel, tensor), sums in self.sums.items()
            if sums.read or sums.written
        )

    def atomics(self) -> tuple[Atomics, ...]:
        """The atomic operations."""
        return tuple(
            Atomics(
                kernel=kernel, tensor=tensor, operations=sums.operations, operand_bytes=sums.operand_bytes
            )
            for (kernel, tensor), sums in self.sums.items()
            if sums.operations
        )


def extended(one: Tally, two: Tally, groups: int) -> Tally:
    """The tally of `groups` heads from those of one and two: what is shared by all heads counts once.

    CountFailed where a tally is not of the form a + b groups with a and b at least 0.
    """
    result = Tally()
    for key in {**one.sums, **two.sums}:
        first, second = one.sums.get(key, Sums()), two.sums.get(key, Sums())
        step = Sums()
        step.add(second)
        step.add(first, -1)
        shared = Sums()
        shared.add(first)
        shared.add(step, -1)
        for part in (step, shared):
            if min(part.read, part.written, part.operations, part.operand_bytes) < 0:
                raise CountFailed(
                    f"{key[0]}: bytes of {key[1]} do not grow evenly with the heads",
                    "count all heads: Sampling(heads='all')",
                )
        result.of(*key).add(shared)
        result.of(*key).add(step, groups)
    return result
