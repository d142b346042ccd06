"""Which programs of a kernel do the same, so that one of them can stand for all."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from perfkit.measure.counting.types import Sampling


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel whose program p works on tile p mod T of T = ceil(length / block); other digits are heads.

    `length` and `block` name arguments. Under a mask a `masked` kernel visits another number of tiles in each
    tile row, so that none are alike but those of other heads: where its argument CAUSAL says so, or it has
    none. Where the tiles are those of a matrix, this axis is that of its columns, and the next digit belongs
    to the axis of its `rows`.
    """

    length: str
    block: str
    masked: bool = False
    rows: "Axis | None" = None

    def parts(self, arguments: Mapping[str, Any]) -> list[range]:
        """The whole tiles and the partial one, without those that there are not."""
        length, block = int(arguments[self.length]), int(arguments[self.block])
        whole = length // block
        return [part for part in (range(whole), range(whole, -(-length // block))) if part]


_QUERIES: Final = Axis(length="seq_q", block="BLOCK_M")


#: Kernels whose classes of programs are known. All programs of any other kernel run.
AXES: Final = {
    "flash_forward": Axis(length="seq_q", block="BLOCK_M", masked=True),
    "flash_delta": _QUERIES,
    "flash_dkdv": Axis(length="seq_k", block="BLOCK_N", masked=True),
    "flash_dq": Axis(length="seq_q", block="BLOCK_M", masked=True),
    "block_sparse_forward": Axis(length="seq_q", block="BLOCK_M", masked=True),
    "block_sparse_dkdv": Axis(length="seq_k", block="BLOCK_N", masked=True),
    "block_sparse_dq": Axis(length="seq_q", block="BLOCK_M", masked=True),
    "square_scores": Axis(length="seq_k", block="BLOCK_N", rows=_QUERIES),
    "square_statistics": _QUERIES,
    "square_output": Axis(length="HEAD_DIM", block="BLOCK_N", rows=_QUERIES),
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
    columns, rows = axis.parts(arguments), axis.rows.parts(arguments) if axis.rows else [range(1)]
    width = columns[-1].stop
    tiles = rows[-1].stop * width
    if programs % tiles:
        return Schedule(rule="all programs: they are not tiles of heads")
    if axis.masked and arguments.get("CAUSAL", True):
        return _of_classes([range(tile, programs, tiles) for tile in range(tiles)], "one of each tile row")
    heads = range(0, programs, tiles)
    classes = [
        [head + row * width + column for head in heads for row in some_rows for column in some_columns]
        for some_rows in rows
        for some_columns in columns
    ]
    return _of_classes(classes, _RULES[len(classes)])


#: Classes of tiles -> the rule.
_RULES: Final = {
    1: "one tile",
    2: "one whole tile and the partial one",
    4: "one whole tile and three kinds of partial ones",
}


def _of_classes(classes: list[Any], rule: str) -> Schedule:
    """The first of each class runs; the last of the first and the last class are witnesses."""
    ends = (classes[0], classes[-1])
    witnesses = {members[-1]: members[0] for members in ends if len(members) > 1}
    return Schedule(
        weights={members[0]: len(members) for members in classes},
        witnesses=witnesses,
        rule=f"{rule}; checked against {len(witnesses)} more" if witnesses else rule,
    )
