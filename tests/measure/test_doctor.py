"""The doctor on machines that are built here; whole printed texts at 80 columns in tests/golden."""

from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from perfkit.cli import doctor as command
from perfkit.measure.abilities import Ability, abilities
from perfkit.measure.doctor import Finding, exit_code, findings
from perfkit.measure.machine import Absent, Machine, TorchSight, running, triton_wanted
from perfkit.measure.nvml import GpuProcess, GpuState
from perfkit.measure.permission import Permission
from perfkit.reports.doctor import render

GOLDEN = Path(__file__).parent.parent / "golden"
PACKAGES = {
    "msgspec": "0.22.0",
    "rich": "15.0.0",
    "typer": "0.29.2",
    "plotext": "6.1.0",
    "pandas": "3.1.1",
    "nvidia-ml-py": "13.615.71",
}
H200 = GpuState(
    name="NVIDIA H200",
    driver="580.159.04",
    driver_cuda="13.0",
    memory_bytes=143771 * 2**20,
    sm_clock_hz=345e6,
    sm_clock_max_hz=1980e6,
    energy_j=1e6,
    clock_reasons=("idle",),
    mig=False,
    processes=(),
)
SIGHT = TorchSight(
    cuda="13.0",
    sees_gpu=True,
    sm_count=132,
    l2_bytes=62_914_560,
    memory_bytes=152_428_800_000,
    name="NVIDIA H200",
)
NOBODY = Absent(
    reason="nvidia-ml-py is not installed, so clocks, power and energy are unknown",
    fix="pip install nvidia-ml-py",
)


def server(**changes: Any) -> Machine:
    """A machine on which everything is in order, but for `changes`."""
    fields: dict[str, Any] = {
        "gpu": H200,
        "torch": "2.11.0+cu130",
        "sight": SIGHT,
        "triton": "3.6.0",
        "triton_wanted": "3.6.0",
        "counters": Permission(allowed=True, reason="the driver lets every user read counters"),
        "ncu": "/usr/local/bin/ncu",
        "packages": PACKAGES,
        "profile": "h200",
        "profile_l2_bytes": 62_914_560,
        "own_pid": 7,
    }
    return Machine(**{**fields, **changes})


def laptop() -> Machine:
    """No GPU, no torch: only what perfkit itself needs."""
    return Machine(gpu=NOBODY, packages={**PACKAGES, "nvidia-ml-py": None})


def gpu(**changes: Any) -> GpuState:
    return GpuState(**{**{field: getattr(H200, field) for field in H200.__struct_fields__}, **changes})


def of(subject: str, machine: Machine) -> Finding:
    return next(one for one in findings(machine) if one.subject == subject)


def able(what: str, machine: Machine) -> Ability:
    return next(one for one in abilities(machine, findings(machine)) if one.what == what)


TROUBLED = server(
    gpu=gpu(
        mig=True,
        sm_clock_hz=1455e6,
        clock_reasons=("software power cap", "software thermal slowdown"),
        processes=(GpuProcess(pid=7), GpuProcess(pid=4711), GpuProcess(pid=4712)),
    ),
    triton="3.7.1",
    counters=Permission(
        allowed=False,
        reason="the driver keeps counters for administrators",
        fix="set NVreg_RestrictProfilingToAdminUsers=0",
    ),
    profilers=("nv-hostengine",),
    ncu=None,
    profile_l2_bytes=52_428_800,
)


@pytest.mark.parametrize(
    ("name", "machine"), [("laptop", laptop()), ("h200", server()), ("troubled", TROUBLED)]
)
def test_printed_text(name: str, machine: Machine) -> None:
    console = Console(width=80, color_system=None, force_terminal=False)
    with console.capture() as printed:
        found = findings(machine)
        console.print(render(found, abilities(machine, found)))
    text = "\n".join(line.rstrip() for line in printed.get().splitlines()) + "\n"
    assert text == (GOLDEN / f"doctor_{name}.txt").read_text()


def test_a_laptop_can_model_and_says_why_not_more() -> None:
    assert exit_code(findings(laptop())) == 0
    assert able("modelled reports", laptop()) == Ability(what="modelled reports", able=True)
    assert able("measured times", laptop()) == Ability(
        what="measured times", able=False, because=f"GPU: none seen: {NOBODY.reason}", fix=NOBODY.fix
    )


def test_a_server_in_order_can_do_everything() -> None:
    found = findings(server())
    assert {one.status for one in found} == {"ok"}
    assert all(one.able for one in abilities(server(), found))


@pytest.mark.parametrize("name", ["msgspec", "rich", "typer", "plotext", "pandas"])
def test_only_a_missing_dependency_is_exit_code_3(name: str) -> None:
    machine = server(packages={**PACKAGES, name: None})
    assert of("perfkit", machine).status == "fail"
    assert exit_code(findings(machine)) == 3
    assert able("modelled reports", machine).able is False


def test_a_broken_torch_fails_but_modelling_goes_on() -> None:
    machine = server(gpu=gpu(driver_cuda="12.8"))
    torch = of("torch", machine)
    assert (torch.status, torch.text) == ("fail", "2.11.0+cu130 needs CUDA 13.0; the driver offers 12.8")
    assert exit_code(findings(machine)) == 0
    assert able("measured times", machine).because == f"torch: {torch.text}"


