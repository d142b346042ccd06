"""What the driver says about a GPU (NVML): clocks, power, temperature, energy, limits, neighbours.

Base units: hertz, watt, joule, byte, degree Celsius. A field that this GPU, driver or container does not give
is None, and `absent` says why. Field semantics: NVML API Reference, "Device Queries".
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from perfkit.errors import EnvironmentMissing

#: Bits of nvmlDeviceGetCurrentClocksEventReasons; 0x200 and 0x400 come from older drivers.
CLOCK_REASONS: Final[tuple[tuple[int, str], ...]] = (
    (0x1, "idle"),
    (0x2, "application clock setting"),
    (0x4, "software power cap"),
    (0x8, "hardware slowdown"),
    (0x10, "sync boost"),
    (0x20, "software thermal slowdown"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "hardware power brake"),
    (0x100, "display clock setting"),
    (0x200, "board limit"),
    (0x400, "reliability limit"),
)


def clock_reasons(mask: int) -> tuple[str, ...]:
    """The words for a bit mask of clock event reasons; unknown bits are shown as a number."""
    known = tuple(word for bit, word in CLOCK_REASONS if mask & bit)
    rest = mask & ~sum(bit for bit, _ in CLOCK_REASONS)
    return (*known, f"unknown reason {rest:#x}") if rest else known


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process with a context on the GPU; `memory_bytes` is None where the container hides it."""

    pid: int
    memory_bytes: int | None = None


class GpuState(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a GPU. `absent` maps the name of each None field to the reason.

    `sm_clock_hz` is instantaneous; `power_w` the average of the last second on Ampere (GA100 excepted) and
    later; `energy_j` counts since the driver was loaded and is updated every 20 to 100 ms.
    """

    name: str | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None
    driver: str | None = None
    driver_cuda: str | None = None
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    sm_clock_hz: float | None = None
    sm_clock_max_hz: float | None = None
    application_clock_hz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    energy_j: float | None = None
    clock_reasons: tuple[str, ...] | None = None
    mig: bool | None = None
    processes: tuple[GpuProcess, ...] | None = None
    absent: dict[str, str] = {}


def _word(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class GpuMonitor:
    """NVML's view of one GPU. `nvml` is the pynvml module, or anything that answers like it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._readers: Mapping[str, Callable[[], object]] = self._table()

    @classmethod
    def open(cls, *, index: int = 0, uuid: str | None = None, pci_bus_id: str | None = None) -> "GpuMonitor":
        """The GPU with this UUID, else PCI bus id, else NVML index; EnvironmentMissing where it cannot be."""
        try:
            import pynvml as nvml
        except ImportError as error:
            raise EnvironmentMissing(
                "nvidia-ml-py is not installed, so clocks, power and energy are unknown",
                "pip install nvidia-ml-py",
            ) from error
        try:
            nvml.nvmlInit()
            if uuid:
                return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
            if pci_bus_id:
                return cls(nvml, nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id))
            return cls(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            where = f"GPU {uuid or pci_bus_id or index}"
            raise EnvironmentMissing(
                f"NVML cannot open {where}: {error}", "load the NVIDIA driver, or give the container its GPU"
            ) from error

    def _table(self) -> dict[str, Callable[[], object]]:
        nvml, gpu = self._nvml, self._handle
        sm = nvml.NVML_CLOCK_SM
        return {
            "name": lambda: _word(nvml.nvmlDeviceGetName(gpu)),
            "uuid": lambda: _word(nvml.nvmlDeviceGetUUID(gpu)),
            "pci_bus_id": lambda: _word(nvml.nvmlDeviceGetPciInfo(gpu).busId),
            "driver": lambda: _word(nvml.nvmlSystemGetDriverVersion()),
            "driver_cuda": lambda: _cuda_version(nvml.nvmlSystemGetCudaDriverVersion_v2()),
            "memory_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(gpu).total),
            "memory_free_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(gpu).free),
            "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, sm) * 1e6,
            "sm_clock_max_hz": lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, sm) * 1e6,
            "application_clock_hz": lambda: nvml.nvmlDeviceGetApplicationsClock(gpu, sm) * 1e6,
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
            "temperature_c": lambda: float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
            "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
            "clock_reasons": self._reasons,
            "mig": lambda: nvml.nvmlDeviceGetMigMode(gpu)[0] == nvml.NVML_DEVICE_MIG_ENABLE,
            "processes": self._processes,
        }

    def _reasons(self) -> tuple[str, ...]:
        # Drivers before 535 know only the older name.
        ask = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        ask = ask or self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        return clock_reasons(ask(self._handle))

    def _processes(self) -> tuple[GpuProcess, ...]:
        found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return tuple(GpuProcess(pid=row.pid, memory_bytes=row.usedGpuMemory) for row in found)

    def read(self, field: str) -> tuple[Any, str]:
        """The value of one field of GpuState and "", or None and the reason."""
        try:
            return self._readers[field](), ""
        except self._nvml.NVMLError as error:
            return None, str(error)
        except (
            AttributeError,
            TypeError,
        ) as error:  # an older pynvml, or a sentinel where a number should be
            return None, f"nvidia-ml-py does not give it: {error}"

    def state(self, *fields: str) -> GpuState:
        """A look at the named fields, or at all of them; never raises."""
        got = {field: self.read(field) for field in fields or self._readers}
        absent = {field: reason for field, (_, reason) in got.items() if reason}
        return GpuState(**{field: value for field, (value, _) in got.items()}, absent=absent)


def monitor_of_torch(device: int | None = None) -> GpuMonitor:
    """The monitor of torch's CUDA device, matched by UUID or PCI bus whatever CUDA_VISIBLE_DEVICES says.

    EnvironmentMissing where torch, a GPU or NVML is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise EnvironmentMissing("torch is not installed", "pip install 'perfkit[measure]'") from error
    if not torch.cuda.is_available():
        raise EnvironmentMissing("torch sees no CUDA GPU", "see `perfkit doctor`")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if device is None else device)
    return GpuMonitor.open(**address_of(properties))


def address_of(properties: Any) -> dict[str, Any]:
    """The UUID or PCI bus id in torch's device properties, as keywords of `GpuMonitor.open`.

    torch prints the UUID without NVML's `GPU-`. Empty where this torch gives neither.
    """
    uuid = str(getattr(properties, "uuid", ""))
    if uuid:
        return {"uuid": uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"}
    if hasattr(properties, "pci_bus_id"):
        domain = getattr(properties, "pci_domain_id", 0)
        return {"pci_bus_id": f"{domain:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"}
    return {}


def visible_gpu(visible: str | None) -> dict[str, Any]:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves, as keywords of `GpuMonitor.open`, without asking torch.

    Indices follow NVML's order only with CUDA_DEVICE_ORDER=PCI_BUS_ID or identical GPUs.
    """
    first = (visible or "").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return {"uuid": first}
    return {"index": int(first)} if first.isdigit() else {}
