"""The profile of the local device from what its driver says: one of the catalogue's, or a derived one.

A name that only resembles a known one never matches: GH200 is not H200, and a laptop's RTX 4090 has half
the SMs of the card.
"""

import re
from typing import Final, NamedTuple

from perfkit.model.catalogue import load, names
from perfkit.model.device import DeviceProfile, Figure, Peak
from perfkit.model.device_figures import Figures, LevelFigures, Memory, N, Pipe

#: Data sheets print memory in GB that are often GiB, and drivers keep a part back: -3 % to +7.4 % are seen.
MEMORY_TOLERANCE: Final = 0.08

_VENDORS: Final = ("nvidia ", "amd ")


def identify(driver_name: str, sm_count: int, memory_bytes: int) -> DeviceProfile | None:
    """The profile of the local device, or None if there is none.

    The whole name must be one that a profile lists (vendor and case aside), the SM count must be equal
    (a MIG slice has fewer), and the memory size must agree within 8 % (it tells 96 from 144 GB).
    """
    wanted = _plain(driver_name)
    for name in names():
        profile = load(name)
        known = {_plain(listed) for listed in profile.match.names}
        if wanted in known and profile.sm_count == sm_count and _same_memory(profile, memory_bytes):
            return profile
    return None


def _plain(driver_name: str) -> str:
    text = " ".join(driver_name.casefold().split())
    return next((text.removeprefix(vendor) for vendor in _VENDORS if text.startswith(vendor)), text)


def _same_memory(profile: DeviceProfile, memory_bytes: int) -> bool:
    return abs(memory_bytes / profile.level("dram").capacity_bytes - 1) <= MEMORY_TOLERANCE


class _Capability(NamedTuple):
    """What every device of one compute capability has: FLOP per clock and SM by (dtype, pipe), dense."""

    architecture: str
    max_threads: int
    exp_per_clock: int
    tensor: dict[str, int]
    vector: dict[str, int]


_GA10X: Final = {"bf16": 1024, "fp16": 1024, "tf32": 512, "int8": 2048}
_HOPPER: Final = {"bf16": 4096, "fp16": 4096, "tf32": 2048, "fp8": 8192, "int8": 8192, "fp64": 256}
_BLACKWELL: Final = {"bf16": 8192, "fp16": 8192, "tf32": 4096, "fp8": 16384, "int8": 16384, "fp64": 128}
_SMALL_VECTOR: Final = {"fp32": 256, "fp16": 256, "fp64": 4}

#: Source: CUDA C++ Best Practices Guide (vector rates, x 2 for FMA) and the architecture whitepapers.
_CAPABILITIES: Final = {
    "7.0": _Capability(
        "Volta", 2048, 16, {"fp16": 1024}, {"fp32": 128, "fp16": 256, "fp64": 64, "int8": 512}
    ),
    "7.5": _Capability(
        "Turing", 1024, 16, {"fp16": 1024, "int8": 2048}, {"fp32": 128, "fp16": 256, "fp64": 4}
    ),
    "8.0": _Capability(
        "Ampere",
        2048,
        16,
        {"bf16": 2048, "fp16": 2048, "tf32": 1024, "int8": 4096, "fp64": 128},
        {"fp32": 128, "fp16": 512, "fp64": 64},
    ),
    "8.6": _Capability("Ampere", 1536, 16, _GA10X, _SMALL_VECTOR),
    "8.9": _Capability("Ada Lovelace", 1536, 16, {**_GA10X, "fp8": 2048}, _SMALL_VECTOR),
    "9.0": _Capability("Hopper", 2048, 16, _HOPPER, {"fp32": 256, "fp16": 512, "fp64": 128}),
    "10.0": _Capability("Blackwell", 2048, 16, _BLACKWELL, {"fp32": 256, "fp16": 256, "fp64": 128}),
    "12.0": _Capability("Blackwell", 1536, 16, {**_GA10X, "fp8": 2048}, _SMALL_VECTOR),
}

#: Words in the names of cards whose tensor units are slower than their chip's, or absent (GTX).
_TENSOR_UNKNOWN: Final = {"a10g", "gtx", "h20", "l20"}

