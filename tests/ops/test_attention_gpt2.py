"""The IO model of `gpt2`: passes and bytes by hand, as published and as it runs, and what reaches DRAM."""

from typing import Any

import msgspec
import pytest

from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_gpt2 as gpt2
from perfkit.ops.attention import ATTENTION, flops_convention
from perfkit.ops.attention_published import GPT2_MEDIUM, GPT2_PIPELINE
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Ledger, total

H200 = load("h200-141gb-sxm")  # 60 MiB of L2
SQUARE = 64 * 16 * 1024 * 1024 * 2  # one N x N matrix of GPT-2 medium in fp16 over all heads
UNIT = 64 * 16 * 1024 * 64 * 2  # one N x d tensor


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(
        **{"heads": 1, "kv_heads": 1, "seq_q": 4, "seq_k": 6, "head_dim": 2, "dtype": "fp16", **fields}
    )


def of_pass(w: AttentionWorkload, pass_: Any) -> AttentionWorkload:
    return msgspec.structs.replace(w, pass_=pass_)


def plain(ledger: Ledger) -> list[tuple[str, str, int, int]]:
    """(step, tensor, read, written) of each entry."""
    return [(one.kernel, one.tensor, one.traffic.read_bytes, one.traffic.write_bytes) for one in ledger]


# As published.


def test_the_published_pipeline_moves_40_3_gb() -> None:
    assert (SQUARE, UNIT) == (2_147_483_648, 134_217_728)
    for w in (GPT2_MEDIUM, GPT2_PIPELINE):
        assert total(gpt2.published_ledger(w)).total_bytes == 40_265_318_400
        assert 18 * SQUARE + 12 * UNIT == 40_265_318_400


