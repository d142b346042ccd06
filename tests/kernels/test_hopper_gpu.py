"""The Gluon kernels on a Hopper GPU, against the float64 oracle: larger sizes, every tile, and the edges.

Random sizes and strides are in test_hopper_random_gpu.py, races in test_hopper_repeats_gpu.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton.experimental.gluon")

from perfkit.kernels.attention import flash, flash_hopper, hopper, reference, tiles  # noqa: E402
from perfkit.kernels.attention.tiles import (  # noqa: E402
    HopperTile,
    hopper_backward_tile,
    hopper_dkdv_shared_bytes,
    hopper_dq_shared_bytes,
    hopper_shared_bytes,
    hopper_tile,
)
from perfkit.kernels.attention.use import KernelUse  # noqa: E402
from perfkit.measure.correctness import Judge, callables, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no GPU of compute capability 9.0",
    ),
]
HEAD_DIMS = [64, 128, 96, 192, 256, 40]
#: Head dim -> tiles with either number of warpgroups: for programs of one tile, and for persistent ones with
#: one and two tiles of Q in shared memory.
TILES = [
    *(
        (64, HopperTile(3, 128, stages, *how))
        for stages in (2, 3)
        for how in ((1, False), (1, True), (2, True))
    ),
    *((64, HopperTile(2, 128, 3, *how)) for how in ((1, False), (2, True))),
    *((128, HopperTile(2, 128, 2, *how)) for how in ((1, False), (1, True), (2, True))),
    *((96, HopperTile(2, 128, *how)) for how in ((2, 1, False), (2, 2, True), (3, 2, True))),
    *((192, HopperTile(2, 64, *how)) for how in ((3, 1, False), (3, 1, True), (2, 2, True))),
    (256, HopperTile(2, 64, 2)),
]


WORKLOADS = [  # batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, dtype
    (2, 8, 8, 2048, 2048, 64, False, "bf16"),
    (2, 8, 2, 2047, 2047, 64, True, "fp16"),
    (2, 8, 8, 2048, 2048, 128, False, "fp16"),
    (2, 8, 2, 2047, 2047, 128, True, "bf16"),
    (1, 4, 1, 1500, 3001, 128, True, "bf16"),
    (1, 4, 2, 3001, 1500, 64, True, "fp16"),
    (1, 4, 4, 1000, 1000, 256, True, "bf16"),
    (1, 10, 5, 1500, 1500, 192, True, "bf16"),
    (1, 12, 4, 777, 1024, 96, False, "bf16"),
]


@pytest.mark.parametrize("pass_", ["fwd", "fwd-bwd"])
@pytest.mark.parametrize("sizes", WORKLOADS, ids=str)
def test_no_worse_than_twice_the_eager_error(sizes: tuple[Any, ...], pass_: Any) -> None:
    batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, dtype = sizes
    w = AttentionWorkload(
        batch=batch, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim,
        causal=causal, dtype=dtype, pass_=pass_,
    )  # fmt: skip
    inputs = make_inputs(w, "cuda", seed=seq_q)
    _, results = callables(w, inputs, hopper.attention, None)
    produced = results()
    assert (produced[0].shape, produced[0].dtype) == (inputs.q.shape, inputs.q.dtype)
    require(w, Judge(w, inputs).errors(produced))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("head_dim", "tile"), TILES, ids=str)
def test_every_tile_is_right(
    head_dim: int, tile: HopperTile, causal: bool, make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    """More tiles than multiprocessors, so that a persistent program has several; some rows see no key."""
    q, k, v, _ = make_inputs(make_case(2, 24, 8, 1100, 901, head_dim, causal, rows_first=True), "cuda")
    out, lse = flash_hopper.forward(q, k, v, causal, tile=tile)
    exact, exact_lse = reference.forward(q, k, v, causal)
    assert (out - exact).abs().max() < 4e-3
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_gradients_that_tma_cannot_address(
    head_dim: int, deterministic: bool, make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    """dO of a sum has strides of 0, of a product with a transposed tensor its last one is not 1, and a dense
    one need not begin at a multiple of 16 bytes."""
    q, k, v, dout = make_inputs(make_case(2, 4, 2, 300, 200, head_dim, True, "bfloat16"), "cuda")
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = hopper.attention(*leaves, causal=True, deterministic=deterministic)
    expanded = dout[:, :, :1, :1].expand_as(dout)
    transposed = dout.mT.contiguous().mT
    off = torch.empty(dout.numel() + 1, dtype=dout.dtype, device=dout.device)[1:].view(dout.shape)
    off.copy_(dout)
    for strided in (expanded, transposed, off):
        dense = strided.clone(memory_format=torch.contiguous_format)
        found = torch.autograd.grad(out, leaves, strided, retain_graph=True)
        wanted = torch.autograd.grad(out, leaves, dense, retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            largest = other.abs().max().item()
            torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-3 * largest)


@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
def test_shares_of_a_group_add_up(
    head_dim: int, make_case: Any, assert_right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 query heads of 2, and 3 blocks of 128 keys or 6 of 64: 6 or 12 programs, in 1, 2 and 4 shares."""
    blocks = 12 if head_dim > 128 else 6
    for programs in (blocks, 2 * blocks, 1056):
        monkeypatch.setattr(tiles, "HOPPER_PROGRAMS", programs)
        case = make_case(1, 8, 2, 300, 333, head_dim, True, "bfloat16")
        for deterministic in (False, True):
            assert_right(functools.partial(hopper.attention, deterministic=deterministic), case, "cuda")


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_rows_that_see_no_key(head_dim: int, make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 1, 700, 200, head_dim, True), "cuda")
    out, lse = flash_hopper.forward(q, k, v, True)
    assert (out[:, :, :500] == 0).all()
    assert (lse[:, :, :500] == float("-inf")).all()
    torch.testing.assert_close(lse.double(), reference.forward(q, k, v, True)[1], rtol=1e-5, atol=1e-4)


