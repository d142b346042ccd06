"""A backend that measures nothing and answers exactly: for tests of whole outputs.

Time is 1.25 times the floor of FLOPs or DRAM bytes at 1500 MHz; counters repeat the model. Everything that it
gives is marked measured, because that is what the code after it must see.
"""

from perfkit.measure.draft import Draft
from perfkit.measure.modelled import add_model
from perfkit.measure.options import Options
from perfkit.measure.session import Stage
from perfkit.model.catalogue import load
from perfkit.model.device import DeviceProfile
from perfkit.ops.base import Op
from perfkit.record import Environment, Status, Timing

SLOWER = 1.25


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

    def measure(self, op: Op, draft: Draft, stage: Stage) -> None:
        """Numbers from the model as if counters and clocks had given them."""
        stage("pretending")
        add_model(op, draft, self.profile)
        value = {tag: number.value or 0 for tag, number in draft.numbers.items()}
        clock = 1.5e9
        dtype = draft.workload.dtype
        peak = self.profile.ceiling(dtype, "tensor", clock) or self.profile.ceiling(dtype, "vector", clock)
        dram = self.profile.level("dram").bandwidth() or 1e12
        moved = value["dram_read_modelled"] + value["dram_write_modelled"]
        flops = value["flops_issued"] or value["flops_convention"]
        time_s = SLOWER * max(flops / (peak or 1e12), moved / dram)
        draft.timing = Timing(
            samples_s=[time_s] * 10,
            clock_hz=[clock] * 10,
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
        )
        for tag, given in {
            "time": time_s, "time_low": time_s * 0.99, "time_high": time_s * 1.01,
            "clock": clock, "power": 500.0,
            "energy": 500.0 * time_s, "peak_memory": 1e9, "error": 1e-3, "eager_error": 2e-3,
            "dram_read": value["dram_read_modelled"] or None,
            "dram_write": value["dram_write_modelled"] or None,
            "l2_read": value["l2_read_modelled"] or None, "l2_write": value["l2_write_modelled"] or None,
            "flops_tensor": value["flops_issued"] or None, "exps_measured": value["exps"],
        }.items():  # fmt: skip
            draft.put(tag, given, "measured", note="fake: settled", absent="not faked")
