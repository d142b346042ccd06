"""Which kernels ran, in words: every report has to tell the two paths of `flash` apart."""

import msgspec
import pytest

from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse
from perfkit.record import Run
from perfkit.reports.kernel_words import kernel_words, of_runs, tile_words

OP = find_op("attention")
COMPILED = KernelUse(
    kernel="flash_hopper_forward", block_m=192, block_n=128, num_warps=16, num_stages=2,
    shared_bytes=115064, registers=128, spills=0,
)  # fmt: skip
WORDS = "flash_hopper_forward: 192x128, 16 warps, 2 stages, 112 KiB shared, 128 registers, 0 spilled"


def run_of(impl: str, device: str = "h200-141gb-sxm", **fields: object) -> Run:
    row = OP.implementation(impl)
    assert row is not None
    w = AttentionWorkload(**{"seq_q": 512, "seq_k": 512, **fields})
    backend = ModelBackend(load(device), "no GPU")
    return run_session(OP, [w], [row], backend, lambda *_: None).runs[0]


@pytest.mark.parametrize(
    ("impl", "device", "pass_", "words"),
    [
        ("flash", "h200-141gb-sxm", "fwd", "tiles flash_hopper_forward 192x128"),
        ("flash", "a100-80gb-sxm", "fwd", "tiles flash_forward 128x64"),
        ("flash-triton", "h200-141gb-sxm", "fwd", "tiles flash_forward 64x128"),
        ("flash", "h200-141gb-sxm", "bwd", "tiles flash_hopper_dkdv 64x128"),
        ("flash-triton", "h200-141gb-sxm", "bwd", "tiles flash_dkdv 64x64, flash_dq 128x64"),
    ],
)
def test_of_a_model_the_tiles_of_its_pass(impl: str, device: str, pass_: str, words: str) -> None:
    assert tuple(kernel_words("attention", run_of(impl, device, pass_=pass_))) == (words,)


def test_of_a_pair_both_kernels() -> None:
    """Above 128 columns the Hopper backward has two."""
    words = "tiles flash_hopper_dkdv_wide 64x64, flash_hopper_dq 128x64"
    assert tuple(kernel_words("attention", run_of("flash", head_dim=192, pass_="bwd"))) == (words,)


def test_of_a_run_what_was_compiled() -> None:
    run = run_of("flash")
    planned = run.uses[1:]  # the backward did not run, and is not said
    ran = msgspec.structs.replace(run, uses=(COMPILED, *planned))
    assert tuple(kernel_words("attention", ran)) == (WORDS,)


@pytest.mark.parametrize(
    ("kernel", "block_m", "tile"),
    [
        ("flash_hopper_statistics", 64, "64 rows"),
        ("decode_append", 1, "1 row"),
        ("decode_combine", 8, "8 shares"),
        ("flash_hopper_sum_of_parts", 0, ""),
    ],
)
def test_nothing_of_a_side_that_a_tile_does_not_have(kernel: str, block_m: int, tile: str) -> None:
    use = KernelUse(
        kernel=kernel, block_m=block_m, block_n=0, num_warps=4, num_stages=1,
        shared_bytes=0, registers=40, spills=0,
    )  # fmt: skip
    ran = msgspec.structs.replace(run_of("flash", pass_="bwd"), uses=(use,))
    rest = "4 warps, 1 stages, 0 KiB shared, 40 registers, 0 spilled"
    assert tuple(kernel_words("attention", ran)) == (f"{kernel}: {tile}{', ' if tile else ''}{rest}",)
    assert tile_words((use,)) == f"tiles {kernel}{' ' if tile else ''}{tile}"


def test_nothing_where_nothing_is_known_or_ran() -> None:
    assert tuple(kernel_words("attention", run_of("standard"))) == ()
    assert tuple(kernel_words("attention", run_of("sdpa-flash"))) == ()
    failed = msgspec.structs.replace(run_of("flash"), status="failed", reason="it broke")
    assert tuple(kernel_words("attention", failed)) == ()


def test_the_place_is_said_where_it_makes_a_difference() -> None:
    sizes = [AttentionWorkload(seq_q=n, seq_k=n) for n in (512, 1024, 2048)]
    row = OP.implementation("flash")
    assert row is not None
    runs = run_session(OP, sizes, [row], FakeBackend(), lambda *_: None).runs
    labelled = [("flash", run) for run in runs]
    same = "flash: tiles flash_hopper_forward 192x128"
    assert tuple(of_runs("attention", labelled, tuple(sizes))) == (same,)
    labelled[0] = ("flash", msgspec.structs.replace(runs[0], uses=(COMPILED,)))
    assert tuple(of_runs("attention", labelled, tuple(sizes))) == (
        f"flash at N 512: {WORDS}",
        "flash at N 1k and 2k: tiles flash_hopper_forward 192x128",
    )
