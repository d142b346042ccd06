"""Whether this process may read hardware counters, told before anything is measured."""

from pathlib import Path
from typing import Final

import msgspec

from perfkit.measure.counter_errors import ALLOW_COUNTERS

_DRIVER_PARAMS: Final = Path("/proc/driver/nvidia/params")
_PROCESS_STATUS: Final = Path("/proc/self/status")
_CAP_SYS_ADMIN: Final = 21  # linux/capability.h


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """May counters be read? `allowed` is None where nothing here can tell."""

    allowed: bool | None
    reason: str
    fix: str = ""


def counter_permission(driver_params: str | None = None, process_status: str | None = None) -> Permission:
    """The permission to read counters, from the driver's parameters and the process's capabilities.

    The texts default to /proc/driver/nvidia/params and /proc/self/status; an empty text means a missing file.
    Source: NVIDIA, "ERR_NVGPUCTRPERM" (RmProfilingAdminOnly is NVreg_RestrictProfilingToAdminUsers).
    """
    params = _text(_DRIVER_PARAMS) if driver_params is None else driver_params
    status = _text(_PROCESS_STATUS) if process_status is None else process_status
    if not params:
        return Permission(
            allowed=None,
            reason="no NVIDIA driver parameters are visible (/proc/driver/nvidia/params)",
            fix="install the NVIDIA driver, or start the container with access to the GPU",
        )
    if _field(params, "RmProfilingAdminOnly") == "0":
        return Permission(allowed=True, reason="the driver lets every user read counters")
    if _may_administer(status):
        return Permission(allowed=True, reason="the process has CAP_SYS_ADMIN")
    if _field(params, "RmProfilingAdminOnly") is None:
        return Permission(
            allowed=None, reason="the driver does not say who may read counters", fix=ALLOW_COUNTERS
        )
    who = "root without CAP_SYS_ADMIN" if _user(status) == 0 else "not an administrator"
    return Permission(
        allowed=False,
        reason=f"the driver keeps counters for administrators, and this process is {who}",
        fix=ALLOW_COUNTERS,
    )


def _may_administer(process_status: str) -> bool:
    effective = _field(process_status, "CapEff")
    if effective is None:
        return _user(process_status) == 0
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def _user(process_status: str) -> int | None:
    """The effective user id: the second number after "Uid:"."""
    ids = (_field(process_status, "Uid") or "").split()
    return int(ids[1]) if len(ids) > 1 else None


def _field(text: str, name: str) -> str | None:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
