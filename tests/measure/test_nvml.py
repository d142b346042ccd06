"""NVML through a fake pynvml: units, words, and what happens to what is not there."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from perfkit.errors import EnvironmentMissing
from perfkit.measure.nvml import (
    GpuMonitor,
    GpuProcess,
    GpuState,
    address_of,
    clock_reasons,
    visible_gpu,
)
from perfkit.measure.sampling import Spread, sampling, summarise


class NVMLError(Exception):
    """What pynvml raises for everything."""


class FakeNvml:
    """Answers like pynvml in its own units (MHz, mW, mJ). `refuse` names functions that raise NVMLError."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, **answers: Any) -> None:
        self.refuse: set[str] = set()
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetHandleByIndex": "gpu",
            "nvmlDeviceGetHandleByUUID": "gpu",
            "nvmlDeviceGetHandleByPciBusId": "gpu",
            "nvmlDeviceGetName": b"NVIDIA H200",
            "nvmlDeviceGetUUID": "GPU-1234",
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:1A:00.0"),
            "nvmlSystemGetDriverVersion": "580.159.04",
            "nvmlSystemGetCudaDriverVersion_v2": 13000,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=150754820096, free=150000000000),
            "nvmlDeviceGetClockInfo": 1455,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetApplicationsClock": 1980,
            "nvmlDeviceGetPowerUsage": 699_500,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetTotalEnergyConsumption": 1_234_500,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=42, usedGpuMemory=1 << 30)],
            **answers,
        }

    def __getattr__(self, name: str) -> Any:
        if name not in self.answers:
            raise AttributeError(name)

        def answer(*arguments: Any) -> Any:
            self.asked.append((name, arguments))
            if name in self.refuse:
                raise NVMLError("Not Supported")
            value = self.answers[name]
            return value() if callable(value) else value

        return answer


def test_state_in_base_units() -> None:
    assert GpuMonitor(FakeNvml(), "gpu").state() == GpuState(
        name="NVIDIA H200",
        uuid="GPU-1234",
        pci_bus_id="00000000:1A:00.0",
        driver="580.159.04",
        driver_cuda="13.0",
        memory_bytes=150754820096,
        memory_free_bytes=150000000000,
        sm_clock_hz=1.455e9,
        sm_clock_max_hz=1.98e9,
        application_clock_hz=1.98e9,
        power_w=699.5,
        power_limit_w=700.0,
        temperature_c=61.0,
        energy_j=1234.5,
        clock_reasons=("software power cap",),
        mig=False,
        processes=(GpuProcess(pid=42, memory_bytes=1 << 30),),
    )


def test_what_the_driver_refuses_is_none_with_its_reason() -> None:
    nvml = FakeNvml()
    nvml.refuse = {"nvmlDeviceGetMigMode", "nvmlDeviceGetTotalEnergyConsumption"}
    state = GpuMonitor(nvml, "gpu").state()
    assert (state.mig, state.energy_j) == (None, None)
    assert state.absent == {"energy_j": "Not Supported", "mig": "Not Supported"}
    assert state.sm_clock_hz == 1.455e9


def test_a_look_at_some_fields_asks_for_no_others() -> None:
    nvml = FakeNvml()
    state = GpuMonitor(nvml, "gpu").state("power_w")
    assert (state.power_w, state.name, state.absent) == (699.5, None, {})
    assert [name for name, _ in nvml.asked] == ["nvmlDeviceGetPowerUsage"]


def test_older_libraries_know_throttle_reasons_only() -> None:
    nvml = FakeNvml(nvmlDeviceGetCurrentClocksThrottleReasons=0x41)
    del nvml.answers["nvmlDeviceGetCurrentClocksEventReasons"]
    assert GpuMonitor(nvml, "gpu").state().clock_reasons == ("idle", "hardware thermal slowdown")
    del nvml.answers["nvmlDeviceGetCurrentClocksThrottleReasons"]
    state = GpuMonitor(nvml, "gpu").state()
    assert state.clock_reasons is None
    assert state.absent["clock_reasons"].startswith("nvidia-ml-py does not give it")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (0x0, ()),
        (0x4, ("software power cap",)),
        (0x24, ("software power cap", "software thermal slowdown")),
        (0x1001, ("idle", "unknown reason 0x1000")),
    ],
)
def test_clock_reasons_in_words(mask: int, words: tuple[str, ...]) -> None:
    assert clock_reasons(mask) == words


