"""What a measurement ran on and with: versions and names, nothing that identifies a person or a machine."""

import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import perfkit
from perfkit.errors import EnvironmentMissing
from perfkit.measure.nvml import GpuMonitor, GpuState, monitor_of_torch, visible_gpu
from perfkit.record import Environment

_CPUINFO: Final = Path("/proc/cpuinfo")
_HOME: Final = re.compile(r"(?<![\w./])(?:/home/[^/\s]+|/Users/[^/\s]+|/root)(?=/|$)")


def environment(with_torch: bool = True) -> Environment:
    """This process's environment. `with_torch=False` never imports torch (which takes seconds).

    Without it the CUDA runtime and cuDNN are unknown, and the GPU is the first that NVML sees.
    """
    gpu = _gpu(with_torch)
    cuda_runtime, cudnn = _torch_libraries() if with_torch else (None, None)
    return Environment(
        perfkit=perfkit.__version__,
        python=platform.python_version(),
        os=operating_system(),
        cpu=cpu_model(_CPUINFO.read_text(errors="replace")) if _CPUINFO.exists() else None,
        gpu=gpu.name,
        driver=gpu.driver,
        torch=version_of("torch"),
        cuda_runtime=cuda_runtime,
        cudnn=cudnn,
        triton=version_of("triton"),
        command=command_line(sys.argv, str(Path.home())),
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def version_of(package: str) -> str | None:
    """The installed version of a distribution, without importing it; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model(cpuinfo: str) -> str | None:
    """The CPU's name in the text of /proc/cpuinfo; None where it gives none (most Arm machines)."""
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    return re.sub(r"\s+", " ", found[1]) if found else None


def operating_system() -> str:
    """Such as `Ubuntu 24.04.1 LTS, Linux 6.8.0, x86_64`."""
    kernel = f"{platform.system()} {platform.release()}"
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    return ", ".join(part for part in (name, kernel, platform.machine()) if part)


def command_line(argv: Sequence[str], home: str) -> list[str]:
    """`argv` as it may be published: the program by its base name, home directories as `~`."""
    program = Path(argv[0]).name if argv else ""
    program = "perfkit" if program == "__main__.py" else program  # python -m perfkit
    return [program, *(_without_home(argument, home) for argument in argv[1:])]


def _without_home(text: str, home: str) -> str:
    inside = re.compile(rf"(?<![\w./]){re.escape(home)}(?=/|$)")
    return _HOME.sub("~", inside.sub("~", text) if len(home) > 1 else text)


def _gpu(with_torch: bool) -> GpuState:
    try:
        monitor = (
            monitor_of_torch()
            if with_torch and version_of("torch")
            else GpuMonitor.open(**visible_gpu(os.environ.get("CUDA_VISIBLE_DEVICES")))
        )
    except EnvironmentMissing:
        return GpuState()
    return monitor.state("name", "driver")


def _torch_libraries() -> tuple[str | None, str | None]:
    """The CUDA runtime and the cuDNN that torch brings."""
    try:
        import torch
    except ImportError:
        return None, None
    cudnn: Any = torch.backends.cudnn
    number = cudnn.version() if cudnn.is_available() else None
    return torch.version.cuda, cudnn_version(number) if number else None


def cudnn_version(number: int) -> str:
    """91900 is `9.19.0`; before cuDNN 9 the major version had one digit less, as in 8902: `8.9.2`."""
    major = 10_000 if number >= 90_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"
