"""A snapshot of what this machine has for measuring: the input of `perfkit.measure.doctor`."""

import os
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from perfkit.errors import EnvironmentMissing
from perfkit.measure.counter_errors import CountersUnavailable
from perfkit.measure.environment import version_of
from perfkit.measure.ncu import find_ncu
from perfkit.measure.nvml import GpuMonitor, GpuState, visible_gpu
from perfkit.measure.permission import Permission, counter_permission

#: Programs that hold the counters or sample them, by the first 15 letters that /proc shows.
PROFILERS: Final = ("ncu", "nsys", "nsys-launcher", "nv-hostengine", "dcgmi", "dcgm-exporter")
PACKAGES: Final = ("msgspec", "rich", "typer", "plotext", "pandas", "numpy", "nvidia-ml-py")


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not there: why, and what would bring it."""

    reason: str
    fix: str = ""


class TorchSight(msgspec.Struct, frozen=True, kw_only=True):
    """What torch sees of the GPU; `cuda` is the release that torch was built for, None for a CPU build."""

    cuda: str | None = None
    sees_gpu: bool = False
    sm_count: int | None = None
    l2_bytes: int | None = None
    memory_bytes: int | None = None
    name: str | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the doctor looks at.

    `triton_wanted` is the release that torch's own metadata asks for; `counters` is None without a GPU.
    """

    gpu: GpuState | Absent
    torch: str | None = None
    sight: TorchSight | None = None
    triton: str | None = None
    triton_wanted: str | None = None
    counters: Permission | None = None
    profilers: tuple[str, ...] = ()
    ncu: str | None = None
    packages: dict[str, str | None] = {}
    profile: str | None = None
    profile_l2_bytes: int | None = None
    own_pid: int = 0


def snapshot() -> Machine:
    """This machine, now. NVML is asked before torch opens a context, so that we are not our own neighbour."""
    gpu = _gpu()
    torch_version = version_of("torch")
    sight = _sight() if torch_version else None
    profile, l2_bytes = _profile(sight)
    return Machine(
        gpu=gpu,
        torch=torch_version,
        sight=sight,
        triton=version_of("triton"),
        triton_wanted=triton_wanted(metadata.requires("torch") or ()) if torch_version else None,
        counters=counter_permission() if isinstance(gpu, GpuState) or (sight and sight.sees_gpu) else None,
        profilers=running(PROFILERS, Path("/proc")),
        ncu=_ncu(),
        packages={name: version_of(name) for name in PACKAGES},
        profile=profile,
        profile_l2_bytes=l2_bytes,
        own_pid=os.getpid(),
    )


def triton_wanted(requirements: Iterable[str]) -> str | None:
    """The Triton that a torch wheel's requirements pin, as in `triton==3.6.0; platform_system == "Linux"`."""
    found = (re.match(r"triton\s*==\s*([\w.]+)", line) for line in requirements)
    return next((match[1] for match in found if match), None)


def running(names: Iterable[str], proc: Path) -> tuple[str, ...]:
    """Which of `names` are running, by their process names under `proc`; none where it cannot be read."""
    seen = set()
    for comm in proc.glob("[0-9]*/comm"):
        try:
            seen.add(comm.read_text().strip())
        except OSError:  # the process ended, or is somebody else's
            continue
    return tuple(name for name in names if name[:15] in seen)


def _ncu() -> str | None:
    try:
        return find_ncu()
    except CountersUnavailable:
        return None


def _gpu() -> GpuState | Absent:
    try:
        return GpuMonitor.open(**visible_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"))).state()
    except EnvironmentMissing as missing:
        return Absent(reason=missing.message, fix=missing.hint)


def _sight() -> TorchSight | None:
    try:
        import torch
    except (ImportError, OSError):  # installed, but its libraries do not load
        return None
    if not torch.cuda.is_available():
        return TorchSight(cuda=torch.version.cuda)
    properties: Any = torch.cuda.get_device_properties(0)
    return TorchSight(
        cuda=torch.version.cuda,
        sees_gpu=True,
        sm_count=properties.multi_processor_count,
        l2_bytes=getattr(properties, "L2_cache_size", None),
        memory_bytes=properties.total_memory,
        name=properties.name,
    )


def _profile(sight: TorchSight | None) -> tuple[str | None, int | None]:
    if sight is None or not (sight.name and sight.sm_count and sight.memory_bytes):
        return None, None
    from perfkit.model.identify import identify

    profile = identify(sight.name, sight.sm_count, sight.memory_bytes)
    return (profile.name, int(profile.level("l2").capacity_bytes)) if profile else (None, None)
