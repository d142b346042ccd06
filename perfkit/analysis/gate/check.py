"""What the gate checks: the kinds of checks, the numbers that are gated, and one check with its outcome."""

from typing import Final, Literal

import msgspec

from perfkit.model.units import Hint
from perfkit.ops.attention_workload import AttentionWorkload

#: `work` defines what is computed; `run` says whether there is a result at all.
Kind = Literal["run", "work", "traffic", "FLOPs", "kernels", "memory", "correctness", "IO check", "time"]
#: `noted` is no judgement: there was nothing to compare with.
CheckStatus = Literal["pass", "fail", "warn", "improved", "noted"]

#: The numbers of a run that are gated, with the kind of their check. Others are not: energy, power,
#: temperature and clock follow the chip and its cooling, and the sustained time follows them.
GATED: Final[dict[str, Kind]] = {
    "flops_convention": "work",
    "flops_exact": "work",
    "exps": "work",
    "dram_read_compulsory": "work",
    "dram_write_compulsory": "work",
    "l2_read_modelled": "traffic",
    "l2_write_modelled": "traffic",
    "l2_read_counted": "traffic",
    "l2_write_counted": "traffic",
    "dram_read_modelled": "traffic",
    "dram_write_modelled": "traffic",
    "l2_read": "traffic",
    "l2_write": "traffic",
    "dram_read": "traffic",
    "dram_write": "traffic",
    "flops_issued": "FLOPs",
    "flops_tensor": "FLOPs",
    "flops_vector": "FLOPs",
    "exps_measured": "FLOPs",
    "launches": "kernels",
    "peak_memory": "memory",
    "error": "correctness",
}
#: The tag of the checks that hold verdicts of the IO check against those of the baseline.
IO_CHECK: Final = "io_check"
#: The tag of the check that there is a result. It cannot be ignored by itself, only with its implementation.
RUN: Final = "run"
#: What may be ignored, besides `impl:NAME`.
IGNORABLE: Final = (*GATED, "time", IO_CHECK)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing of one run, in the baseline and now; `hint` says how to show the two.

    `change` is current / base - 1, None where either is absent or the base is 0. `repeat` tells runs of one
    implementation on one workload apart: 0 for the first. Of a check of IO the two values are deviations from
    the model, and there is no change.
    """

    kind: Kind
    tag: str
    impl: str
    workload: AttentionWorkload
    what: str
    status: CheckStatus
    reason: str
    base: float | None = None
    current: float | None = None
    change: float | None = None
    hint: Hint = "count"
    repeat: int = 0
    invalid: bool = False


def change(base: float | None, current: float | None) -> float | None:
    """current / base - 1; None where there is no such ratio."""
    return current / base - 1 if base and current is not None else None


def share(value: float) -> str:
    """A limit as people type it: `0.5%`."""
    return f"{value * 100:g}%"
