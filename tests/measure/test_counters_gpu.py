"""Counters on a real GPU, against traffic and operation counts that are known."""

from typing import Any

import pytest

from perfkit.measure.counters import CounterReading, collect, self_check
from perfkit.measure.permission import counter_permission

torch = pytest.importorskip("torch")
PERMISSION = counter_permission()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    pytest.mark.skipif(PERMISSION.allowed is False, reason=PERMISSION.reason),
]
MIB = 2**20


def count(fn: Any, **options: Any) -> CounterReading:
    fn()
    torch.cuda.synchronize()
    return collect(fn, dtype="bf16", **options)


def test_a_copy_of_known_size_is_counted_within_one_percent() -> None:
    check = self_check()
    assert check.ok, check.reason
    assert set(check.measured) == set(check.expected)


def test_writes_that_stay_in_l2_are_settled() -> None:
    # 8 MiB fit L2 many times over: none need be in DRAM when the kernel ends, all are when settled.
    out = torch.empty(8 * MIB // 4, device="cuda")
    reading = count(lambda: out.fill_(1.0), groups=("core",))
    assert reading.totals["l2_write_bytes"] == pytest.approx(8 * MIB, rel=0.01)
    assert reading.totals["dram_write_bytes"] == pytest.approx(8 * MIB, rel=0.05)
    assert reading.totals["dram_read_bytes"] < 0.1 * MIB


def test_a_matmul_executes_exactly_its_flops() -> None:
    a, b = (torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    reading = count(lambda: a @ b, groups=("core",))
    assert reading.totals["tensor_flop"] == 2 * 4096**3


def test_kernel_names_come_in_launch_order() -> None:
    x = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)
    reading = count(lambda: torch.softmax(x @ x, -1).neg_(), groups=("core",))
    assert reading.notes == ()
    names = [kernel.name.lower() for kernel in reading.kernels]
    assert "softmax" in names[-2]
    assert "elementwise" in names[-1]
    flops = [kernel.values["tensor_flop"] for kernel in reading.kernels]
    assert flops[0] == 2 * 1024**3
    assert flops[-2:] == [0.0, 0.0]


def test_kernels_launched_by_autograds_thread_are_seen() -> None:
    a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    b = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    product = a @ b
    grad = torch.randn_like(product)

    def backward() -> None:
        torch.autograd.grad(product, (a, b), grad, retain_graph=True)

    reading = count(backward)
    assert reading.notes == ()
    assert reading.totals["tensor_flop"] == 2 * 2 * 2048**3  # two products of the forward's size


def test_fp32_operations_are_counted() -> None:
    x = torch.randn(4 * MIB, device="cuda")
    y = torch.empty_like(x)
    reading = count(lambda: torch.add(x, 1.0, out=y), groups=("core", "flops"))
    # An fp32 addition an element; addressing is integer work. alpha may turn the addition into an FFMA.
    assert reading.totals["vector_flop"] in (4 * MIB, 2 * 4 * MIB)
