"""The parameter blocks of CUPTI's range profiler and profiler host calls, as ctypes structures.

Layouts follow cupti_range_profiler.h, cupti_profiler_host.h, cupti_profiler_target.h, cupti_target.h and
cupti_callbacks.h. Every block starts with its own size and a null pointer; the size is the offset of the
end of its last field, without the padding behind it.
"""

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_int,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint32,
    c_void_p,
)
from typing import Any, Final

_HEAD: Final[list[tuple[str, Any]]] = [("structSize", c_size_t), ("pPriv", c_void_p)]
_NAMES: Final = POINTER(c_char_p)

AUTO_RANGE, USER_RANGE = 1, 2
KERNEL_REPLAY, USER_REPLAY = 2, 3
RANGE_PROFILER = 0


class ProfilerInitialize(Structure):
    _fields_ = _HEAD


class DeviceGetChipName(Structure):
    _fields_ = [*_HEAD, ("deviceIndex", c_size_t), ("pChipName", c_char_p)]


class GetCounterAvailability(Structure):
    _fields_ = [
        *_HEAD,
        ("ctx", c_void_p),
        ("imageSize", c_size_t),
        ("image", c_void_p),
        ("allowDeviceLevelCounters", c_uint8),
    ]


class HostInitialize(Structure):
    _fields_ = [
        *_HEAD,
        ("profilerType", c_int),
        ("pChipName", c_char_p),
        ("availability", c_void_p),
        ("host", c_void_p),
        ("singlePassSet", c_char_p),
    ]


class HostDeinitialize(Structure):
    _fields_ = [*_HEAD, ("host", c_void_p)]


class HostGetSupportedChips(Structure):
    _fields_ = [*_HEAD, ("count", c_size_t), ("names", _NAMES)]


class HostConfigAddMetrics(Structure):
    _fields_ = [*_HEAD, ("host", c_void_p), ("names", _NAMES), ("count", c_size_t)]


class HostGetConfigImageSize(Structure):
    _fields_ = [*_HEAD, ("host", c_void_p), ("size", c_size_t)]


class HostGetConfigImage(Structure):
    _fields_ = [*_HEAD, ("host", c_void_p), ("size", c_size_t), ("image", c_void_p)]


class HostGetNumOfPasses(Structure):
    _fields_ = [*_HEAD, ("size", c_size_t), ("image", c_void_p), ("passes", c_size_t)]


class HostEvaluateToGpuValues(Structure):
    _fields_ = [
        *_HEAD,
        ("host", c_void_p),
        ("image", c_void_p),
        ("imageSize", c_size_t),
        ("rangeIndex", c_size_t),
        ("names", _NAMES),
        ("count", c_size_t),
        ("values", POINTER(c_double)),
    ]


class RangeEnable(Structure):
    """CUDA 13.5 adds a cache-control mode; left out, none is applied."""

    _fields_ = [*_HEAD, ("ctx", c_void_p), ("profiler", c_void_p)]


class RangeObject(Structure):
    """Disable, Start and PopRange take nothing but the profiler."""

    _fields_ = [*_HEAD, ("profiler", c_void_p)]


class RangeGetCounterDataSize(Structure):
    _fields_ = [
        *_HEAD,
        ("profiler", c_void_p),
        ("names", _NAMES),
        ("count", c_size_t),
        ("maxRanges", c_size_t),
        ("maxTreeNodes", c_uint32),
        ("size", c_size_t),
    ]


class RangeCounterDataInitialize(Structure):
    _fields_ = [*_HEAD, ("profiler", c_void_p), ("size", c_size_t), ("image", c_void_p)]


class RangeSetConfig(Structure):
    _fields_ = [
        *_HEAD,
        ("profiler", c_void_p),
        ("configSize", c_size_t),
        ("config", c_void_p),
        ("imageSize", c_size_t),
        ("image", c_void_p),
        ("range", c_int),
        ("replayMode", c_int),
        ("maxRanges", c_size_t),
        ("nestingLevels", c_uint16),
        ("minNestingLevel", c_uint16),
        ("passIndex", c_size_t),
        ("targetNestingLevel", c_uint16),
    ]


class RangeStop(Structure):
    _fields_ = [
        *_HEAD,
        ("profiler", c_void_p),
        ("passIndex", c_size_t),
        ("targetNestingLevel", c_size_t),
        ("allPassesSubmitted", c_uint8),
    ]


class RangePush(Structure):
    _fields_ = [*_HEAD, ("profiler", c_void_p), ("name", c_char_p)]


class RangeDecodeData(Structure):
    _fields_ = [*_HEAD, ("profiler", c_void_p), ("dropped", c_size_t)]


class RangeGetCounterDataInfo(Structure):
    _fields_ = [*_HEAD, ("image", c_void_p), ("imageSize", c_size_t), ("ranges", c_size_t)]


class RangeGetRangeInfo(Structure):
    _fields_ = [
        *_HEAD,
        ("image", c_void_p),
        ("imageSize", c_size_t),
        ("rangeIndex", c_size_t),
        ("delimiter", c_char_p),
        ("name", c_char_p),
    ]


class CallbackData(Structure):
    """CUpti_CallbackData of the driver and runtime domains; carries no size."""

    _fields_ = [
        ("callbackSite", c_int),
        ("functionName", c_char_p),
        ("functionParams", c_void_p),
        ("functionReturnValue", c_void_p),
        ("symbolName", c_char_p),
        ("context", c_void_p),
        ("contextUid", c_uint32),
        ("correlationData", c_void_p),
        ("correlationId", c_uint32),
    ]


#: The last field of a block before it grew (CUDA 13.3), for older libraries.
_OLD_LAST_FIELD: Final[dict[type[Structure], str]] = {
    GetCounterAvailability: "image",
    HostInitialize: "host",
}


def sizes(block: type[Structure]) -> tuple[int, ...]:
    """The sizes in bytes by which libraries know `block`, newest first."""
    last = [str(block._fields_[-1][0])]
    if block in _OLD_LAST_FIELD:
        last.append(_OLD_LAST_FIELD[block])
    return tuple(getattr(block, name).offset + getattr(block, name).size for name in last)


def address(buffer: "ctypes.Array[ctypes.c_char]") -> int:
    """The address of a buffer that the caller keeps alive."""
    return ctypes.addressof(buffer)


def c_names(names: tuple[str, ...]) -> "ctypes.Array[c_char_p]":
    """A C array of strings; the caller keeps it alive as long as the library may read it."""
    return (c_char_p * len(names))(*(name.encode() for name in names))
