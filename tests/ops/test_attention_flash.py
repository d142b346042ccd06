"""`flash` picks between the portable kernels and those for Hopper: which path, and whose model."""

from typing import Any

import pytest

from perfkit.model.catalogue import load
from perfkit.ops import attention_flash as flash
from perfkit.ops import attention_hopper as hopper
from perfkit.ops import attention_io as io
from perfkit.ops import find_op
from perfkit.ops.attention_tiles import with_tiles
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Uses
from perfkit.ops.plan import planned

H200, A100, B200, MI300X = (
    load(name) for name in ("h200-141gb-sxm", "a100-80gb-sxm", "b200-180gb-sxm", "mi300x")
)
PASSES = ("fwd", "bwd", "fwd-bwd")


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(**{"heads": 2, "kv_heads": 2, "seq_q": 500, "seq_k": 500, **fields})


def row(name: str = "flash", op: str = "attention") -> Implementation:
    found = find_op(op).implementation(name)
    assert found is not None
    return found


def kernels(uses: Uses) -> list[str]:
    return [use.kernel for use in uses]


def test_the_rows() -> None:
    assert [one.name for one in flash.FLASH] == ["flash", "flash-triton", "flash-hopper"]
    assert [one.named_only for one in flash.FLASH] == [False, True, True]
    targets = [one.target.removeprefix("perfkit.kernels.attention.") for one in flash.FLASH]
    assert targets == ["picked:attention", "flash:attention", "hopper:attention"]


@pytest.mark.parametrize("head_dim", [16, 64, 128, 136, 256])
def test_the_plan_follows_the_device(head_dim: int) -> None:
    w = make(head_dim=head_dim)
    assert planned(row(), w, H200) == hopper.hopper_plan(w, (9, 0))
    assert kernels(planned(row(), w, H200))[0] == "flash_hopper_forward"
    for device in (A100, B200, MI300X):
        assert planned(row(), w, device) == planned(row("flash-triton"), w, device)
        assert not flash.by_hopper(planned(row(), w, device))
    # Hopper's instructions are those of 9.0 alone.
    assert row().plan is not None
    assert kernels(row().plan(w, (9, 1)))[0] == kernels(row().plan(w, (10, 0)))[0] == "flash_forward"


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [40, 128, 192])
def test_the_model_is_that_of_the_kernels_that_ran(head_dim: int, causal: bool, pass_: str) -> None:
    """The device is not asked: portable kernels on an H200 are held against their own ledger."""
    w = make(head_dim=head_dim, causal=causal, pass_=pass_)
    picked = row().io
    assert picked is not None
    for name in ("flash-triton", "flash-hopper"):
        of = row(name)
        assert of.plan is not None
        assert of.io is not None
        uses = of.plan(w, (9, 0))
        for formula in ("ledger", "tiled", "issued_flops", "exps", "extra_flops", "launches"):
            assert getattr(picked, formula)(w, uses) == getattr(of.io, formula)(w, uses), formula
        for device in (H200, A100):
            assert picked.dram(w, uses, device) == of.io.dram(w, uses, device)
            assert picked.zeros(w, uses, device) == of.io.zeros(w, uses, device)
        assert (picked.level, picked.source) == (of.io.level, of.io.source)


def test_paths_differ_where_they_should() -> None:
    """d 64, N 500: blocks of 192 rows read K and V 3 times, of 64 rows 8 times."""
    w = make(head_dim=64)
    model = row().io
    assert model is not None
    moved = [
        {m.tensor: m.traffic.read_bytes for m in model.ledger(w, planned(row(name), w, H200))}
        for name in ("flash-hopper", "flash-triton")
    ]
    tensor = 2 * 500 * 64 * 2
    assert [one["K"] for one in moved] == [3 * tensor, 8 * tensor]
    backward = make(head_dim=64, pass_="bwd")
    launches = [model.launches(backward, planned(row(name), w, H200)) for name in ("flash", "flash-triton")]
    assert launches == [3, 3]
    # No tiles at all, as in the trials of a sweep: those of the portable kernels can be chosen.
    assert model.tiled(backward, ()) == ("flash_dkdv", "flash_dq")


def test_above_128_the_hopper_path_has_a_backward_of_its_own() -> None:
    w = make(head_dim=192, pass_="fwd-bwd")
    uses = planned(row(), w, H200)
    assert kernels(uses) == ["flash_hopper_forward", "flash_hopper_dkdv_wide", "flash_hopper_dq"]
    model = row().io
    assert model is not None
    assert model.tiled(w, uses) == tuple(kernels(uses))
    assert model.launches(w, uses) == 1 + 3
    # Each kernel of its backward alone tells the path too.
    assert flash.by_hopper(uses[1:2])
    assert flash.by_hopper(uses[2:])


