"""torch's attention with perfkit's masks and caches, on the CPU: right, and in place of no kernel of ours."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import flex, gathered, sdpa  # noqa: E402
from perfkit.measure.correctness import Judge, callables, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402


def check(attention: Any, w: AttentionWorkload, times: int = 1) -> None:
    inputs = make_inputs(w, "cpu")
    judge = Judge(w, inputs)
    _, result = callables(w, inputs, attention, None)
    for _ in range(times):
        require(w, judge.errors(result()))


CACHES = [
    {"page": 16},
    {"page": 16, "prefix": 32, "padding": 20},
    {"cache_dtype": "fp8"},
    {"page": 7, "cache_dtype": "fp8", "append": True, "padding": 50},
    {"append": True},
    {"seq_q": 3, "causal": True, "padding": 50, "append": True, "page": 5},
    {"page": 1, "seq_k": 1},
]


@pytest.mark.parametrize("fields", CACHES, ids=str)
def test_a_gathered_cache(fields: dict[str, Any]) -> None:
    sizes = {"batch": 3, "heads": 4, "kv_heads": 2, "seq_q": 1, "seq_k": 101, "head_dim": 32, "dtype": "fp32"}
    # Twice: what was appended by the first call is written again by the second.
    check(gathered.attention, AttentionWorkload(**{**sizes, **fields}), times=2)


PATTERNS = [
    "window:33",
    "longformer:9+5",
    "packed:40",
    "bigbird:1+1+1@16",
    "sinks:3+20",
    "prefix:50",
    "dilated:5+4",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sdpa_with_any_mask(pattern: str) -> None:
    check(sdpa.default, masked(pattern))


@pytest.mark.parametrize("pattern", PATTERNS[:-1])
def test_flex_with_the_same_mask(pattern: str) -> None:
    check(flex.attention, masked(pattern))


def test_flex_with_fewer_queries_than_keys() -> None:
    check(flex.attention, masked("window:33", seq_q=70))


def test_flex_refuses_a_stride() -> None:
    w = masked("dilated:5+4")
    inputs = make_inputs(w, "cpu")
    with pytest.raises(ValueError, match="spans with a stride"):
        flex.attention(inputs.q, inputs.k, inputs.v, **inputs.given)


def test_sdpa_with_padding() -> None:
    check(
        sdpa.default,
        AttentionWorkload(batch=3, heads=2, kv_heads=2, seq_q=9, seq_k=40, padding=11, dtype="fp32"),
    )


def masked(pattern: str, **fields: Any) -> AttentionWorkload:
    sizes = {
        "batch": 1,
        "heads": 4,
        "kv_heads": 2,
        "seq_q": 160,
        "seq_k": 160,
        "head_dim": 32,
        "dtype": "fp32",
    }
    return AttentionWorkload(**{**sizes, **fields}, pattern=pattern)