_REGISTERS: Final = 256 * 1024
_SOURCES: Final = {
    "driver": "What the driver reports",
    "capability": "What all devices of this compute capability have; a card may be fused to less",
    "assumed": "What every compute capability in perfkit's table has; this device's is not in it",
    "port": "64 bytes a clock and SM, the port of an SM to L2 since Volta: an upper bound",
}


def derive(
    driver_name: str,
    sm_count: int,
    memory_bytes: int,
    compute_capability: str,
    boost_hz: float,
    memory_clock_hz: float | None,
    bus_bits: int | None,
    l2_bytes: int,
    shared_bytes_per_sm: int,
    shared_bytes_per_block: int,
    power_limit_w: float | None,
) -> DeviceProfile:
    """A profile from what the driver says of a device that no file describes; marked `derived`.

    DRAM bandwidth is 2 (both clock edges) x memory clock x bus width / 8. Peaks come from the compute
    capability and are absent where it is unknown: an absent roof is better than a wrong one.
    """
    vendor = "AMD" if driver_name.casefold().startswith("amd ") else "NVIDIA"
    known = _CAPABILITIES.get(compute_capability) if vendor == "NVIDIA" else None
    capability = "capability" if known else "assumed"

    def driver(value: N) -> Figure[N]:
        return Figure(value=value, source="driver")

    def of_chip(value: int) -> Figure[int]:
        return Figure(value=value, source=capability, from_memory=known is None)

    dram_rate = 2 * memory_clock_hz * bus_bits / 8 if memory_clock_hz and bus_bits else None
    peaks = _peaks(driver_name, known, sm_count, boost_hz) if known else ()
    return DeviceProfile(
        name=re.sub(r"[^a-z0-9]+", "-", driver_name.casefold()).strip("-"),
        model=driver_name,
        vendor=vendor,
        architecture=known.architecture if known else "unknown",
        chip="unknown",
        compute_capability=compute_capability,
        derived=True,
        peaks=peaks,
        figures=Figures(
            sm_count=driver(sm_count),
            boost_hz=driver(boost_hz),
            exp_per_clock_per_sm=of_chip(known.exp_per_clock if known else 16),
            registers_bytes_per_sm=of_chip(_REGISTERS),
            shared_bytes_per_block=driver(shared_bytes_per_block),
            max_threads_per_sm=of_chip(known.max_threads) if known else None,
            power_limit_w=driver(power_limit_w) if power_limit_w else None,
        ),
        memory=Memory(
            dram=LevelFigures(
                capacity_bytes=driver(memory_bytes), bytes_per_s=driver(dram_rate) if dram_rate else None
            ),
            l2=LevelFigures(
                capacity_bytes=driver(l2_bytes),
                bytes_per_clock_per_sm=Figure(value=64.0, source="port") if known else None,
            ),
            shared=LevelFigures(
                capacity_bytes=driver(shared_bytes_per_sm),
                bytes_per_clock_per_sm=Figure(value=128.0, source="capability") if known else None,
            ),
        ),
        sources={key: text for key, text in _SOURCES.items() if key in _used(known)},
    )


def _used(known: _Capability | None) -> tuple[str, ...]:
    return ("driver", "capability", "port") if known else ("driver", "assumed")


def _peaks(driver_name: str, chip: _Capability, sm_count: int, boost_hz: float) -> tuple[Peak, ...]:
    """The peaks of a chip on one card: GeForce halves floating-point tensor rates with fp32 accumulation."""
    words = set(re.split(r"[^a-z0-9]+", driver_name.casefold()))
    rates: list[tuple[str, Pipe, int]] = [(dtype, "vector", rate) for dtype, rate in chip.vector.items()]
    if not words & _TENSOR_UNKNOWN:
        halved = 2 if "geforce" in words else 1
        for dtype, rate in chip.tensor.items():
            rates.append((dtype, "tensor", rate if dtype == "int8" else rate // halved))
    return tuple(
        Peak(
            dtype=dtype,
            pipe=pipe,
            flop_per_s=sm_count * rate * boost_hz,
            flop_per_clock_per_sm=rate,
            source="capability",
        )
        for dtype, pipe, rate in rates
    )
