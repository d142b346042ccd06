"""Counters from the `ncu` binary: the referee, and the fall-back where CUPTI cannot count in process.

The profiled command has to call cudaProfilerStart and cudaProfilerStop around what is to be counted. Caches
and clocks are left alone. Source: Nsight Compute CLI documentation, "Command Line Options".
"""

import csv
import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from perfkit.measure.counter_errors import CountersUnavailable, InsufficientPrivileges, ProfilerBusy
from perfkit.measure.kernel_names import short_name
from perfkit.measure.metrics import MetricSet, quantities
from perfkit.record import KernelCounts

Unit = Literal["kernel", "range"]

#: Unit as ncu prints it -> factor to the base unit (bytes, nanoseconds, counts).
_TIME_NS: Final = {
    "ns": 1.0, "nsecond": 1.0, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9,
}  # fmt: skip
_PREFIX: Final = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def find_ncu(extra: Iterable[Path] | None = None) -> str:
    """The ncu binary: on PATH, in Nsight Compute's folder (newest first), in the toolkit."""
    if found := shutil.which("ncu"):
        return found
    places = _usual_places() if extra is None else extra
    for place in places:
        if place.is_file():
            return str(place)
    raise CountersUnavailable("no ncu binary was found", "install Nsight Compute, or put ncu on PATH")


def _usual_places() -> list[Path]:
    opt = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"), reverse=True)
    return [*opt, Path("/usr/local/cuda/bin/ncu")]


def command_line(
    ncu: str, metrics: Sequence[str], log: Path, command: Sequence[str], unit: Unit = "kernel"
) -> list[str]:
    """The command that profiles `command` and writes the values to `log` as CSV.

    Caches are flushed before every pass of every kernel: a set of metrics takes several passes, and all but
    the first would find L2 warm. So each kernel of an op starts cold, and re-use between them is not seen.
    A range, from start to stop, is counted as one, with caches left to the command, which runs once a pass.
    """
    return [
        ncu,
        *("--clock-control", "none", "--cache-control", "all" if unit == "kernel" else "none"),
        *(("--profile-from-start", "off") if unit == "kernel" else ("--replay-mode", "app-range")),
        *("--target-processes", "all"),
        *("--metrics", ",".join(metrics)),
        *("--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)),
        *command,
    ]


def profile(
    command: Sequence[str], metrics: Sequence[str], *, timeout_s: float = 300, unit: Unit = "kernel"
) -> list[KernelCounts]:
    """Raw metric values in base units, one entry a `unit` of `command`; CountersUnavailable where none."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        line = command_line(find_ncu(), metrics, log, command, unit)
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CountersUnavailable(f"ncu did not finish: {error}") from error
        text = log.read_text() if log.exists() else ""
    kernels = parse(text)
    if not kernels:
        raise refusal(text + done.stdout + done.stderr)
    return kernels


def collect(command: Sequence[str], metrics: MetricSet, *, timeout_s: float = 300) -> list[KernelCounts]:
    """The quantities of `metrics`, one entry a kernel of `command`, in launch order; DRAM not settled."""
    names = tuple(dict.fromkeys(term.metric for term in metrics.terms))
    raw = profile(command, names, timeout_s=timeout_s)
    return [KernelCounts(name=kernel.name, values=quantities(metrics, kernel.values)) for kernel in raw]


def parse(text: str) -> list[KernelCounts]:
    """Kernels and raw metric values in base units from the CSV of ncu's raw page.

    The first row names the columns, the second holds units; metrics are the columns whose name has a roll-up
    (a dot). Lines before the header, and values that are not numbers, are passed over.
    """
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    header, *rest = list(csv.reader(io.StringIO("\n".join(lines[start:]))))
    if not rest:
        return []
    units, *rows = rest
    return [
        _kernel(header, units, row) for row in rows if len(row) == len(header) and row[0].strip().isdigit()
    ]


def _kernel(header: list[str], units: list[str], row: list[str]) -> KernelCounts:
    values = {}
    name = "?"
    for column, unit, cell in zip(header, units, row, strict=False):
        if column == "Kernel Name":
            name = short_name(cell)
        elif "." in column and (value := _number(cell)) is not None:
            values[column] = value * unit_factor(unit)
    return KernelCounts(name=name, values=values)


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return None


def unit_factor(unit: str) -> float:
    """What a value in `unit` is multiplied by: to bytes, nanoseconds, hertz or counts; rates by numerator."""
    head = unit.split("/")[0].strip()
    if head in _TIME_NS:
        return _TIME_NS[head]
    if len(head) > 1 and head[0] in _PREFIX and head[1:].islower():
        return _PREFIX[head[0]]
    return _PREFIX[head[0]] if head in ("KHz", "MHz", "GHz") else 1.0


def refusal(output: str) -> CountersUnavailable:
    """Why ncu gave no kernel, from what it printed."""
    if "ERR_NVGPUCTRPERM" in output:
        return InsufficientPrivileges("ncu may not read counters (ERR_NVGPUCTRPERM)")
    if "driver resource was unavailable" in output:
        return ProfilerBusy("ncu found the counters held by another profiler")
    said = [line for line in output.splitlines() if "==ERROR==" in line or "==WARNING==" in line]
    return CountersUnavailable("ncu profiled no kernel" + (f": {said[0]}" if said else ""))
