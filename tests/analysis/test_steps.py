"""The steps of `gpt2`: kernels by launch order, with made-up counters, and why there may be none."""

from typing import Any

import pytest

from perfkit.analysis.steps import steps
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import KernelCounts, Run


def make(kernels: list[KernelCounts], impl: str = "gpt2", **fields: Any) -> Run:
    shape: dict[str, Any] = {"heads": 1, "kv_heads": 1, "seq_q": 4, "seq_k": 6, "head_dim": 2}
    w = AttentionWorkload(**{**shape, "dtype": "fp16", **fields})
    return Run(impl=impl, workload=w, status="measured", kernels=tuple(kernels))


def counted(number: int, **values: float) -> KernelCounts:
    """Kernel k0, k1, ... of 1, 2, ... us, with 10 bytes read and 100 written a microsecond."""
    us = number + 1.0
    known = {"duration_ns": 1000 * us, "dram_read_bytes": 10 * us, "dram_write_bytes": 100 * us}
    return KernelCounts(name=f"k{number}", values={**known, **values})


def test_kernels_in_launch_order() -> None:
    run = make([counted(n) for n in range(14)], pass_="fwd-bwd", dropout=0.1, padding=3)
    found = steps(run)
    assert found.reason is None
    assert found.steps is not None
    assert [(step.name, step.kernels) for step in found.steps] == [
        ("padding mask", ("k0", "k1")),
        ("S = Q K^T", ("k2",)),
        ("S + mask", ("k3",)),
        ("P = softmax(S)", ("k4",)),
        ("P o Z", ("k5",)),
        ("O = (P o Z) V", ("k6",)),
        ("dV = (P o Z)^T dO", ("k7",)),
        ("dP = dO V^T", ("k8",)),
        ("dP o Z", ("k9",)),
        ("P o dP", ("k10",)),
        ("dS", ("k11",)),
        ("dQ = dS K", ("k12",)),
        ("dK = dS^T Q", ("k13",)),
    ]
    # 1 + ... + 14 = 105 us in all
    mask, softmax, dropout = found.steps[0], found.steps[3], found.steps[4]
    assert mask.time_s == pytest.approx(3e-6)
    assert mask.share == pytest.approx(3 / 105)
    assert (mask.read_measured, mask.write_measured) == (30, 300)  # of both kernels
    assert softmax.share == pytest.approx(5 / 105)
    assert (softmax.read_modelled, softmax.write_modelled) == (48, 48)  # S, P: 4 x 6 x 2 B
    assert (dropout.read_modelled, dropout.write_modelled) == (48, 48 + 24)  # P; P o Z and Z
    assert (dropout.read_measured, dropout.write_measured) == (60, 600)
    assert sum(step.share or 0 for step in found.steps) == pytest.approx(1)


def test_a_pass_without_mask_and_dropout() -> None:
    forward = steps(make([counted(n) for n in range(3)], pass_="fwd")).steps
    assert forward is not None
    assert [step.name for step in forward] == ["S = Q K^T", "P = softmax(S)", "O = P V"]
    backward = steps(make([counted(n) for n in range(6)], pass_="bwd")).steps
    assert backward is not None
    assert [step.name for step in backward] == [
        "dV = P^T dO", "dP = dO V^T", "P o dP", "dS", "dQ = dS K", "dK = dS^T Q"
    ]  # fmt: skip


def test_kernels_that_torch_splits_are_one_step() -> None:
    """2^32 bytes: P o dP is two kernels."""
    run = make(
        [counted(n) for n in range(7)], pass_="bwd", batch=16, heads=8, kv_heads=8, seq_q=4096, seq_k=4096
    )
    found = steps(run).steps
    assert found is not None
    assert [step.kernels for step in found] == [("k0",), ("k1",), ("k2", "k3"), ("k4",), ("k5",), ("k6",)]
    assert found[2].time_s == pytest.approx(7e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_kernels_is_none(count: int) -> None:
    found = steps(make([counted(n) for n in range(count)], pass_="fwd"))
    assert found.steps is None
    assert found.reason == f"{count} kernels were counted, and the steps are 3"


def test_what_has_no_steps() -> None:
    assert steps(make([], pass_="fwd")).reason == "no kernels were counted"
    other = steps(make([counted(n) for n in range(3)], impl="standard", pass_="fwd"))
    assert (other.steps, other.reason) == (None, "standard has no steps of its own")


def test_what_was_not_counted_is_absent_and_not_zero() -> None:
    kernels = [counted(n) for n in range(3)]
    kernels[1] = KernelCounts(name="k1", values={"duration_ns": 2000.0, "dram_read_bytes": 5.0})
    found = steps(make(kernels, pass_="fwd")).steps
    assert found is not None
    assert [step.write_measured for step in found] == [100, None, 300]
    assert [step.read_measured for step in found] == [10, 5, 30]
    kernels[1] = KernelCounts(name="k1", values={})
    found = steps(make(kernels, pass_="fwd")).steps
    assert found is not None
    assert [step.time_s is None for step in found] == [False, True, False]
    assert [step.share for step in found] == [None, None, None]  # of an unknown whole
