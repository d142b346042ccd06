"""Which backend serves which request, on machines with and without a GPU."""

from pathlib import Path
from typing import Any

import pytest

from perfkit.errors import EnvironmentMissing, UsageError
from perfkit.measure import choose
from perfkit.measure.choose import DEFAULT_PROFILE, choose_backend
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.options import Options
from perfkit.model.catalogue import load
from perfkit.model.device import DeviceProfile

H200 = load("h200-141gb-sxm")


def machine(monkeypatch: pytest.MonkeyPatch, gpu: DeviceProfile | Exception | None) -> None:
    """This machine with that GPU: None has no driver, an exception is what torch's look at it raises."""

    def local() -> DeviceProfile:
        if not isinstance(gpu, DeviceProfile):
            raise gpu or AssertionError("looked at torch without a driver")
        return gpu

    monkeypatch.setattr(choose, "gpu_driver_present", lambda: gpu is not None)
    monkeypatch.setattr(choose, "local_profile", local)


def chosen(device: str | None) -> Any:
    return choose_backend(device, "bf16", Options())


def test_no_gpu_models_the_default_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, None)
    found = chosen(None)
    assert isinstance(found, ModelBackend)
    assert found.profile == load(DEFAULT_PROFILE)
    assert found.missing == "no NVIDIA GPU on this machine"


def test_no_gpu_models_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, None)
    found = chosen("t4")
    assert isinstance(found, ModelBackend)
    assert (found.profile.name, found.missing) == ("t4", "no NVIDIA GPU on this machine")


def test_a_driver_without_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, EnvironmentMissing("torch is not installed", "pip install 'perfkit[measure]'"))
    for device, name in ((None, DEFAULT_PROFILE), ("h200-141gb-sxm", "h200-141gb-sxm")):
        found = chosen(device)
        assert isinstance(found, ModelBackend)
        assert found.profile.name == name
        assert found.missing == "torch is not installed (pip install 'perfkit[measure]')"


def test_another_device_is_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, H200)
    found = chosen("t4")
    assert isinstance(found, ModelBackend)
    assert found.profile.name == "t4"
    assert found.missing == "t4 was asked for, and this machine has h200-141gb-sxm"


@pytest.mark.parametrize("device", [None, "h200-141gb-sxm"])
def test_the_local_gpu_is_measured(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, H200)
    found = chosen(device)
    assert (found.name, found.status, found.profile) == ("cuda", "measured", H200)


def test_a_file_of_ones_own_for_the_local_gpu_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A card with another power limit: its file matches the local name, and its figures count."""
    machine(monkeypatch, H200)
    from importlib.resources import files

    text = (files("perfkit.profiles") / "h200-141gb-sxm.toml").read_text()
    path = tmp_path / "h200-capped.toml"
    path.write_text(text.replace('name = "h200-141gb-sxm"', 'name = "h200-capped"').replace("700", "500"))
    found = chosen(str(path))
    assert (found.name, found.profile.name, found.profile.power_limit_w) == ("cuda", "h200-capped", 500)


def test_unknown_devices_are_refused_before_the_machine_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, AssertionError("looked at the machine"))
    with pytest.raises(UsageError) as unknown:
        chosen("h20")
    assert unknown.value.message.startswith("no device profile is named 'h20'")
    assert unknown.value.hint == "perfkit devices lists them; a file of your own ends in .toml"
    with pytest.raises(UsageError) as missing:
        chosen("nowhere.toml")
    assert missing.value.message == "cannot read the device profile nowhere.toml: No such file or directory"


@pytest.mark.parametrize("gpu", [None, H200])
def test_fake_never_looks(gpu: DeviceProfile | None, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpu)
    assert isinstance(chosen("fake"), FakeBackend)


@pytest.mark.parametrize("gpu", [None, H200])
def test_cpu_is_measured_whatever_gpu_there_is(
    gpu: DeviceProfile | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpu)
    from perfkit.measure import cpu_backend

    asked: list[tuple[str, ...]] = []

    def profile(dtypes: tuple[str, ...]) -> DeviceProfile:
        asked.append(dtypes)
        return H200

    monkeypatch.setattr(cpu_backend, "measured_profile", profile)
    found = choose_backend("cpu", "fp32", Options(limit_s=1.0))
    assert (found.name, asked) == ("cpu", [("fp32",)])


@pytest.mark.parametrize(("driver", "node"), [(True, False), (False, True), (False, False)])
def test_a_driver_is_a_file(
    driver: bool, node: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, there in (("_DRIVER", driver), ("_DEVICE", node)):
        path = tmp_path / name
        if there:
            path.touch()
        monkeypatch.setattr(choose, name, path)
    assert choose.gpu_driver_present() is (driver or node)
