"""Published figures: whose, for which workload, and for no other."""

from typing import Any

import pytest

from perfkit.analysis.published import Published, published
from perfkit.errors import UsageError
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_workload import AttentionWorkload

GPT2: dict[str, Any] = {
    "batch": 64, "heads": 16, "kv_heads": 16, "seq_q": 1024, "seq_k": 1024, "head_dim": 64,
    "dtype": "bf16", "causal": False, "pass_": "fwd-bwd",
}  # fmt: skip


def gpt2(**changed: Any) -> AttentionWorkload:
    return AttentionWorkload(**{**GPT2, **changed})


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_flash_attention_published_time_and_hbm_bytes_of_gpt2_medium(dtype: str) -> None:
    found = published("attention", gpt2(dtype=dtype))
    assert [(row.impl, row.tag, row.value, row.hint) for row in found] == [
        ("standard", "time", 0.0417, "time"),  # 41.7 ms
        ("standard", "dram_bytes", 40.3e9, "bytes"),
        ("flash", "time", 0.0073, "time"),  # 7.3 ms
        ("flash", "dram_bytes", 4.4e9, "bytes"),
    ]
    assert {(row.device, row.source) for row in found} == {
        ("A100 40 GB", "FlashAttention, arXiv 2205.14135, Figure 2 left")
    }
    assert all("dropout 0.1 and a padding mask" in row.note for row in found)
    assert all("only direction and rough ratio compare" in row.note for row in found)


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "fp32"}, {"causal": True}, {"pass_": "fwd"}, {"pass_": "bwd"}, {"batch": 32},
        {"heads": 32}, {"kv_heads": 4}, {"seq_q": 2048}, {"seq_k": 2048}, {"head_dim": 128},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_other_workloads_have_none(changed: dict[str, Any]) -> None:
    assert published("attention", gpt2(**changed)) == ()


def test_figures_are_of_implementations_that_exist() -> None:
    names = {row.name for row in ATTENTION.implementations}
    assert {row.impl for row in published("attention", gpt2())} <= names


def test_their_standard_moved_more_than_ours_would_and_their_flash_fits_ours() -> None:
    """40.3 GB = 18 passes over an N x N matrix and 12 over an N x d one; Algorithms 0 and 3 with torch's
    kernels have 14 and 16. 4.4 GB lies between compulsory traffic and what SMs and L2 exchange."""
    figures = {(row.impl, row.tag): row.value for row in published("attention", gpt2())}
    square, tensor = 64 * 16 * 1024 * 1024 * 2, 64 * 16 * 1024 * 64 * 2
    assert (18 * square + 12 * tensor) == pytest.approx(figures["standard", "dram_bytes"], rel=1e-3)
    standard, flash = (ATTENTION.implementation(name) for name in ("standard", "flash"))
    assert standard is not None
    assert standard.io is not None
    assert standard.io.traffic(gpt2(), ()).total_bytes == 14 * square + 16 * tensor
    assert flash is not None
    assert flash.io is not None
    assert flash.plan is not None
    asked = flash.io.traffic(gpt2(), flash.plan(gpt2(), (8, 0))).total_bytes
    assert ATTENTION.compulsory(gpt2()).total_bytes < figures["flash", "dram_bytes"] < asked


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown op 'convolution'"):
        published("convolution", gpt2())


def test_a_figure_stands_without_a_note() -> None:
    row = Published(impl="flash", tag="time", value=1.0, hint="time", device="T4", source="a paper")
    assert row.note == ""