def test_published_passes_forward_and_backward() -> None:
    forward, backward = (total(gpt2.published_ledger(of_pass(GPT2_MEDIUM, p))) for p in ("fwd", "bwd"))
    assert forward.total_bytes == 8.5 * SQUARE + 4 * UNIT
    assert backward.total_bytes == 9.5 * SQUARE + 8 * UNIT
    # Forward reads S, S, P, P o Z and Q, K, V; writes S, S, P, P o Z, half a pass of Z, and O.
    assert forward == Traffic(read_bytes=4 * SQUARE + 3 * UNIT, write_bytes=9 * SQUARE // 2 + UNIT)


def test_passes_of_each_published_step() -> None:
    passes: dict[str, float] = {}
    for step, tensor, read, written in plain(gpt2.published_ledger(GPT2_PIPELINE)):
        if tensor not in ("Q", "K", "V", "O", "dO", "dQ", "dK", "dV"):
            passes[step] = passes.get(step, 0) + (read + written) / SQUARE
    assert passes == {
        "S = Q K^T": 1,
        "S + mask": 2,
        "P = softmax(S)": 2,
        "P o Z": 2.5,
        "O = (P o Z) V": 1,
        "dV = (P o Z)^T dO": 1,
        "dP = dO V^T": 1,
        "dP o Z": 2.5,
        "dS": 3,
        "dQ = dS K": 1,
        "dK = dS^T Q": 1,
    }


def test_the_pipeline_is_the_workload_of_2022() -> None:
    w = GPT2_PIPELINE
    assert w.features == ("dropout", "padding")
    assert (w.dropout, min(w.lengths), max(w.lengths)) == (0.1, 1004, 1024)
    assert msgspec.structs.replace(w, dropout=0.0, padding=0) == GPT2_MEDIUM
    assert GPT2_MEDIUM.dtype == "fp16"


# As it runs.


def test_every_entry_by_hand() -> None:
    # N_q 4, N_k 6, d 2, 2 B: Q, O 16 B; K, V 24 B; matrices 4 x 6 x 2 = 48 B; Z 24 B; the mask 6 x 2 = 12 B.
    w = make(pass_="fwd-bwd", dropout=0.1, padding=3)
    assert plain(gpt2.gpt2_ledger(w)) == [
        ("padding mask", "mask", 0, 12),
        ("S = Q K^T", "Q", 16, 0),
        ("S = Q K^T", "K", 24, 0),
        ("S = Q K^T", "S", 0, 48),
        ("S + mask", "S", 48, 48),
        ("S + mask", "mask", 12, 0),
        ("P = softmax(S)", "S", 48, 0),
        ("P = softmax(S)", "P", 0, 48),
        ("P o Z", "P", 48, 0),
        ("P o Z", "P o Z", 0, 48),
        ("P o Z", "Z", 0, 24),
        ("O = (P o Z) V", "P o Z", 48, 0),
        ("O = (P o Z) V", "V", 24, 0),
        ("O = (P o Z) V", "O", 0, 16),
        ("dV = (P o Z)^T dO", "P o Z", 48, 0),
        ("dV = (P o Z)^T dO", "dO", 16, 0),
        ("dV = (P o Z)^T dO", "dV", 0, 24),
        ("dP = dO V^T", "dO", 16, 0),
        ("dP = dO V^T", "V", 24, 0),
        ("dP = dO V^T", "dP", 0, 48),
        ("dP o Z", "dP", 48, 0),
        ("dP o Z", "Z", 24, 0),
        ("dP o Z", "dP o Z", 0, 48),
        ("P o dP", "P", 48, 0),
        ("P o dP", "dP o Z", 48, 0),
        ("P o dP", "P o dP", 0, 48),
        ("dS", "P o dP", 48, 0),
        ("dS", "P", 48, 0),
        ("dS", "dS", 0, 48),
        ("dQ = dS K", "dS", 48, 0),
        ("dQ = dS K", "K", 24, 0),
        ("dQ = dS K", "dQ", 0, 16),
        ("dK = dS^T Q", "dS", 48, 0),
        ("dK = dS^T Q", "Q", 16, 0),
        ("dK = dS^T Q", "dK", 0, 24),
    ]


MASK = 64 * 1024 * 2  # the additive mask of GPT-2 medium: a row of N_k for each sequence


@pytest.mark.parametrize(
    ("features", "forward", "backward"),
    [
        ({}, 4, 10),  # FA1's 4 and 7, and 3 of torch's softmax backward
        ({"padding": 20}, 6, 10),  # S read and written
        ({"dropout": 0.1}, 6.5, 12.5),  # P read, P o Z and Z written; dP and Z read, dP o Z written
        ({"dropout": 0.1, "padding": 20}, 8.5, 12.5),
    ],
)
def test_passes_as_it_runs(features: dict[str, Any], forward: float, backward: float) -> None:
    w = msgspec.structs.replace(GPT2_MEDIUM, **features)
    mask = 2 * MASK if w.padding else 0  # written and read
    assert total(gpt2.gpt2_ledger(of_pass(w, "fwd"))).total_bytes == forward * SQUARE + 4 * UNIT + mask
    assert total(gpt2.gpt2_ledger(of_pass(w, "bwd"))).total_bytes == backward * SQUARE + 8 * UNIT


def test_it_moves_three_passes_more_than_published() -> None:
    runs, said = (total(make(GPT2_PIPELINE)) for make in (gpt2.gpt2_ledger, gpt2.published_ledger))
    assert runs.total_bytes - said.total_bytes == 3 * SQUARE + 2 * MASK
    assert runs.total_bytes == 46_708_031_488  # 46.7 GB


def test_z_is_a_byte_in_every_dtype() -> None:
    # 24 elements of 4 B: a matrix is 96 B, Z 24 B: a quarter of a pass.
    w = make(dtype="fp32", dropout=0.1, pass_="fwd")
    assert ("P o Z", "Z", 0, 24) in plain(gpt2.gpt2_ledger(w))
    assert ("P o Z", "P o Z", 0, 96) in plain(gpt2.gpt2_ledger(w))


# Kernels, FLOPs, memory.


def test_kernels_by_hand() -> None:
    w = make(pass_="fwd-bwd", dropout=0.1, padding=3)
    assert gpt2.gpt2_kernels(w) == (
        ("padding mask", 2),  # the indices of the keys, and their comparison with the lengths
        ("S = Q K^T", 1),
        ("S + mask", 1),
        ("P = softmax(S)", 1),
        ("P o Z", 1),
        ("O = (P o Z) V", 1),
        ("dV = (P o Z)^T dO", 1),
        ("dP = dO V^T", 1),
        ("dP o Z", 1),
        ("P o dP", 1),
        ("dS", 1),
        ("dQ = dS K", 1),
        ("dK = dS^T Q", 1),
    )
    assert gpt2.gpt2_launches(w) == 14
    counts = {
        (p, d, n): gpt2.gpt2_launches(make(pass_=p, dropout=d, padding=n))
        for p in ("fwd", "bwd") for d in (0, 0.1) for n in (0, 3)
    }  # fmt: skip
    assert counts == {
        ("fwd", 0, 0): 3, ("fwd", 0, 3): 6, ("fwd", 0.1, 0): 4, ("fwd", 0.1, 3): 7,
        ("bwd", 0, 0): 6, ("bwd", 0, 3): 6, ("bwd", 0.1, 0): 7, ("bwd", 0.1, 3): 7,
    }  # fmt: skip


def several(w: AttentionWorkload, batch: int, heads: int, n: int) -> dict[str, int]:
    """The steps of more than one kernel."""
    w = msgspec.structs.replace(w, batch=batch, heads=heads, kv_heads=heads, seq_q=n, seq_k=n)
    return {step: kernels for step, kernels in gpt2.gpt2_kernels(w) if kernels > 1}


def test_elementwise_kernels_span_2_gib() -> None:
    assert gpt2.gpt2_launches(GPT2_PIPELINE) == 14  # 2^31 bytes exactly
    # 16 x 8 x 4096^2 x 2 = 2^32 bytes: two kernels each.
    found = several(GPT2_PIPELINE, 16, 8, 4096)
    assert found == {"padding mask": 2, "S + mask": 2, "dP o Z": 2, "P o dP": 2}
    # 5 sequences of 1 GiB: halves of 2 and 3 sequences, and 3 is 1 and 2: 3 kernels. One row of 5 GiB is
    # halved twice: 4.
    found = several(GPT2_PIPELINE, 5, 8, 8192)
    assert found == {"padding mask": 2, "S + mask": 3, "dP o Z": 4, "P o dP": 4}
    # One sequence of 8 GiB: its rows are halved twice.
    found = several(GPT2_PIPELINE, 1, 16, 16384)
    assert found == {"padding mask": 2, "S + mask": 4, "dP o Z": 4, "P o dP": 4}


def test_flops_and_exps_are_of_all_keys() -> None:
    row = ATTENTION.implementation("gpt2")
    assert row is not None
    assert row.io is not None
    # 6 products of 2 N^2 d over 1024 heads; the convention counts 7 over the keys that are no padding.
    assert row.io.issued_flops(GPT2_PIPELINE, ()) == 6 * 2 * 1024 * 1024 * 64 * 1024
    assert row.io.exps(GPT2_PIPELINE, ()) == 1024 * 1024 * 1024
    seen = sum(GPT2_PIPELINE.lengths)
    assert flops_convention(GPT2_PIPELINE) == 7 * 2 * 16 * 1024 * seen * 64
    assert row.io.extra_flops(GPT2_PIPELINE, ()) == (
        "padded keys computed",
        "no recomputation (4 products for 5)",
    )
    assert row.io.extra_flops(of_pass(GPT2_MEDIUM, "fwd"), ()) == ()


@pytest.mark.parametrize(
    ("pass_", "dropout", "squares"),
    [
        ("fwd", 0.0, 2),  # S and P
        ("fwd", 0.1, 2.5),  # P, P o Z and Z
        ("bwd", 0.0, 4),  # P, dP, P o dP, dS
        ("bwd", 0.1, 5.5),  # P, P o Z, Z, dP o Z, P o dP, dS
        ("fwd-bwd", 0.1, 5.5),
    ],
)
def test_workspace(pass_: Any, dropout: float, squares: float) -> None:
    w = msgspec.structs.replace(GPT2_MEDIUM, pass_=pass_, dropout=dropout, padding=20)
    assert gpt2.gpt2_workspace(w) == squares * SQUARE


def test_what_it_refuses() -> None:
    row = ATTENTION.implementation("gpt2")
    assert row is not None
    assert row.refusal(GPT2_PIPELINE) is None
    assert row.refusal(make(dtype="bf16")) is None
    assert row.refusal(make(causal=True)) == "gpt2 has a padding mask and no causal one"
    assert row.refusal(make(heads=4, kv_heads=2)) == (
        "gpt2 has no grouped heads, and 4 heads share 2 K/V heads"
    )
    assert row.refusal(make(seq_k=4, pattern="local:1@16")) == "gpt2 has no pattern"
    assert row.named_only


# What reaches DRAM.


def test_all_passes_reach_dram_where_s_exceeds_l2() -> None:
    found = gpt2.gpt2_dram(GPT2_PIPELINE, (), H200)
    assert found.traffic == total(gpt2.gpt2_ledger(GPT2_PIPELINE))
    assert found.reason == "S and P exceed L2: every pass over them reaches DRAM"


def test_what_fits_is_written_and_read_in_l2() -> None:
    # 2 heads of N 1024: S is 4 MiB, 7 % of 60 MiB. Q, K, V are read; everything is written but the S that the
    # mask is added to, which is written over.
    w = msgspec.structs.replace(GPT2_PIPELINE, batch=1, heads=2, kv_heads=2, pass_="fwd")
    square, unit = 4 << 20, 2 * 1024 * 64 * 2
    found = gpt2.gpt2_dram(w, (), H200)
    assert found.reason == "S takes 7% of L2 and stays in L2: it is written, and re-read there"
    assert found.traffic.read_bytes == 3 * unit
    assert found.traffic.write_bytes == 2048 + 3 * square + square // 2 + unit  # mask, S, P, P o Z, Z, O


def test_a_backward_pass_alone_reads_what_the_forward_pass_kept() -> None:
    w = msgspec.structs.replace(GPT2_PIPELINE, batch=1, heads=2, kv_heads=2, pass_="bwd")
    square, unit, lse = 4 << 20, 2 * 1024 * 64 * 2, 2 * 1024 * 4
    found = gpt2.gpt2_dram(w, (), H200).traffic
    assert found.read_bytes == 2 * square + square // 2 + 5 * unit + lse  # P, P o Z, Z; compulsory
    assert found.write_bytes == 4 * square + 3 * unit  # dP, dP o Z, P o dP, dS; dQ, dK, dV


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd-bwd"])
@pytest.mark.parametrize("features", [{}, {"dropout": 0.1}, {"padding": 20}, {"dropout": 0.1, "padding": 20}])
@pytest.mark.parametrize("n", [64, 113, 512, 1024, 2048, 16384])
def test_dram_moves_no_more_than_the_ledger(n: int, features: dict[str, Any], pass_: str) -> None:
    w = make(heads=8, kv_heads=8, seq_q=n, seq_k=n, head_dim=64, pass_=pass_, **features)
    asked, found = total(gpt2.gpt2_ledger(w)), gpt2.gpt2_dram(w, (), H200).traffic
    assert 0 < found.read_bytes <= asked.read_bytes
    assert 0 < found.write_bytes <= asked.write_bytes
