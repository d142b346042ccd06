"""Which backend serves a request: what the machine has, and what `--device` asks for."""

from pathlib import Path
from typing import Any, Final

from perfkit.errors import EnvironmentMissing
from perfkit.measure.options import Options
from perfkit.measure.session import Backend
from perfkit.measure.targets import HOW_TO_INSTALL, resolve
from perfkit.model.catalogue import load
from perfkit.model.device import DeviceProfile
from perfkit.model.identify import derive, identify

#: Backends that `--device` names: each target makes one from a dtype and options.
NAMED: Final = {
    "cpu": "perfkit.measure.cpu_backend:open_cpu",
    "fake": "perfkit.measure.fake_backend:open_fake",
}

DEFAULT_PROFILE: Final = "a100-80gb-sxm"
_DRIVER: Final = Path("/proc/driver/nvidia/version")
_DEVICE: Final = Path("/dev/nvidiactl")


def gpu_driver_present() -> bool:
    """Whether an NVIDIA driver is loaded: a look at files, so that torch is not imported for a no."""
    return _DRIVER.exists() or _DEVICE.exists()


def choose_backend(device: str | None, dtype: str, options: Options) -> Backend:
    """The backend for `--device DEVICE`: a profile's name, a TOML file, `cpu`, or None for what is here.

    A device that is not the local GPU is modelled. Raises UsageError for an unknown name.
    """
    if device in NAMED:
        backend: Backend = resolve(NAMED[device])(dtype, options)
        return backend
    from perfkit.measure.model_backend import ModelBackend

    wanted = load(device) if device else None
    if not gpu_driver_present():
        return ModelBackend(wanted or load(DEFAULT_PROFILE), "no NVIDIA GPU on this machine")
    try:
        local = local_profile()
    except EnvironmentMissing as error:
        return ModelBackend(wanted or load(DEFAULT_PROFILE), f"{error.message} ({error.hint})")
    if wanted is not None and not _is_local(wanted, local):
        return ModelBackend(wanted, f"{wanted.name} was asked for, and this machine has {local.name}")
    from perfkit.measure.cuda_backend import CudaBackend

    return CudaBackend(wanted or local, options)


def _is_local(wanted: DeviceProfile, local: DeviceProfile) -> bool:
    """Whether a profile is of the local GPU: the same card, or a user's own file that matches its name."""
    return wanted.name == local.name or bool(set(wanted.match.names) & {local.model, *local.match.names})


def local_profile() -> DeviceProfile:
    """The profile of torch's GPU: recognised, or derived from what the driver says.

    Raises EnvironmentMissing where torch is missing or sees no GPU.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise EnvironmentMissing("torch is not installed", HOW_TO_INSTALL) from error
    if not torch.cuda.is_available():
        raise EnvironmentMissing("torch sees no CUDA device", "run: perfkit doctor")
    at: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    found = identify(at.name, at.multi_processor_count, at.total_memory)
    if found is not None:
        return found
    from perfkit.measure.nvml import monitor_of_torch

    clock, power = 1e9, None
    try:
        state = monitor_of_torch().state("sm_clock_max_hz", "power_limit_w")
        clock, power = state.sm_clock_max_hz or clock, state.power_limit_w
    except EnvironmentMissing:
        pass
    return derive(
        driver_name=at.name,
        sm_count=at.multi_processor_count,
        memory_bytes=at.total_memory,
        compute_capability=f"{at.major}.{at.minor}",
        boost_hz=clock,
        memory_clock_hz=getattr(at, "memory_clock_rate", 0) * 1e3 or None,
        bus_bits=getattr(at, "memory_bus_width", None),
        l2_bytes=at.L2_cache_size,
        shared_bytes_per_sm=at.shared_memory_per_multiprocessor,
        shared_bytes_per_block=at.shared_memory_per_block_optin,
        power_limit_w=power,
    )
