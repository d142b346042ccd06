"""The workload: sizes by hand, visible pairs by brute force, and whole messages for what means nothing."""

import itertools
from typing import Any

import pytest

from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(**{"seq_q": 64, "seq_k": 64, **fields})


@pytest.mark.parametrize("name", ["batch", "heads", "kv_heads", "seq_q", "seq_k", "head_dim"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_start_at_one(name: str, value: int) -> None:
    with pytest.raises(UsageError) as refused:
        make(**{name: value})
    assert refused.value.message == f"{name} must be at least 1, not {value}"


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        (
            {"heads": 7, "kv_heads": 2},
            "kv-heads must divide heads: 7 heads cannot share 2 K/V heads",
            "allowed for 7 heads: 1, 7",
        ),
        (
            {"heads": 12, "kv_heads": 24},
            "kv-heads must divide heads: 12 heads cannot share 24 K/V heads",
            "allowed for 12 heads: 1, 2, 3, 4, 6, 12",
        ),
        ({"dtype": "fp9"}, "unknown dtype 'fp9'", "allowed: bf16, fp16, fp32"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'", "allowed: bf16, fp16, fp32"),
        ({"dtype": ""}, "unknown dtype ''", "allowed: bf16, fp16, fp32"),
        ({"pass_": "sideways"}, "unknown pass 'sideways'", "allowed: fwd, bwd, fwd-bwd"),
        ({"head_dim": 1025}, "head-dim is the width of one head, at most 1024, not 1025", ""),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        make(**fields)
    assert (refused.value.message, refused.value.hint) == (message, hint)


def test_sizes() -> None:
    w = AttentionWorkload(batch=2, heads=6, kv_heads=3, seq_q=5, seq_k=7, head_dim=8, dtype="bf16")
    assert w.element_bytes == 2
    assert w.rows == 2 * 6 * 5
    assert w.query_bytes == 2 * 6 * 5 * 8 * 2
    assert w.key_bytes == 2 * 3 * 7 * 8 * 2
    assert w.scores_bytes == 2 * 6 * 5 * 7 * 2
    assert make(dtype="fp32").element_bytes == 4
    assert make(dtype="fp16").element_bytes == 2


@pytest.mark.parametrize(("seq_q", "seq_k"), list(itertools.product(range(1, 9), repeat=2)))
@pytest.mark.parametrize("causal", [False, True])
def test_pairs_by_brute_force(seq_q: int, seq_k: int, causal: bool) -> None:
    w = make(batch=2, heads=3, kv_heads=1, seq_q=seq_q, seq_k=seq_k, causal=causal)
    seen = sum(not causal or j <= i + seq_k - seq_q for i in range(seq_q) for j in range(seq_k))
    assert w.pairs == 2 * 3 * seen


def test_causal_pairs_of_a_square() -> None:
    assert make(heads=1, kv_heads=1, seq_q=5000, seq_k=5000, causal=True).pairs == 5000 * 5001 // 2
    # One query of a decoder sees its whole cache.
    assert make(heads=1, kv_heads=1, seq_q=1, seq_k=5000, causal=True).pairs == 5000
