"""A device with round numbers, and runs with the numbers that a test gives them."""

from collections.abc import Callable
from typing import Any

import pytest

from perfkit.model.device import DeviceProfile
from perfkit.model.device_figures import Figure, Figures, LevelFigures, Memory, Peak
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Environment, Number, Record, Run, number, unavailable

MakeRun = Callable[..., Run]


def figure(value: Any) -> Any:
    return Figure(value=value, source="made up")


@pytest.fixture
def device() -> DeviceProfile:
    """At 1 GHz: 1e14 FLOP/s in bf16, 1e13 in fp32, 1.6e12 exp/s, 1e12 B/s of DRAM, 4e12 B/s of L2."""
    return DeviceProfile(
        name="round",
        model="Round",
        vendor="NVIDIA",
        architecture="Round",
        chip="R1",
        compute_capability="9.0",
        derived=True,
        peaks=(
            Peak(dtype="bf16", pipe="tensor", flop_per_s=1e14, flop_per_clock_per_sm=1000, source="made up"),
            Peak(dtype="fp32", pipe="vector", flop_per_s=1e13, flop_per_clock_per_sm=100, source="made up"),
        ),
        figures=Figures(
            sm_count=figure(100),
            boost_hz=figure(1e9),
            exp_per_clock_per_sm=figure(16),
            registers_bytes_per_sm=figure(262144),
            shared_bytes_per_block=figure(100000),
        ),
        memory=Memory(
            dram=LevelFigures(capacity_bytes=figure(10**11), bytes_per_s=figure(1e12)),
            l2=LevelFigures(capacity_bytes=figure(10**8), bytes_per_clock=figure(4000.0)),
            shared=LevelFigures(capacity_bytes=figure(100000), bytes_per_clock_per_sm=figure(128.0)),
        ),
        sources={"made up": "round numbers"},
    )


@pytest.fixture
def make_run() -> MakeRun:
    """(impl, status, workload fields as `w`, uses, notes by tag, numbers by tag) -> Run.

    A text instead of a number is the reason for its absence. Tags that end in `_modelled` or `_compulsory`,
    FLOPs and exps are modelled, the others measured.
    """

    def make(
        impl: str = "flash",
        status: Any = "measured",
        w: dict[str, Any] | None = None,
        uses: tuple[Any, ...] = (),
        notes: dict[str, str] | None = None,
        **values: float | str,
    ) -> Run:
        workload = AttentionWorkload(
            **{"heads": 1, "kv_heads": 1, "seq_q": 1024, "seq_k": 1024, "head_dim": 64, **(w or {})}
        )
        numbers: dict[str, Number] = {}
        for tag, value in values.items():
            modelled = tag.endswith(("_modelled", "_compulsory")) or tag in (
                "flops_convention", "flops_exact", "flops_issued", "exps", "launches"
            )  # fmt: skip
            numbers[tag] = (
                unavailable(tag, value)
                if isinstance(value, str)
                else number(tag, value, "modelled" if modelled else "measured", (notes or {}).get(tag))
            )
        return Run(impl=impl, workload=workload, status=status, numbers=numbers, uses=uses)

    return make


@pytest.fixture
def make_record(device: DeviceProfile) -> Callable[..., Record]:
    """(runs) -> a record of them on `device`."""

    def make(*runs: Run) -> Record:
        nothing = Environment(
            perfkit="0", python="3", os="none", cpu=None, gpu=None, driver=None, torch=None,
            cuda_runtime=None, cudnn=None, triton=None, command=["perfkit"],
            timestamp="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        return Record(op="attention", backend="cuda", device=device, environment=nothing, runs=runs)

    return make