def test_open_by_uuid_bus_or_index(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    GpuMonitor.open(uuid="GPU-1")
    GpuMonitor.open(pci_bus_id="0:1:0.0")
    GpuMonitor.open(index=3)
    assert [call for call in nvml.asked if call[1]] == [
        ("nvmlDeviceGetHandleByUUID", ("GPU-1",)),
        ("nvmlDeviceGetHandleByPciBusId", ("0:1:0.0",)),
        ("nvmlDeviceGetHandleByIndex", (3,)),
    ]


def test_open_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    nvml.refuse = {"nvmlInit"}
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with pytest.raises(EnvironmentMissing, match="NVML cannot open GPU 0: Not Supported"):
        GpuMonitor.open()
    monkeypatch.setitem(sys.modules, "pynvml", None)  # import raises ImportError
    with pytest.raises(EnvironmentMissing, match="nvidia-ml-py is not installed"):
        GpuMonitor.open()


def test_address_of_torch_properties() -> None:
    assert address_of(SimpleNamespace(uuid="abc-1")) == {"uuid": "GPU-abc-1"}
    assert address_of(SimpleNamespace(uuid="MIG-abc")) == {"uuid": "MIG-abc"}
    older = SimpleNamespace(pci_bus_id=26, pci_device_id=0, pci_domain_id=0)
    assert address_of(older) == {"pci_bus_id": "00000000:1a:00.0"}
    assert address_of(SimpleNamespace()) == {}


@pytest.mark.parametrize(
    ("visible", "keywords"),
    [
        (None, {}),
        ("", {}),
        ("2,3", {"index": 2}),
        ("GPU-abc,GPU-def", {"uuid": "GPU-abc"}),
        ("-1", {}),
    ],
)
def test_first_visible_gpu(visible: str | None, keywords: dict[str, Any]) -> None:
    assert visible_gpu(visible) == keywords


def test_summary_of_looks() -> None:
    capped = ("software power cap",)
    looks = [
        GpuState(sm_clock_hz=1.9e9, power_w=400.0, clock_reasons=()),
        GpuState(sm_clock_hz=1.5e9, power_w=700.0, clock_reasons=capped),
        GpuState(sm_clock_hz=1.4e9, power_w=None, clock_reasons=capped),
        GpuState(sm_clock_hz=1.6e9, power_w=650.0, clock_reasons=None),
    ]
    summary = summarise(looks, 0.08)
    assert (summary.looks, summary.seconds) == (4, 0.08)
    assert summary.sm_clock_hz == Spread(least=1.4e9, median=1.55e9, greatest=1.9e9)
    assert summary.power_w == Spread(least=400.0, median=650.0, greatest=700.0)
    assert summary.temperature_c is None
    assert summary.clock_reasons == {"software power cap": 0.5}  # 2 of 4 looks


def test_summary_of_nothing() -> None:
    summary = summarise([], 0.0)
    assert (summary.looks, summary.sm_clock_hz, summary.clock_reasons) == (0, None, {})


def test_sampling_looks_while_the_block_runs() -> None:
    with sampling(GpuMonitor(FakeNvml(), "gpu"), interval_s=0.002) as looks:
        time.sleep(0.02)
    summary = looks.summary
    assert summary.looks >= 2
    assert summary.seconds >= 0.02
    assert summary.sm_clock_hz == Spread(least=1.455e9, median=1.455e9, greatest=1.455e9)
    assert summary.clock_reasons == {"software power cap": pytest.approx(1.0)}
    assert looks.summary == summary  # it has ended: nothing moves any more