def test_statistics_are_those_of_the_portable_kernel(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    """Either path's backward can read what the forward of the other one wrote."""
    q, k, v, _ = make_inputs(make_case(2, 4, 2, 1000, 1000, 128, True, "bfloat16"), "cuda")
    ours, theirs = flash_hopper.forward(q, k, v, True)[1], flash.forward(q, k, v, True)[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 2, 300, 300, 64, False, "bfloat16"), "cuda")
    out, lse = flash_hopper.forward(q * 100, k * 100, v)
    assert out.isfinite().all()
    assert lse.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_use_is_recorded(
    head_dim: int, causal: bool, make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    case = make_case(1, 2, 2, 512, 512, head_dim, causal, "bfloat16")
    q, k, v, dout = make_inputs(case, "cuda")
    uses: list[KernelUse] = []
    out = hopper.attention(q.requires_grad_(), k, v, causal=causal, uses=uses)
    (use,) = uses
    held = hopper_tile(head_dim, causal).held
    assert use[:5] == ("flash_hopper_forward", *held)
    assert 0 < use.shared_bytes - hopper_shared_bytes(held, head_dim) <= 1024
    assert use.registers in (128, 168)
    out.backward(dout)
    statistics, dkdv, last = uses[1:]
    assert statistics[:5] == ("flash_hopper_statistics", 64, 0, 4, 1)
    tile = hopper_backward_tile(head_dim, causal)
    held = tile.held
    assert tile.kernel == ("flash_hopper_dkdv" if head_dim <= 128 else "flash_hopper_dkdv_wide")
    assert dkdv[:5] == (tile.kernel, *held)
    assert 0 < dkdv.shared_bytes - hopper_dkdv_shared_bytes(held, head_dim) <= 1024
    # 65536 registers for the threads of 12 warps, in steps of 8, or of 16 where one warpgroup has dQ alone.
    assert (dkdv.num_warps, dkdv.registers) == ((16, 128) if head_dim <= 64 else (12, 168))
    if head_dim > 128:
        assert last[:5] == ("flash_hopper_dq", *tile.held_dq)
        assert 0 < last.shared_bytes - hopper_dq_shared_bytes(tile.held_dq, head_dim) <= 1024
        return
    rows = 128 if head_dim <= 64 else 64  # a tile of the sum is 8192 numbers
    assert last[:5] == ("flash_hopper_dq_from_sum", rows, 0, 4, 1)


@pytest.mark.parametrize("head_dim", [40, 128, 192])
def test_use_of_fixed_sums(head_dim: int, make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, dout = make_inputs(make_case(1, 2, 2, 512, 512, head_dim, True, "bfloat16"), "cuda")
    uses: list[KernelUse] = []
    out = hopper.attention(q.requires_grad_(), k, v, causal=True, deterministic=True, uses=uses)
    out.backward(dout)
    tile = hopper_backward_tile(head_dim, causal=True, deterministic=True)
    assert [use.kernel for use in uses[1:]] == ["flash_hopper_statistics", tile.kernel, "flash_hopper_dq"]
    assert uses[3][1:5] == tile.held_dq


def test_what_it_cannot_serve_is_refused(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 2, 100, 100, 64), "cuda")
    refused = functools.partial(pytest.raises, ValueError)
    with refused(match="16-byte aligned"):
        hopper.attention(*(torch.nn.functional.pad(t, (1, 2))[..., 1:-2] for t in (q, k, v)))
    with refused(match="none 0"):
        hopper.attention(q, k[:, :1].expand(-1, 2, -1, -1), v)
    with refused(match="float16 and bfloat16"):
        hopper.attention(q.float(), k.float(), v.float())
    with refused(match="head dims 16 to 256"):
        hopper.attention(q[..., :36], k[..., :36], v[..., :36])


def test_other_gpu_than_the_current_one(make_case: Any, assert_right: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    assert_right(hopper.attention, make_case(head_dim=64, dtype="bfloat16"), "cuda:1")
