"""What stands between this machine and a trustworthy measurement, and the fix for each: `perfkit doctor`.

Pure: a `Machine` in, findings out. Nothing is needed for modelling but perfkit's own dependencies.
"""

import re
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from perfkit.measure.machine import Absent, Machine, TorchSight, snapshot
from perfkit.measure.nvml import GpuState

Status = Literal["ok", "warn", "fail", "absent"]

CORE: Final = ("msgspec", "rich", "typer", "plotext", "pandas")
INSTALL: Final = "pip install 'perfkit[measure]'"

#: The Triton that a torch release was built against, for builds whose metadata do not say (CPU wheels).
#: 2.11.0+cu130 comes with 3.6.0; pytorch/pytorch pulls 174896 and 186814 say 2.12: 3.7; 2.13.0 pins 3.7.1.
TRITON_OF_TORCH: Final = {"2.11": "3.6", "2.12": "3.7", "2.13": "3.7"}
#: How far the L2 that the driver reports may lie from the profile's.
L2_TOLERANCE: Final = 0.05
#: Clock event reasons that slow nothing down.
_HARMLESS: Final = {"idle", "display clock setting"}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `fix` is what to do about it; `required` marks what modelling needs."""

    subject: str
    status: Status
    text: str
    fix: str = ""
    required: bool = False


def findings(machine: Machine | None = None) -> list[Finding]:
    """Every check on `machine` (this one where None), in the order in which they should be fixed."""
    seen = snapshot() if machine is None else machine
    return [*_packages(seen), *_software(seen), *_hardware(seen), *_counters(seen)]


def exit_code(found: list[Finding]) -> int:
    """3 where something that perfkit cannot do without is missing, else 0: no GPU is fine."""
    return 3 if any(one.required and one.status == "fail" for one in found) else 0


def _short(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _packages(machine: Machine) -> Iterator[Finding]:
    missing = [name for name in CORE if not machine.packages.get(name)]
    if missing:
        text = f"missing: {', '.join(missing)}"
        yield Finding(
            subject="perfkit",
            status="fail",
            text=text,
            fix=f"pip install {' '.join(missing)}",
            required=True,
        )
    else:
        listed = ", ".join(f"{name} {machine.packages[name]}" for name in CORE)
        yield Finding(subject="perfkit", status="ok", text=listed, required=True)


def _software(machine: Machine) -> Iterator[Finding]:
    yield _torch(machine)
    yield _triton(machine)
    nvml = machine.packages.get("nvidia-ml-py")
    if nvml:
        yield Finding(subject="nvidia-ml-py", status="ok", text=nvml)
    else:
        text = "not installed: clocks, power and energy stay unknown"
        yield Finding(subject="nvidia-ml-py", status="absent", text=text, fix="pip install nvidia-ml-py")


def _torch(machine: Machine) -> Finding:
    if machine.torch is None:
        return Finding(subject="torch", status="absent", text="not installed: nothing can run", fix=INSTALL)
    if machine.sight is None:
        text = f"{machine.torch} is installed but cannot be imported"
        return Finding(subject="torch", status="fail", text=text, fix="python -c 'import torch' says why")
    if machine.sight.cuda is None:
        text = f"{machine.torch} is a build without CUDA: only CPU runs"
        return Finding(subject="torch", status="warn", text=text, fix="install a CUDA build: pytorch.org")
    driver = machine.gpu.driver_cuda if isinstance(machine.gpu, GpuState) else None
    if driver and _numbers(driver)[0] < _numbers(machine.sight.cuda)[0]:
        text = f"{machine.torch} needs CUDA {machine.sight.cuda}; the driver offers {driver}"
        return Finding(
            subject="torch", status="fail", text=text, fix="update the driver, or install an older torch"
        )
    if not machine.sight.sees_gpu:
        text = f"{machine.torch} sees no GPU"
        fix = "look at CUDA_VISIBLE_DEVICES and at the container's GPU options" if driver else ""
        return Finding(subject="torch", status="fail" if driver else "warn", text=text, fix=fix)
    return Finding(subject="torch", status="ok", text=f"{machine.torch}, CUDA {machine.sight.cuda}")


def _triton(machine: Machine) -> Finding:
    if machine.triton is None:
        text = "not installed: no Triton kernels, no clock of each sample"
        return Finding(subject="triton", status="absent", text=text, fix=INSTALL)
    wanted = machine.triton_wanted or TRITON_OF_TORCH.get(_short(machine.torch or ""))
    if wanted and _short(wanted) != _short(machine.triton):
        text = f"{machine.triton}, but torch {machine.torch} was built for {wanted}"
        return Finding(
            subject="triton", status="warn", text=text, fix=f"pip install 'triton=={_short(wanted)}.*'"
        )
    matched = f" matches torch {_short(machine.torch)}" if wanted and machine.torch else ""
    return Finding(subject="triton", status="ok", text=f"{machine.triton}{matched}")


def _hardware(machine: Machine) -> Iterator[Finding]:
    gpu = machine.gpu
    if isinstance(gpu, Absent):
        yield _gpu_without_nvml(machine.sight, gpu)
        yield from _profile(machine)
        return
    memory = f", {gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else ""
    yield Finding(subject="GPU", status="ok", text=f"{gpu.name or 'unnamed'}{memory}")
    offers = f", CUDA up to {gpu.driver_cuda}" if gpu.driver_cuda else ""
    yield Finding(subject="driver", status="ok", text=f"{gpu.driver or 'version unknown'}{offers}")
    if gpu.mig:
        text = "on: a slice has a part of the SMs, L2 and bandwidth, and the profile is of the whole"
        yield Finding(subject="MIG", status="warn", text=text, fix="measure on a GPU with MIG off")
    yield _clocks(gpu)
    yield _neighbours(machine, gpu)
    yield from _profile(machine)


def _gpu_without_nvml(sight: TorchSight | None, missing: Absent) -> Finding:
    if sight and sight.sees_gpu:
        return Finding(subject="GPU", status="ok", text=f"{sight.name} (seen by torch only)")
    return Finding(subject="GPU", status="absent", text=f"none seen: {missing.reason}", fix=missing.fix)


def _clocks(gpu: GpuState) -> Finding:
    now, most = gpu.sm_clock_hz, gpu.sm_clock_max_hz
    if now is None or most is None:
        reason = gpu.absent.get("sm_clock_hz") or gpu.absent.get("sm_clock_max_hz") or "no reason given"
        return Finding(subject="clocks", status="absent", text=f"unknown: {reason}")
    text = f"SM {now / 1e6:.0f} MHz now, {most / 1e6:.0f} MHz at most"
    slowing = [reason for reason in gpu.clock_reasons or () if reason not in _HARMLESS]
    if slowing:
        text += f"; held back by: {', '.join(slowing)}"
        return Finding(subject="clocks", status="warn", text=text, fix=_clock_fix(slowing))
    return Finding(subject="clocks", status="ok", text=text)


def _clock_fix(slowing: list[str]) -> str:
    if "application clock setting" in slowing:
        return "nvidia-smi --reset-applications-clocks (as root) lifts the limit"
    return "wait until it is idle and cool; perfkit reports the clock that each run really had"


def _neighbours(machine: Machine, gpu: GpuState) -> Finding:
    if gpu.processes is None:
        text = f"unknown: {gpu.absent.get('processes', 'no reason given')}"
        return Finding(subject="neighbours", status="absent", text=text)
    others = [process for process in gpu.processes if process.pid != machine.own_pid]
    if not others:
        return Finding(subject="neighbours", status="ok", text="no other process on the GPU")
    listed = ", ".join(str(process.pid) for process in others[:5]) + (", ..." if len(others) > 5 else "")
    text = f"{len(others)} other process(es) on the GPU: {listed}"
    return Finding(subject="neighbours", status="warn", text=text, fix="end them, or pick another GPU")


def _profile(machine: Machine) -> Iterator[Finding]:
    here = machine.sight.l2_bytes if machine.sight else None
    if machine.sight is None or not machine.sight.sees_gpu:
        return
    if machine.profile is None:
        text = "none ships for this GPU; one is derived from what the driver says"
        yield Finding(subject="profile", status="warn", text=text, fix="add profiles/<name>.toml")
        return
    stated = machine.profile_l2_bytes
    if here and stated and abs(here / stated - 1) > L2_TOLERANCE:
        sizes = f"{stated / 2**20:.1f} MiB of L2; the driver reports {here / 2**20:.1f} MiB"
        text = f"{machine.profile} states {sizes}"
        fix = "check the profile's L2 capacity; predicted DRAM traffic depends on it"
        yield Finding(subject="profile", status="warn", text=text, fix=fix)
    else:
        shown = f", L2 {here / 2**20:.1f} MiB" if here else ""
        yield Finding(subject="profile", status="ok", text=f"{machine.profile}{shown}")


def _counters(machine: Machine) -> Iterator[Finding]:
    access = machine.counters
    if access is None:
        return
    if access.allowed:
        yield Finding(subject="counters", status="ok", text=access.reason or "allowed")
    else:
        text = access.reason if access.allowed is False else f"unknown: {access.reason}"
        yield Finding(subject="counters", status="warn", text=text, fix=access.fix)
    if machine.profilers:
        text = f"running: {', '.join(machine.profilers)}; only one may hold the counters"
        yield Finding(subject="profilers", status="warn", text=text, fix=profiler_fix(machine.profilers))
    if machine.ncu:
        yield Finding(subject="ncu", status="ok", text=f"{machine.ncu} (optional)")
    else:
        yield Finding(
            subject="ncu", status="absent", text="not found (optional: perfkit reads counters itself)"
        )


def profiler_fix(profilers: tuple[str, ...]) -> str:
    """How to get the counters back from these programs."""
    dcgm = any(name.startswith(("dcgm", "nv-hostengine")) for name in profilers)
    return "dcgmi profile --pause, and --resume afterwards" if dcgm else "let it end first"
