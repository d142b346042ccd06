"""A backend that measures nothing and answers exactly: for tests of whole outputs.

Time is 1.25 times the floor of FLOPs, DRAM or L2 bytes at 1500 MHz; counters repeat the model. All that it
gives is marked measured, because that is what the code after it must see.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from perfkit.measure.draft import Draft
from perfkit.measure.modelled import add_model
from perfkit.measure.options import Options
from perfkit.measure.session import Stage, Work
from perfkit.model.catalogue import load
from perfkit.model.device import DeviceProfile
from perfkit.ops.base import Op
from perfkit.record import Environment, Status, Timing

SLOWER: Final = 1.25
CLOCK_HZ: Final = 1.5e9


def open_fake(dtype: str, options: Options) -> "FakeBackend":  # noqa: ARG001
    """The fake backend on an H200's profile."""
    return FakeBackend()


class FakeBackend:
    """Deterministic numbers on the profile of any device."""

    name = "fake"
    hardware: str | None = None
    missing = "not faked"
    status: Status = "measured"
    notes: tuple[str, ...] = ("fake backend: no number here was measured",)

    def __init__(self, profile: DeviceProfile | None = None) -> None:
        self.profile = profile or load("h200-141gb-sxm")

    def environment(self) -> Environment:
        """The same on every machine."""
        return Environment(
            perfkit="0", python="3", os="none", cpu=None, gpu=self.profile.model, driver="0", torch="0",
            cuda_runtime="0", cudnn="0", triton="0",
            command=["perfkit"], timestamp="2026-01-01T00:00:00+00:00",
        )  # fmt: skip

    def prepare(self, op: Op, draft: Draft, stage: Stage) -> Work:
        """The model of the run."""
        stage("pretending")
        add_model(op, draft, self.profile)
        return None

    def time(self, drafts: Sequence[Draft], works: Sequence[Work], stage: Stage) -> None:  # noqa: ARG002
        """The same time in every sample."""
        for draft in drafts:
            time_s = SLOWER * self._floor(draft)
            draft.timing = Timing(
                samples_s=[time_s] * 10,
                clock_hz=[CLOCK_HZ] * 10,
                clock_source="probe",
                median_s=time_s,
                ci_low_s=time_s,
                ci_high_s=time_s,
                stop_reason="fake",
                converged=True,
                cold=True,
                graph=False,
                launch_hidden=True,
                dropped=0,
                warmup_s=0.0,
                interleaved=len(drafts) > 1,
            )
            self._put(draft, {"time": time_s, "time_low": time_s * 0.99, "time_high": time_s * 1.01,
                              "clock": CLOCK_HZ, "power": 500.0, "energy": 500.0 * time_s})  # fmt: skip

    def _floor(self, draft: Draft) -> float:
        value = {tag: number.value or 0 for tag, number in draft.numbers.items()}
        dtype = draft.workload.dtype
        rates = (self.profile.ceiling(dtype, pipe, CLOCK_HZ) for pipe in ("tensor", "vector"))
        peak = next((rate for rate in rates if rate), 1e12)
        dram = self.profile.level("dram").bandwidth() or 1e12
        moved = value["dram_read_modelled"] + value["dram_write_modelled"]
        l2 = self.profile.level("l2").bandwidth(CLOCK_HZ) or math.inf
        issued = value["l2_read_modelled"] + value["l2_write_modelled"]
        return max((value["flops_issued"] or value["flops_convention"]) / peak, moved / dram, issued / l2)

    def examine(self, op: Op, draft: Draft, work: Work, stage: Stage) -> None:  # noqa: ARG002
        """Counters that repeat the model."""
        value = {tag: number.value or None for tag, number in draft.numbers.items()}
        self._put(draft, {
            "peak_memory": 1e9, "error": 1e-3, "eager_error": 2e-3,
            "dram_read": value["dram_read_modelled"], "dram_write": value["dram_write_modelled"],
            "l2_read": value["l2_read_modelled"], "l2_write": value["l2_write_modelled"],
            "flops_tensor": value["flops_issued"], "exps_measured": value["exps"] or 0,
        })  # fmt: skip

    def _put(self, draft: Draft, given: Mapping[str, float | None]) -> None:
        for tag, value in given.items():
            draft.put(tag, value, "measured", note="fake: settled", absent="not faked")
