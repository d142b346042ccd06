"""Whose memory an address is: the tensors that a kernel was given, by where they lie."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from perfkit.measure.counting.types import CountFailed


class Region(msgspec.Struct, frozen=True, order=True):
    """Bytes [start, end) of the tensor argument `name`."""

    start: int
    end: int
    name: str


def regions_of(arguments: Mapping[str, Any]) -> list[Region]:
    """The memory of every tensor among a kernel's arguments; of a tensor descriptor, its base's."""
    return [region for name, value in arguments.items() for region in _regions(name, value)]


def is_descriptor(value: Any) -> bool:
    """Whether a kernel's argument is a tensor descriptor."""
    return not hasattr(value, "data_ptr") and hasattr(getattr(value, "base", None), "data_ptr")


def _regions(name: str, value: Any) -> Iterable[Region]:
    if isinstance(value, tuple):
        return [found for at, part in enumerate(value) for found in _regions(f"{name}[{at}]", part)]
    tensor = value.base if is_descriptor(value) else value
    if not hasattr(tensor, "data_ptr") or tensor.numel() == 0:
        return ()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.data_ptr())
    return (Region(start, start + (last + 1) * int(tensor.element_size()), name),)


class Regions:
    """Tells the tensors of one kernel apart by address. CountFailed where two of them overlap."""

    def __init__(self, kernel: str, regions: Iterable[Region]) -> None:
        self._kernel, self._regions = kernel, sorted(regions)
        for lower, upper in zip(self._regions, self._regions[1:], strict=False):
            if upper.start < lower.end:
                raise CountFailed(
                    f"{kernel}: arguments {lower.name} and {upper.name} overlap in memory",
                    "their bytes cannot be told apart: pass tensors with memory of their own",
                )
        self._starts = [region.start for region in self._regions]

    def touched(self, pointers: Any, mask: Any, width: int) -> list[tuple[str, int]]:
        """(argument, lanes that touch it) of one access of `width` bytes a lane, masked lanes left out."""
        # The interpreter passes the mask of a descriptor as a memoryview.
        lanes = True if mask is None else np.asarray(mask, dtype=bool)
        live = pointers if np.all(lanes) else pointers[np.broadcast_to(lanes, pointers.shape)]
        if live.size == 0:
            return []
        low = self._at(int(live.min()), width)
        # Regions do not overlap: if the least and the greatest address are in one, all are.
        if int(live.max()) + width <= low.end:
            return [(low.name, int(live.size))]
        owners = [self._at(int(address), width).name for address in live.ravel()]
        return [(name, owners.count(name)) for name in dict.fromkeys(owners)]

    def _at(self, address: int, width: int) -> Region:
        found = bisect_right(self._starts, address) - 1
        if found >= 0 and address + width <= self._regions[found].end:
            return self._regions[found]
        if not self._regions:
            raise CountFailed(f"{self._kernel} touches memory and was given no tensor")
        near = self._regions[max(found, 0)]
        past = f"{address + width - near.end} bytes past the end of {near.name}"
        before = f"{near.start - address} bytes before the start of {near.name}"
        raise CountFailed(
            f"{self._kernel} touches memory of no tensor that it was given: {past if found >= 0 else before}",
            "an index or a mask of the kernel is wrong",
        )
