"""Which programs of a kernel do the same, so that one of them can stand for all."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from perfkit.measure.counting.types import Sampling


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel whose program p works on tile p mod T of T = ceil(length / block); other digits are heads.

    `length` and `block` name arguments. Under a causal mask (argument CAUSAL) a `masked` kernel visits
    another number of tiles in each tile row, so that none are alike but those of other heads.
    """

    length: str
    block: str
    masked: bool


#: Kernels whose classes of programs are known. All programs of any other kernel run.
AXES: Final = {
    "flash_forward": Axis(length="seq_q", block="BLOCK_M", masked=True),
    "flash_delta": Axis(length="seq_q", block="BLOCK_M", masked=False),
    "flash_dkdv": Axis(length="seq_k", block="BLOCK_N", masked=True),
    "flash_dq": Axis(length="seq_q", block="BLOCK_M", masked=True),
}


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Which programs of a launch run: program -> how many it stands for.

    `witnesses` run as well, are not counted, and must do what their program (the value) does. None of
    either: all programs run and count once.
    """

    weights: dict[int, int] | None = None
    witnesses: dict[int, int] = {}
    rule: str = "all programs"

    def weight(self, program: int) -> int | None:
        """How many programs this one stands for, 0 for a witness; None where it does not run."""
        if self.weights is None:
            return 1
        return self.weights.get(program, 0 if program in self.witnesses else None)


def schedule(kernel: str, arguments: Mapping[str, Any], programs: int, sampling: Sampling) -> Schedule:
    """The schedule of one launch of `programs` programs."""
    axis = AXES.get(kernel)
    if sampling.programs == "all":
        return Schedule()
    if axis is None:
        return Schedule(rule="all programs: which of them are alike is not known")
    length, block = int(arguments[axis.length]), int(arguments[axis.block])
    tiles = -(-length // block)
    if programs % tiles:
        return Schedule(rule="all programs: they are not tiles of heads")
    if axis.masked and arguments.get("CAUSAL"):
        return _of_classes([range(tile, programs, tiles) for tile in range(tiles)], "one of each tile row")
    whole = length // block
    classes = [[p for p in range(programs) if p % tiles < whole], list(range(whole, programs, tiles))]
    return _of_classes(
        [members for members in (classes if whole < tiles else classes[:1]) if members],
        "one whole tile and the partial one" if 0 < whole < tiles else "one tile",
    )


def _of_classes(classes: list[Any], rule: str) -> Schedule:
    """The first of each class runs; the last of the first and the last class are witnesses."""
    ends = (classes[0], classes[-1])
    witnesses = {members[-1]: members[0] for members in ends if len(members) > 1}
    return Schedule(
        weights={members[0]: len(members) for members in classes},
        witnesses=witnesses,
        rule=f"{rule}; checked against {len(witnesses)} more" if witnesses else rule,
    )
