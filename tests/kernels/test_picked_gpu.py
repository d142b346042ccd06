"""`picked.attention` on a GPU: the kernels that run are those that it says, and the results are right."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from perfkit.kernels.attention import flash_hopper, hopper, picked  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
TILES = [[64, 64, 4, 2]] * 3


def kernels_of(attention: Callable[..., Any], *leaves: Any, **options: Any) -> list[str]:
    uses: list[Any] = []
    attention(*leaves, uses=uses, **options).sum().backward()
    return [use.kernel for use in uses]


@pytest.mark.parametrize("head_dim", [40, 64, 128, 192])
def test_kernels_follow_the_device(
    head_dim: int, make_case: Any, make_inputs: Callable[..., Any], assert_right: Any
) -> None:
    case = make_case(1, 4, 2, 300, 300, head_dim, True, "bfloat16")
    leaves = [t.requires_grad_() for t in make_inputs(case, "cuda")[:3]]
    on_hopper = torch.cuda.get_device_capability() == (9, 0)
    assert (hopper.refusal(*leaves) is None) == on_hopper
    found = kernels_of(picked.attention, *leaves, causal=True)
    assert found[0] == ("flash_hopper_forward" if on_hopper else "flash_forward")
    portable = ["flash_delta", "flash_dkdv", "flash_dq"]
    # 2 K/V heads of 3 blocks of keys, or 5: their query heads are dealt out.
    wide = head_dim > 128
    own = ["statistics", "dkdv_wide" if wide else "dkdv", "sum_of_parts", "dq" if wide else "dq_from_sum"]
    assert found[1:] == ([f"flash_hopper_{name}" for name in own] if on_hopper else portable)
    assert kernels_of(picked.attention, *leaves, causal=True, tiles=TILES) == ["flash_forward", *portable]
    assert_right(picked.attention, case, "cuda")


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="no GPU of compute capability 9.0",
)
def test_what_the_choice_refuses_the_kernel_does(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 2, 100, 100, 64), "cuda")
    padded = [torch.nn.functional.pad(t, (1, 2))[..., 1:-2] for t in (q, k, v)]
    for given in (
        padded,
        (q, k[:, :1].expand(-1, 2, -1, -1), v),
        (q.mT.contiguous().mT, k, v),
        [t.float() for t in (q, k, v)],
        [t[..., :36] for t in (q, k, v)],
    ):
        assert hopper.refusal(*given) is not None
        with pytest.raises(ValueError, match="flash"):
            flash_hopper.forward(*given)
    assert hopper.refusal(q, k, v) is None
    # What TMA cannot address, the portable kernels can.
    assert picked.attention(*padded).shape == q.shape
