"""A count of bytes held against the ledger, and where one on a CPU must differ from it."""

from typing import Final

import msgspec

from perfkit.model.traffic import Traffic
from perfkit.ops.base import Ledger, by_tensor

_NOTHING: Final = Traffic(read_bytes=0, write_bytes=0)
_FUSED: Final = "torch multiplies P and dP in a kernel of its own on a GPU, and in that of dS on a CPU"
_INDEX: Final = "the two index vectors that the mask is made from are not in the ledger"
_LENGTHS: Final = "the lengths and the index vector that the mask is made from are not in the ledger"
_SEQUENCES: Final = "the mask has a row for each sequence of the batch, and a sample of heads is of one"
_KEPT: Final = "a count has one name for all that an operation writes: Z is in P o Z"

#: (step, tensor) in which a count on a CPU differs from the ledger -> why.
KNOWN: Final = {
    ("P o dP", "P"): _FUSED,
    ("P o dP", "dP"): _FUSED,
    ("P o dP", "P o dP"): _FUSED,
    ("dS", "P o dP"): _FUSED,
    ("dS", "dP"): _FUSED,
    ("aten::arange", "index"): _INDEX,
    ("mask", "index"): _INDEX,
    ("P o dP", "dP o Z"): _FUSED,
    ("dS", "dP o Z"): _FUSED,
    ("padding mask", "index"): _LENGTHS,
    ("padding mask", "unnamed"): _LENGTHS,
    ("padding mask", "mask"): _SEQUENCES,
    ("S + mask", "mask"): _SEQUENCES,
    ("P o Z", "P o Z"): _KEPT,
    ("P o Z", "Z"): _KEPT,
    ("dP o Z", "P o Z"): _KEPT,
    ("dP o Z", "Z"): _KEPT,
}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel and tensor whose counted bytes are not those of the ledger; zero where it has no entry.

    `reason` says why a count on a CPU must differ there; None where nothing explains it.
    """

    kernel: str
    tensor: str
    counted: Traffic
    expected: Traffic
    reason: str | None = None


def differences(counted: Ledger, expected: Ledger) -> tuple[Difference, ...]:
    """Every entry in which two ledgers differ, in the order of `expected`; none if they are equal."""
    left, right = by_tensor(counted), by_tensor(expected)
    return tuple(
        Difference(
            kernel=key[0],
            tensor=key[1],
            counted=left.get(key, _NOTHING),
            expected=right.get(key, _NOTHING),
            reason=KNOWN.get(key),
        )
        for key in {**right, **left}
        if left.get(key, _NOTHING) != right.get(key, _NOTHING)
    )
