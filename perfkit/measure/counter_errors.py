"""Why hardware counters cannot be read: one small tree of typed failures, each with what to do about it."""

from typing import Final

from perfkit.errors import EnvironmentMissing

ALLOW_COUNTERS: Final = (
    "run as root, add --cap-add=SYS_ADMIN to the container, or load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0 (in /etc/modprobe.d) and reboot"
)


class CountersUnavailable(EnvironmentMissing):
    """Counters cannot be read here: `reason` says why, `fix` what would change that."""

    default_fix = ""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason, fix or self.default_fix)

    @property
    def reason(self) -> str:
        """Why there are no counters, in one line."""
        return self.message

    @property
    def fix(self) -> str:
        """What the user can do; empty where nothing is known to help."""
        return self.hint


class InsufficientPrivileges(CountersUnavailable):
    """The driver lets only administrators read counters."""

    default_fix = ALLOW_COUNTERS


class ProfilerBusy(CountersUnavailable):
    """Another profiler holds the counters: one at a time on a system."""

    default_fix = "stop the other profiler (ncu, nsys, a debugger; for DCGM: dcgmi profile --pause)"


class LibraryMissing(CountersUnavailable):
    """No libcupti, or one without the range profiler."""

    default_fix = "pip install nvidia-cuda-cupti, or install CUDA toolkit 12.6 update 2 or newer"


class ChipUnsupported(CountersUnavailable):
    """This device, or the way it is lent (MIG, virtualised, WSL), has no counters for CUPTI."""

    default_fix = "use a whole GPU of compute capability 7.5 or newer: no MIG, vGPU or WSL"


class UnknownMetric(CountersUnavailable):
    """The chip does not have a metric that was asked for."""

    default_fix = "this is a gap in perfkit's metric table: please report the chip and the metric"


class CuptiFailure(CountersUnavailable):
    """CUPTI failed for a reason that it does not tell."""

    default_fix = "a newer libcupti may help: start with LD_PRELOAD=<its path>"


#: CUptiResult (cupti_result.h) -> failure. Everything else is a CuptiFailure.
_BY_STATUS: Final[dict[int, type[CountersUnavailable]]] = {
    17: UnknownMetric,  # INVALID_METRIC_NAME
    26: ProfilerBusy,  # HARDWARE_BUSY
    27: ChipUnsupported,  # NOT_SUPPORTED
    33: ChipUnsupported,  # VIRTUALIZED_DEVICE_NOT_SUPPORTED
    35: InsufficientPrivileges,  # INSUFFICIENT_PRIVILEGES
    36: ProfilerBusy,  # OLD_PROFILER_API_INITIALIZED
    39: ProfilerBusy,  # MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED
    40: InsufficientPrivileges,  # VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES
    41: ChipUnsupported,  # CONFIDENTIAL_COMPUTING_NOT_SUPPORTED
    42: ChipUnsupported,  # CMP_DEVICE_NOT_SUPPORTED
    43: ChipUnsupported,  # MIG_DEVICE_NOT_SUPPORTED
    44: ChipUnsupported,  # SLI_DEVICE_NOT_SUPPORTED
    45: ChipUnsupported,  # WSL_DEVICE_NOT_SUPPORTED
    46: ChipUnsupported,  # INVALID_CHIP_NAME
}


def failure(function: str, status: int, status_name: str) -> CountersUnavailable:
    """The typed failure for a CUptiResult that is not CUPTI_SUCCESS."""
    return _BY_STATUS.get(status, CuptiFailure)(f"{function} answered {status_name} ({status})")
