"""A count of bytes held against the ledger, and where one on a CPU must differ from it."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from perfkit.model.traffic import Traffic
from perfkit.ops.base import Ledger, by_tensor

_NOTHING: Final = Traffic(read_bytes=0, write_bytes=0)
#: (kernel or step, tensor), and the traffic of each.
Key = tuple[str, str]
Moved = Mapping[Key, Traffic]


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Why a count on a CPU differs from the ledger of a GPU, and what it then has to be.

    `holds` is asked with the entry, all that was counted, and the ledger.
    """

    reason: str
    holds: Callable[[Key, Moved, Moved], bool]


def _of(moved: Moved, key: Key) -> Traffic:
    return moved.get(key, _NOTHING)


def _nothing(key: Key, counted: Moved, _: Moved) -> bool:
    return _of(counted, key) == _NOTHING


def _reads_for_the_product(key: Key, counted: Moved, ledger: Moved) -> bool:
    """The step of dS reads what the product would have read."""
    return _of(counted, key) == _of(ledger, ("P o dP", key[1]))


def _in_all_the_same(key: Key, counted: Moved, ledger: Moved) -> bool:
    """All tensors of the step together are as the ledger says."""
    sums = [_sum(moved, key[0]) for moved in (counted, ledger)]
    return sums[0] == sums[1]


def _sum(moved: Moved, kernel: str) -> Traffic:
    return sum((traffic for (name, _), traffic in moved.items() if name == kernel), _NOTHING)


def _no_more(key: Key, counted: Moved, ledger: Moved) -> bool:
    found, expected = _of(counted, key), _of(ledger, key)
    return found.read_bytes <= expected.read_bytes and found.write_bytes <= expected.write_bytes


def _vectors(key: Key, counted: Moved, ledger: Moved) -> bool:
    """Some numbers a row: no more than the largest tensor of the ledger."""
    return _of(counted, key).total_bytes <= max(traffic.total_bytes for traffic in ledger.values())


_FUSED: Final = "torch multiplies P and dP in a kernel of its own on a GPU, and in that of dS on a CPU"
_ABSENT: Final = Known(reason=_FUSED, holds=_nothing)
_INSTEAD: Final = Known(reason=_FUSED, holds=_reads_for_the_product)
_INDEX: Final = Known(
    reason="the two index vectors that the mask is made from are not in the ledger", holds=_vectors
)
_LENGTHS: Final = Known(
    reason="the lengths and the index vector that the mask is made from are not in the ledger", holds=_vectors
)
_SEQUENCES: Final = Known(
    reason="the mask has a row for each sequence of the batch, and a sample of heads is of one",
    holds=_no_more,
)
_KEPT: Final = Known(
    reason="a count has one name for all that an operation writes: Z is in P o Z", holds=_in_all_the_same
)

#: Entries in which a count on a CPU differs from the ledger.
KNOWN: Final[Mapping[Key, Known]] = {
    ("P o dP", "P"): _ABSENT,
    ("P o dP", "dP"): _ABSENT,
    ("P o dP", "dP o Z"): _ABSENT,
    ("P o dP", "P o dP"): _ABSENT,
    ("dS", "P o dP"): _ABSENT,
    ("dS", "dP"): _INSTEAD,
    ("dS", "dP o Z"): _INSTEAD,
    ("aten::arange", "index"): _INDEX,
    ("mask", "index"): _INDEX,
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
            counted=_of(left, key),
            expected=_of(right, key),
            reason=_reason(key, left, right),
        )
        for key in {**right, **left}
        if _of(left, key) != _of(right, key)
    )


def _reason(key: Key, counted: Moved, ledger: Moved) -> str | None:
    known = KNOWN.get(key)
    return known.reason if known is not None and known.holds(key, counted, ledger) else None
