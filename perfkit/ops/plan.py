"""The tiles that an implementation would run on a device, without running anything."""

from perfkit.model.device import DeviceProfile
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Uses


def capability_of(profile: DeviceProfile) -> tuple[int, int]:
    """The compute capability as (major, minor)."""
    major, minor = profile.compute_capability.split(".")
    return int(major), int(minor)


def planned(row: Implementation, w: AttentionWorkload, profile: DeviceProfile, ran: Uses = ()) -> Uses:
    """The tiles that `row` would run on `profile`, where `ran` did already; empty if not known."""
    capability = table_capability(profile)
    if ran and row.rest is not None:
        return row.rest(w, capability, ran)
    return () if row.plan is None else row.plan(w, capability)


def table_capability(profile: DeviceProfile) -> tuple[int, int]:
    """The compute capability by which tables of tiles are read.

    Other vendors' version numbers mean something else: they get the tiles of 64 KiB of shared memory.
    """
    return capability_of(profile) if profile.vendor == "NVIDIA" else (0, 0)