@pytest.mark.parametrize(
    ("driver_cuda", "status"), [("13.0", "ok"), ("13.2", "ok"), ("14.0", "ok"), ("12.9", "fail")]
)
def test_cuda_minor_versions_are_compatible(driver_cuda: str, status: str) -> None:
    assert of("torch", server(gpu=gpu(driver_cuda=driver_cuda))).status == status


@pytest.mark.parametrize(
    ("sight", "status", "text"),
    [
        (None, "fail", "2.11.0+cu130 is installed but cannot be imported"),
        (TorchSight(cuda=None), "warn", "2.11.0+cu130 is a build without CUDA: only CPU runs"),
        (TorchSight(cuda="13.0"), "fail", "2.11.0+cu130 sees no GPU"),
    ],
)
def test_torch_that_cannot_use_the_gpu(sight: TorchSight | None, status: str, text: str) -> None:
    machine = server(sight=sight)
    assert (of("torch", machine).status, of("torch", machine).text) == (status, text)
    assert able("measured times", machine).able is False


@pytest.mark.parametrize(
    ("torch", "wanted", "triton", "status"),
    [
        ("2.11.0+cu130", "3.6.0", "3.6.0", "ok"),
        ("2.11.0+cu130", "3.6.0", "3.7.1", "warn"),
        ("2.11.0+cpu", None, "3.6.0", "ok"),  # CPU wheels do not say: the table does
        ("2.12.0+cpu", None, "3.6.0", "warn"),
        ("2.13.0+cpu", None, "3.7.1", "ok"),
        ("2.99.0", None, "3.9.0", "ok"),  # unknown release: nothing to hold against it
    ],
)
def test_triton_must_be_the_one_torch_was_built_for(
    torch: str, wanted: str | None, triton: str, status: str
) -> None:
    machine = server(torch=torch, triton_wanted=wanted, triton=triton)
    assert of("triton", machine).status == status


def test_no_triton() -> None:
    assert of("triton", server(triton=None)).status == "absent"
    assert able("measured times", server(triton=None)).able is False


def test_clocks() -> None:
    limited = server(gpu=gpu(clock_reasons=("application clock setting",)))
    assert of("clocks", limited).fix.startswith("nvidia-smi --reset-applications-clocks")
    unknown = server(gpu=gpu(sm_clock_hz=None, absent={"sm_clock_hz": "Not Supported"}))
    assert of("clocks", unknown).text == "unknown: Not Supported"
    assert of("clocks", server(gpu=gpu(clock_reasons=None))).status == "ok"


def test_our_own_process_is_no_neighbour() -> None:
    assert of("neighbours", server(gpu=gpu(processes=(GpuProcess(pid=7),)))).status == "ok"
    hidden = gpu(processes=None, absent={"processes": "Insufficient Permissions"})
    assert of("neighbours", server(gpu=hidden)).text == "unknown: Insufficient Permissions"


def test_counters_unknown_or_held() -> None:
    unknown = Permission(allowed=None, reason="no driver parameters are visible")
    assert of("counters", server(counters=unknown)).text == "unknown: no driver parameters are visible"
    assert able("hardware counters", server(counters=unknown)).able is None
    held = server(profilers=("nsys",))
    assert of("profilers", held).fix == "let it end first"
    assert able("hardware counters", held).able is None


def test_energy_needs_its_counter() -> None:
    machine = server(gpu=gpu(energy_j=None, absent={"energy_j": "Not Supported"}))
    assert able("energy", machine) == Ability(what="energy", able=False, because="Not Supported")


def test_a_gpu_that_only_torch_sees_can_be_timed() -> None:
    machine = server(gpu=NOBODY)
    assert of("GPU", machine).text == "NVIDIA H200 (seen by torch only)"
    assert able("measured times", machine).able
    assert able("hardware counters", machine).able
    assert able("energy", machine) == Ability(
        what="energy", able=False, because=NOBODY.reason, fix=NOBODY.fix
    )


def test_no_profile() -> None:
    assert of("profile", server(profile=None)).status == "warn"


def test_triton_wanted_from_wheel_metadata() -> None:
    lines = ["filelock", 'triton==3.6.0; platform_system == "Linux"', "sympy>=1.13.3"]
    assert triton_wanted(lines) == "3.6.0"
    assert triton_wanted(["tritonclient==1.0", "triton>=3"]) is None


def test_running_profilers(tmp_path: Path) -> None:
    for pid, name in (("1", "init"), ("22", "nv-hostengine"), ("23", "dcgm-exporter")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{name}\n")
    assert running(("ncu", "nv-hostengine", "dcgm-exporter"), tmp_path) == ("nv-hostengine", "dcgm-exporter")
    assert running(("ncu",), tmp_path / "missing") == ()


def test_this_machine_is_never_an_error() -> None:
    assert findings()


def test_command_prints_and_exits_with_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "perfkit.measure.machine.snapshot", lambda: server(packages={**PACKAGES, "pandas": None})
    )
    with pytest.raises(typer.Exit) as left:
        command.doctor()
    assert left.value.exit_code == 3
    assert "pip install pandas" in capsys.readouterr().out
