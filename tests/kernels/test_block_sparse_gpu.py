"""Both block-sparse implementations on a GPU, against the float64 oracle and against dense attention."""

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import (  # noqa: E402
    block_sparse,
    block_sparse_backward,
    flash,
    flash_backward,
    sparse1,
)
from perfkit.kernels.attention.block_lists import block_lists  # noqa: E402
from perfkit.kernels.attention.shape import checked_shape  # noqa: E402
from perfkit.kernels.attention.use import KernelUse  # noqa: E402
from perfkit.measure.correctness import Inputs, Judge, callables, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
IMPLS = {"block-sparse": block_sparse.attention, "block-sparse1": sparse1.attention}
BOTH = pytest.mark.parametrize("attention", list(IMPLS.values()), ids=list(IMPLS))
HEAD_DIMS = [64, 128, 96, 256, 16, 40, 80, 192]
LENGTHS = [17, 64, 113, 128, 203, 256, 384, 511, 777, 1024, 1500]
PATTERNS = ["random:25%", "random:60%", "random:100%", "butterfly", "local:1", "local:0"]


def workload(pattern: str, n: int, **fields: Any) -> AttentionWorkload:
    sizes = {"heads": 2, "kv_heads": 2, "pass_": "fwd-bwd", **fields}
    return AttentionWorkload(seq_q=n, seq_k=n, pattern=pattern, **sizes)


def random_workload(number: int) -> AttentionWorkload:
    """The same for the same number; a third with grouped heads, a fifth with blocks smaller than a tile."""
    rng = random.Random(number)
    kv_heads = rng.choice([1, 2, 3])
    block = rng.choice([16, 32, 64, 64, 128, 128, 128, 256, 512, 1024])
    return workload(
        f"{PATTERNS[number % len(PATTERNS)]}@{block}",
        rng.choice(LENGTHS),
        batch=rng.choice([1, 2, 3]),
        heads=kv_heads * rng.choice([1, 1, 2, 4]),
        kv_heads=kv_heads,
        head_dim=HEAD_DIMS[number // len(PATTERNS) % len(HEAD_DIMS)],
        dtype=rng.choice(["fp16", "bf16"]),
    )


def assert_right(attention: Any, w: AttentionWorkload, inputs: Inputs | None = None) -> None:
    """The rule of all measurements: errors of O, dQ, dK, dV at most twice those of the eager path."""
    inputs = inputs or make_inputs(w, "cuda")
    _, result = callables(w, inputs, attention, None)
    require(w, Judge(w, inputs).errors(result()))


def named(w: AttentionWorkload) -> str:
    return f"{w.pattern}-{w.seq_q}-{w.head_dim}-{w.dtype}-{w.batch}x{w.heads}/{w.kv_heads}"


@pytest.mark.parametrize("w", [random_workload(number) for number in range(96)], ids=named)
def test_random_case(w: AttentionWorkload) -> None:
    assert_right(block_sparse.attention, w)


@pytest.mark.parametrize("w", [random_workload(number) for number in range(48, 96)], ids=named)
def test_random_case_of_the_first_order(w: AttentionWorkload) -> None:
    assert_right(sparse1.attention, w)


@BOTH
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("pattern", ["random:25%@128", "butterfly@64", "local:2@128"])
def test_long_odd_sequence(attention: Any, pattern: str, head_dim: int) -> None:
    assert_right(attention, workload(pattern, 4999, kv_heads=1, head_dim=head_dim))


@BOTH
def test_any_mask_and_strides(attention: Any) -> None:
    """A mask that is no pattern, rows of other lengths, tensors of [B, N, h, d]."""
    w = workload("local:0@64", 1000, batch=2, heads=4, dtype="fp16")
    made = make_inputs(w, "cuda")
    seen = torch.rand(16, 16, generator=torch.Generator().manual_seed(1)) < 0.3
    seen[0] = True
    seen[:, 5] = True
    given = {"blocks": seen.cuda(), "block": 64}
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (made.q, made.k, made.v, made.dout)]
    assert_right(attention, w, Inputs(*turned, given=given))


@BOTH
@pytest.mark.parametrize("head_dim", [64, 128])
def test_all_blocks_are_dense_attention(attention: Any, head_dim: int) -> None:
    w = workload("random:100%@128", 1500, heads=4, head_dim=head_dim, dtype="fp16")
    made = make_inputs(w, "cuda")
    leaves = [t.requires_grad_() for t in (made.q, made.k, made.v)]
    found = []
    for out in (attention(*leaves, **made.given), flash.attention(*leaves)):
        found.append((out, *torch.autograd.grad(out, leaves, made.dout)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


@BOTH
@pytest.mark.parametrize("n", [1024, 1500])
def test_same_bits_each_run(attention: Any, n: int) -> None:
    """For the first order: a read that comes too early, or from a stale line, would differ between runs."""
    made = make_inputs(workload("random:25%@64", n, batch=4, heads=8), "cuda")
    leaves = [t.requires_grad_() for t in (made.q, made.k, made.v)]
    runs = []
    for _ in range(4):
        out = attention(*leaves, **made.given)
        runs.append((out, *torch.autograd.grad(out, leaves, made.dout)))
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("n", [1024, 1500])
def test_pointers_and_descriptors_agree(n: int) -> None:
    if not flash.use_descriptors(torch.empty(1, 1, 16, 16, dtype=torch.float16, device="cuda")):
        pytest.skip("this GPU reads through pointers only")
    made = make_inputs(workload("random:40%@64", n, kv_heads=1, head_dim=96), "cuda")
    q, k, v = made.q, made.k, made.v
    lists = block_lists(checked_shape(q, k, v), made.given["blocks"], 64, False)
    found = []
    for descriptors in (False, True):
        out, lse = block_sparse.forward(q, k, v, lists, 64, descriptors=descriptors)
        given = (q, k, v, made.dout, lse, flash_backward.delta(out, made.dout), lists, 64)
        dk, dv = block_sparse_backward.dkdv(*given, descriptors=descriptors)
        found.append((out, lse, dk, dv, block_sparse_backward.dq(*given, descriptors=descriptors)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("attention", "kernels"),
    [
        (
            block_sparse.attention,
            ["block_sparse_forward", "flash_delta", "block_sparse_dkdv", "block_sparse_dq"],
        ),
        (sparse1.attention, ["sparse1_forward", "sparse1_backward"]),
    ],
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_use_is_recorded(attention: Any, kernels: list[str], head_dim: int) -> None:
    made = make_inputs(workload("random:25%@128", 1024, head_dim=head_dim), "cuda")
    uses: list[KernelUse] = []
    out = attention(made.q.requires_grad_(), made.k, made.v, uses=uses, **made.given)
    assert [use.kernel for use in uses] == kernels[:1]
    out.backward(made.dout)
    assert [use.kernel for use in uses] == kernels
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    for use in uses:
        assert 0 < use.registers <= 255
        assert 0 <= use.shared_bytes <= limit
        assert use.spills <= 8, use


def test_the_lists_are_made_once_and_the_second_call_does_not_wait() -> None:
    made = make_inputs(workload("random:25%@64", 512, pass_="fwd"), "cuda")
    attention = block_sparse.attention
    first = attention(made.q, made.k, made.v, **made.given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = attention(made.q, made.k, made.v, **made.given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)
