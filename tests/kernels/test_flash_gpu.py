"""The flash kernels and torch's own on a GPU, against the float64 oracle."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import (  # noqa: E402
    flash,
    flash_backward,
    flex,
    reference,
    sdpa,
    standard,
)
from perfkit.kernels.attention.use import KernelUse  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
HEAD_DIMS = [16, 24, 32, 48, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256]
LENGTHS = [1, 2, 17, 64, 113, 128, 203, 256, 384, 511, 777, 1024, 1500]
ODD, WHOLE = [n for n in LENGTHS if n > 1 and n % 16], [n for n in LENGTHS if n % 16 == 0]
#: Triton compiles kernels anew for lengths that are multiples of 16, and for 1.
KINDS = [(ODD, ODD), (WHOLE, WHOLE), (ODD, WHOLE), ([1], ODD), (WHOLE, ODD), (ODD, [1])]
#: Head dim, dtype, causal: each of the masks with each of the dtypes at every other head dim.
GROUPS = [
    (d, ("float16", "bfloat16")[(at + causal) % 2], bool(causal))
    for at, d in enumerate(HEAD_DIMS)
    for causal in (0, 1)
]


def cases_of(number: int, random_group: Callable[..., Any]) -> Any:
    """Four cases that share compiled kernels; every third group reads through pointers, for a stride of 0."""
    strides = {"orders": ["one batch"] * 9, "pooled": 0.5} if number % 3 == 2 else {}
    return random_group(*GROUPS[number], [KINDS[number % len(KINDS)]] * 4, **strides)


@pytest.mark.parametrize("number", range(len(GROUPS)), ids=[f"{d}-{t}-{c}" for d, t, c in GROUPS])
def test_random_cases(number: int, random_group: Any, assert_right: Any) -> None:
    """All have the same bits in a second run; outputs are poisoned, and so is what lies around q, k and v."""
    for seed, case in enumerate(cases_of(number, random_group)):
        assert_right(flash.attention, case, "cuda", seed, {"out", "dq", "dk", "dv"})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_long_odd_sequence(head_dim: int, causal: bool, make_case: Any, assert_right: Any) -> None:
    case = make_case(1, 2, 1, 5000, 5000, head_dim, causal, "bfloat16", rows_first=True)
    assert_right(flash.attention, case, "cuda")


@pytest.mark.parametrize("number", range(12))
def test_pointers_and_descriptors_agree(
    number: int, random_case: Any, make_inputs: Callable[..., Any]
) -> None:
    if not flash.use_descriptors(torch.empty(1, 1, 16, 16, dtype=torch.float16, device="cuda")):
        pytest.skip("this GPU reads through pointers only")
    case = random_case(1000 + number, HEAD_DIMS, LENGTHS)
    q, k, v, dout = make_inputs(case, "cuda")
    results = []
    for descriptors in (False, True):
        out, lse = flash.forward(q, k, v, case.causal, case.scale, descriptors=descriptors)
        delta = flash_backward.delta(out, dout)
        arguments = (q, k, v, dout, lse, delta, case.causal, case.scale)
        dk, dv = flash_backward.dkdv(*arguments, descriptors=descriptors)
        results.append((out, lse, dk, dv, flash_backward.dq(*arguments, descriptors=descriptors)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_misaligned_strides_fall_back_to_pointers(make_case: Any, assert_right: Any) -> None:
    case = make_case(1, 2, 2, 150, 150, 64, True, "bfloat16")

    def shifted(q: Any, k: Any, v: Any, **options: Any) -> Any:
        def misalign(t: Any) -> Any:
            wide = torch.nn.functional.pad(t, (1, 2))  # rows of 67 elements, the first at 2 bytes
            return wide[..., 1:-2]

        return flash.attention(misalign(q), misalign(k), misalign(v), **options)

    assert_right(shifted, case, "cuda")


def test_broadcast_gradient_and_keys(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(2, 4, 4, 100, 130, 64, False, "float16"), "cuda")
    k, v = (t[:1, :1].expand(2, 4, -1, -1) for t in (k, v))  # strides 0
    leaves = [t.requires_grad_() for t in (q, k.detach(), v.detach())]
    out = flash.attention(*leaves)
    gradients = torch.autograd.grad(out.sum(), leaves)  # dO with strides 0
    exact = reference.backward(*leaves, torch.ones_like(out))
    for got, right in zip(gradients, exact, strict=True):
        assert (got - right).norm() <= 5e-3 * right.norm() + 1e-3


def test_same_bits_each_run(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, dout = make_inputs(make_case(2, 4, 2, 777, 777, 128, True, "bfloat16"), "cuda")
    leaves = [t.requires_grad_() for t in (q, k, v)]
    runs = []
    for _ in range(3):
        out = flash.attention(*leaves, causal=True)
        runs.append((out, *torch.autograd.grad(out, leaves, dout)))
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_log_sum_exp(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 1, 300, 200, 96, True, "float16"), "cuda")
    _, lse = flash.forward(q, k, v, causal=True)
    assert (lse[:, :, :100] == float("-inf")).all()
    torch.testing.assert_close(lse.double(), reference.forward(q, k, v, True)[1], rtol=1e-5, atol=1e-4)


def test_use_is_recorded(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, dout = make_inputs(make_case(1, 2, 2, 512, 512, 128, False, "bfloat16"), "cuda")
    uses: list[KernelUse] = []
    out = flash.attention(q.requires_grad_(), k, v, uses=uses)
    assert [use.kernel for use in uses] == ["flash_forward"]
    out.backward(dout)
    assert [use.kernel for use in uses] == ["flash_forward", "flash_delta", "flash_dkdv", "flash_dq"]
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    for use in uses:
        assert 0 < use.registers <= 255
        assert 0 <= use.shared_bytes <= limit
        assert use.spills == 0, use


def test_other_gpu_than_the_current_one(make_case: Any, assert_right: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    assert_right(flash.attention, make_case(head_dim=64, dtype="bfloat16"), "cuda:1")


PEERS = [  # function, kv_heads of 4 heads, seq_q, seq_k, causal
    *((peer, 4, 256, 256, causal) for causal in (False, True)
      for peer in (sdpa.flash, sdpa.cudnn, sdpa.efficient, sdpa.math, sdpa.default)),
    *((peer, 2, 256, 256, True) for peer in (sdpa.flash, sdpa.cudnn, sdpa.math, sdpa.default)),
    *((peer, 4, 128, 384, True) for peer in (sdpa.flash, sdpa.efficient, sdpa.math, sdpa.default)),
    (sdpa.flash, 2, 128, 384, True), (sdpa.math, 4, 384, 128, True),
    (standard.attention, 2, 203, 113, True),
    (flex.attention, 4, 256, 256, False), (flex.attention, 2, 256, 256, True),
    (flex.attention, 4, 128, 384, True),
]  # fmt: skip


@pytest.mark.parametrize(("peer", "kv_heads", "seq_q", "seq_k", "causal"), PEERS)
def test_peer_matches_the_oracle(
    peer: Any, kv_heads: int, seq_q: int, seq_k: int, causal: bool,
    make_case: Any, make_inputs: Callable[..., Any],
) -> None:  # fmt: skip
    case = make_case(2, 4, kv_heads, seq_q, seq_k, 64, causal, "bfloat16")
    q, k, v, dout = make_inputs(case, "cuda")
    exact = (reference.forward(q, k, v, causal)[0], *reference.backward(q, k, v, dout, causal))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = peer(*leaves, causal=causal)
    for got, right in zip((out, *torch.autograd.grad(out, leaves, dout)), exact, strict=True):
        assert (got - right).norm() <= 1.5e-2 * right.norm()
