"""The record: what a run was and what it gave. Frozen, versioned, raw samples kept, saved as JSON.

A number is never bare: it has a unit and a provenance, and where it is absent, the reason. What can be
computed from a record (intensity, bound, verdicts) is not in it: `perfkit.analysis` computes it again.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from perfkit.errors import UsageError
from perfkit.model.device import DeviceProfile
from perfkit.model.units import UNITS, Hint
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Level

if TYPE_CHECKING:
    import pandas as pd

SCHEMA: Final = "perfkit.record/1"

#: The stop reason of a measurement that Ctrl-C ended.
INTERRUPTED: Final = "interrupted"

#: Where a number comes from. `modelled`: computed from the workload by a formula. `counted`: by executing
#: the code and counting. `measured`: by a clock, a sensor or a hardware counter.
Provenance = Literal["datasheet", "modelled", "counted", "measured", "unavailable"]

#: What became of one implementation. Only `measured` and `modelled` runs have numbers to compare.
Status = Literal["measured", "modelled", "refused", "incorrect", "out-of-memory", "failed", "interrupted"]


class Number(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value in a base unit with its provenance; None with a reason where it is unavailable."""

    value: float | int | None
    unit: str
    provenance: Provenance
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a number is finite, not {self.value}")
        absent = self.value is None
        if absent != (self.provenance == "unavailable") or (absent and not self.reason):
            raise ValueError("a number is unavailable exactly when it has no value, and then it has a reason")


