"""The Gluon kernels on a Hopper GPU: random sizes and strides, forward and backward, and the same bits twice.

A test is a group of cases that share compiled kernels: one head dim, dtype and mask, few kinds of lengths.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton.experimental.gluon")

from perfkit.kernels.attention import hopper  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no GPU of compute capability 9.0",
    ),
]
ODD = [2, 17, 63, 65, 113, 193, 203, 511, 777, 1001, 1500]
WHOLE = [16, 64, 128, 192, 256, 384, 640, 1024, 1280]
#: Triton compiles kernels anew for lengths that are multiples of 16, and for 1.
KINDS = [(ODD, ODD), (WHOLE, WHOLE), (ODD, WHOLE), ([1], ODD), (WHOLE, ODD), (ODD, [1])]

#: Head dim, dtype, causal, number of cases. Other dims than the usual ones take turns at dtype and mask.
USUAL = (64, 96, 128, 192, 256)
OTHERS = (16, 24, 32, 40, 48, 56, 72, 80, 88, 104, 112, 120, 136, 160, 184, 200, 224, 248)
GROUPS = [
    *((d, dtype, causal, 12) for d in USUAL for dtype in ("float16", "bfloat16") for causal in (False, True)),
    *((d, ("float16", "bfloat16")[at // 2 % 2], at % 2 == 0, 4) for at, d in enumerate(OTHERS)),
]
assert sum(count for *_, count in GROUPS) == 20 * 12 + 18 * 4


@pytest.mark.parametrize("number", range(len(GROUPS)), ids=[f"{d}-{t}-{c}" for d, t, c, _ in GROUPS])
def test_random_cases(number: int, random_group: Any, assert_right: Callable[..., None]) -> None:
    """O, dQ, dK and dV; outputs are poisoned, and so is what lies around q, k and v.

    All but dQ have the same bits each time, and dQ too if `deterministic` or above a head dim of 128.
    """
    head_dim, dtype, causal, count = GROUPS[number]
    lengths = [KINDS[0]] * (count // 2) + [KINDS[1 + number % 5]] * (count // 2)
    wrong = []
    for seed, case in enumerate(random_group(head_dim, dtype, causal, lengths, pooled=0.3)):
        for deterministic in (False, True):
            attention = functools.partial(hopper.attention, deterministic=deterministic)
            fixed = {"out", "dk", "dv", *(["dq"] if deterministic or head_dim > 128 else [])}
            try:
                assert_right(attention, case, "cuda", seed, fixed)
            except AssertionError as error:
                wrong.append(f"deterministic={deterministic} {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_keys_of_one_sequence_for_all_are_refused(
    head_dim: int, make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    """Strides of 0: the portable kernels take them (see test_flash_gpu.py)."""
    q, k, v, _ = make_inputs(make_case(3, 4, 2, 200, 300, head_dim, order="one batch"), "cuda")
    assert k.stride(0) == v.stride(0) == 0
    with pytest.raises(ValueError, match="none 0"):
        hopper.attention(q, k, v)