@pytest.mark.parametrize("head_dim", [64, 192])
@pytest.mark.parametrize("name", ["flash-triton", "flash-hopper"])
def test_kernels_that_did_not_run_are_of_the_path_that_did(name: str, head_dim: int) -> None:
    """Without Gluon `flash` runs the portable kernels on an H200: so would its backward have."""
    w = make(head_dim=head_dim, pass_="fwd-bwd")
    whole = planned(row(name), w, H200)
    assert planned(row(), w, H200, whole[:1]) == whole
    # Others have one path.
    assert planned(row("flash1"), w, H200, whole[:1]) == planned(row("flash1"), w, H200)


def test_tiles_that_are_asked_for_are_portable() -> None:
    w = make(head_dim=64)
    chosen = with_tiles(row(), w, H200, 32, None)
    assert chosen.target.endswith("picked:attention")
    assert chosen.options["tiles"][0][:2] == [32, 128]
    uses = planned(chosen, w, H200)
    assert (uses[0].kernel, uses[0].block_m) == ("flash_forward", 32)
    # Also where the forward kernel ran with them and the backward failed.
    assert planned(chosen, w, H200, uses[:1]) == uses
    assert uses == planned(with_tiles(row("flash-triton"), w, H200, 32, None), w, H200)
    assert with_tiles(row(), w, H200, None, None) is row()


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("head_dim", [64, 192])
def test_workspace_is_enough_for_either(head_dim: int, pass_: str) -> None:
    w = make(head_dim=head_dim, pass_=pass_)
    both = [row(name).workspace(w) for name in ("flash-triton", "flash-hopper")]
    assert row().workspace(w) == max(both)
    if pass_ == "bwd" and head_dim == 64:  # the sum of dQ in fp32
        assert both[1] > both[0]


def test_what_cannot_be_counted() -> None:
    w = make()
    reason = row().not_counted(w, (9, 0))
    assert reason == (
        "Triton's interpreter cannot execute Gluon, in which its kernels are written for this device; "
        "the portable ones can be counted: --impl flash-triton"
    )
    assert row().not_counted(w, (8, 0)) is row().not_counted(w, (10, 0)) is None
    assert row().not_counted(w, (0, 0)) is None
    assert row("flash-triton").not_counted(w, (9, 0)) is None
    assert with_tiles(row(), w, H200, 64, 64).not_counted(w, (9, 0)) is None
    assert row("flash1").not_counted(w, (9, 0)) is row("standard").not_counted(w, (9, 0)) is None


@pytest.mark.parametrize("name", ["mha", "gqa", "mqa"])
def test_variants_pick_too(name: str) -> None:
    w = make(heads=8, kv_heads=8)
    one = row(name)
    ran = one.workload(w)
    assert kernels(planned(one, ran, H200))[0] == "flash_hopper_forward"
    assert kernels(planned(one, ran, A100))[0] == "flash_forward"
    assert planned(one, ran, H200, planned(row("flash-triton"), ran, H200)[:1]) == (
        planned(row("flash-triton"), ran, H200)
    )
    assert one.description.endswith("by flash")


def test_other_ops_have_it() -> None:
    assert row("flash", "decode-attention").target == row().target
    assert row("flash-triton", "decode-attention").named_only
    assert row("full", "sliding-window-attention").target == row().target


def test_refusals_are_those_of_the_portable_kernels() -> None:
    assert row().refusal(make(head_dim=100)) == "head dim 100: flash takes multiples of 8 from 16 to 256"
    assert row().refusal(make(dtype="fp32")) == "dtype fp32: flash takes bf16, fp16"
    assert row("flash-triton").refusal(make(dtype="fp32")) == "dtype fp32: flash-triton takes bf16, fp16"


def test_what_tells_the_path() -> None:
    """A kernel with a tile of the Hopper path, wherever it is among the uses."""
    delta = KernelUse(kernel="flash_delta", block_m=64, block_n=0)
    dkdv = KernelUse(kernel="flash_hopper_dkdv", block_m=128, block_n=128)
    assert not flash.by_hopper(())
    assert not flash.by_hopper((delta, KernelUse(kernel="flash_hopper_statistics", block_m=64, block_n=0)))
    assert flash.by_hopper((delta, dkdv))
    assert {io.HOPPER, "flash_hopper_dkdv"} == {use.kernel for use in hopper.hopper_plan(make(), (9, 0))}