class Quantity(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of number: its tag, a label for tables, what it means, and how to show it."""

    tag: str
    label: str
    hint: Hint
    description: str


def _q(tag: str, label: str, hint: Hint, description: str) -> Quantity:
    return Quantity(tag=tag, label=label, hint=hint, description=description)


#: Every number that a run may carry. Derived metrics are in `perfkit.analysis.metrics`.
QUANTITIES: Final[tuple[Quantity, ...]] = (
    _q("time", "time", "time", "median of the samples"),
    _q("time_low", "time, low", "time", "lower end of the median's 95 % confidence interval"),
    _q("time_high", "time, high", "time", "upper end of the median's 95 % confidence interval"),
    _q("clock", "SM clock", "hertz", "median SM clock over the samples"),
    _q("power", "power", "watt", "mean board power while running back to back"),
    _q("temperature", "temperature", "celsius", "GPU temperature after the samples"),
    _q("energy", "energy per op", "joule", "board energy per op, back to back, idle power not subtracted"),
    _q("sustained_time", "time, sustained", "time", "time per op when run back to back"),
    _q("sustained_clock", "SM clock, sustained", "hertz", "SM clock when run back to back"),
    _q("peak_memory", "peak memory", "bytes", "device memory above the inputs, at its highest"),
    _q("error", "error", "error", "largest absolute error against the oracle"),
    _q("eager_error", "eager error", "error", "the same for the eager path in the working dtype"),
    _q("flops_convention", "FLOPs, convention", "flop", "FLOPs as the papers count them"),
    _q("flops_exact", "FLOPs, exact", "flop", "FLOPs of the products over the visible pairs"),
    _q("flops_issued", "FLOPs, issued", "flop", "FLOPs that the tensor units are predicted to execute"),
    _q("flops_tensor", "FLOPs, tensor units", "flop", "FLOPs that the tensor units executed"),
    _q("flops_vector", "FLOPs, vector units", "flop", "FADD + FMUL + 2 FFMA executed"),
    _q("exps", "exps", "count", "exponentials needed"),
    _q("exps_measured", "exps and conversions", "count", "thread instructions executed by the XU pipe"),
    _q("launches", "kernels", "count", "kernels launched"),
    _q("l2_read_modelled", "L2->SM, modelled", "bytes", "bytes that SMs read from L2 by the IO model"),
    _q("l2_write_modelled", "SM->L2, modelled", "bytes", "bytes that SMs write to L2 by the IO model"),
    _q(
        "l2_zeros_modelled",
        "zeros by TMA, modelled",
        "bytes",
        "bytes of zeros that TMA fills into tiles, which a counter at the SM counts as read",
    ),
    _q("l2_read_counted", "L2->SM, counted", "bytes", "bytes that kernels load, counted by executing them"),
    _q("l2_write_counted", "SM->L2, counted", "bytes", "bytes that kernels store, counted by executing them"),
    _q("l2_read", "L2->SM", "bytes", "bytes that SMs read from L2"),
    _q("l2_write", "SM->L2", "bytes", "bytes that SMs write to L2"),
    _q("dram_read_compulsory", "DRAM read, compulsory", "bytes", "each input once"),
    _q("dram_write_compulsory", "DRAM write, compulsory", "bytes", "each output once"),
    _q("dram_read_modelled", "DRAM read, modelled", "bytes", "bytes that DRAM reads by the IO and L2 model"),
    _q(
        "dram_write_modelled",
        "DRAM write, modelled",
        "bytes",
        "bytes that DRAM writes by the IO and L2 model",
    ),
    _q("dram_read", "DRAM read", "bytes", "bytes read from DRAM"),
    _q("dram_write", "DRAM write", "bytes", "bytes written to DRAM, dirty lines in L2 settled"),
)
BY_TAG: Final = {quantity.tag: quantity for quantity in QUANTITIES}


def number(tag: str, value: float | int, provenance: Provenance, note: str | None = None) -> Number:
    """A number of the kind `tag`, in its base unit."""
    return Number(value=value, unit=UNITS[BY_TAG[tag].hint], provenance=provenance, reason=note)


def unavailable(tag: str, reason: str) -> Number:
    """The absence of a number of the kind `tag`, with its reason."""
    return Number(value=None, unit=UNITS[BY_TAG[tag].hint], provenance="unavailable", reason=reason)


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Names and versions; None where a thing is absent or does not say. `timestamp` is UTC, ISO 8601."""

    perfkit: str
    python: str
    os: str
    cpu: str | None
    gpu: str | None
    driver: str | None
    torch: str | None
    cuda_runtime: str | None
    cudnn: str | None
    triton: str | None
    command: list[str]
    timestamp: str


class KernelCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Raw counters of one kernel, in launch order; dirty lines are not settled at this grain."""

    name: str
    values: dict[str, float]


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What timing gave: all valid samples in order, and why it stopped. Seconds and hertz.

    `clock_hz` has one entry a sample, None where unknown; `clock_source` says whether a GPU stamp or NVML
    gave it. `ci_*` is the 95 % interval of the median, None below 6 samples. `launch_hidden` False means
    that launch overhead is in the samples: the work synchronises, or queues more than the launch queue
    holds. `dropped` samples were invalid (the GPU waited for the host) and are not in `samples_s`.
    `interleaved`: sample i was taken in round i together with sample i of the record's other runs on the same
    workload (A B B A), so that they can be compared in pairs.
    """

    samples_s: list[float]
    clock_hz: list[float | None]
    clock_source: str
    median_s: float
    ci_low_s: float | None
    ci_high_s: float | None
    stop_reason: str
    converged: bool
    cold: bool
    graph: bool
    launch_hidden: bool
    dropped: int
    warmup_s: float
    interleaved: bool = False

    @property
    def interrupted(self) -> bool:
        """Ctrl-C ended it: save what is here, then stop."""
        return self.stop_reason == INTERRUPTED


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation on one workload.

    `counted` is what executing it moved, by kernel and tensor. A `trial` is one of a series that shows
    something together, such as the sweeps of the IO law, and nothing that was asked for by itself. `asked` is
    the workload that was asked for, where the implementation runs another one: `mqa` has its own K/V heads.
    """

    impl: str
    workload: AttentionWorkload
    asked: AttentionWorkload | None = None
    status: Status
    reason: str | None = None
    numbers: dict[str, Number] = {}
    timing: Timing | None = None
    uses: tuple[KernelUse, ...] = ()
    kernels: tuple[KernelCounts, ...] = ()
    counted: Ledger = ()
    trial: bool = False
    clock_reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def setting(self) -> AttentionWorkload:
        """The workload that was asked for: what runs that are compared have in common."""
        return self.asked or self.workload

    def value(self, tag: str) -> float | None:
        """The value of the number `tag`; None where it is absent."""
        found = self.numbers.get(tag)
        return None if found is None else found.value

    def moved(self, level: Level, kind: Literal["", "_modelled", "_counted"] = "") -> float | None:
        """Bytes at a level, read and written together, measured unless `kind` says otherwise."""
        values = [self.value(f"{level.lower()}_{side}{kind}") for side in ("read", "write")]
        return None if None in values else sum(value for value in values if value is not None)


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """All runs of one command on one device.

    `baseline` names the implementation that the others are compared with; None where nothing is compared.
    """

    op: str
    backend: str
    device: DeviceProfile
    environment: Environment
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    baseline: str | None = None

    def dataframe(self) -> "pd.DataFrame":
        """One tidy row per number: impl, workload columns, tag, label, value, unit, provenance, reason."""
        import pandas as pd

        return pd.DataFrame(rows(self))


def rows(record: Record) -> list[dict[str, Any]]:
    """One flat mapping per number of the record, in its order."""
    table = []
    for run in record.runs:
        workload = msgspec.to_builtins(run.workload)
        head = {
            "op": record.op,
            "device": record.device.name,
            "impl": run.impl,
            "status": run.status,
            **workload,
        }
        for tag, found in run.numbers.items():
            label = BY_TAG[tag].label if tag in BY_TAG else tag
            table.append(
                {
                    **head,
                    "tag": tag,
                    "label": label,
                    **{f: getattr(found, f) for f in Number.__struct_fields__},
                }
            )
    return table


def dump(record: Record) -> bytes:
    """The record as JSON on one line: thousands of samples would make a file of as many lines."""
    return msgspec.json.encode(record) + b"\n"


def load(path: str | Path) -> Record:
    """The record saved at `path`; UsageError says what is wrong with the file and where."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Record)
    except OSError as error:
        raise UsageError(f"cannot read record {path}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError, UsageError) as error:
        hint = f"this perfkit reads schema {SCHEMA}"
        raise UsageError(f"{path} is not a perfkit record: {error}", hint) from error
