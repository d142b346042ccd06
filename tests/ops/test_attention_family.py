"""The ops beside plain attention: which implementations and workloads, and a K/V cache in bytes by hand."""

from typing import Any

import msgspec
import pytest

from perfkit.errors import UsageError
from perfkit.ops import OPS, find_op
from perfkit.ops.attention_io import compulsory
from perfkit.ops.attention_workload import AttentionWorkload


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(**{"batch": 2, "heads": 8, "kv_heads": 2, "seq_q": 1, "seq_k": 100, **fields})


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_rows_of_an_op(op: Any) -> None:
    names = [row.name for row in op.implementations]
    assert len(set(names)) == len(names)
    assert any(not row.named_only for row in op.implementations)
    assert all(name in AttentionWorkload.__struct_fields__ for name in op.defaults)


@pytest.mark.parametrize(("name", "kv_heads"), [("mha", 8), ("gqa", 2), ("mqa", 1)])
@pytest.mark.parametrize("op", ["attention", "decode-attention"])
def test_variants_differ_in_their_kv_heads(op: str, name: str, kv_heads: int) -> None:
    row = find_op(op).implementation(name)
    assert row is not None
    assert row.workload(make()) == make(kv_heads=kv_heads)


def test_groups_of_four_unless_said_otherwise() -> None:
    gqa = find_op("attention").implementation("gqa")
    assert gqa is not None
    assert gqa.workload(make(heads=16, kv_heads=16)).kv_heads == 4
    assert gqa.workload(make(heads=16, kv_heads=8)).kv_heads == 8
    with pytest.raises(UsageError, match="gqa cannot share 6 query heads in groups of 4"):
        gqa.workload(make(heads=6, kv_heads=6))


def test_rows_that_run_something_else() -> None:
    paged, window = find_op("paged-decode-attention"), find_op("sliding-window-attention")
    whole, full = paged.implementation("flash-decode"), window.implementation("full")
    assert whole is not None
    assert full is not None
    assert whole.workload(make(page=16, prefix=32)) == make()
    square = {"seq_q": 100, "pattern": "window:7"}
    assert full.workload(make(**square)) == make(seq_q=100, causal=True)
    one = window.implementation("block-sparse")
    assert one is not None
    with pytest.raises(UsageError, match="there is no window"):
        one.workload(make())
    row = paged.implementation("paged-decode")
    assert row is not None
    assert row.refusal(make()) == "the cache has no pages: give --page"


def test_a_cache_in_bytes() -> None:
    # 2 sequences of 100 tokens, K and V of 2 heads of 64 in 2 bytes.
    assert make().cache_bytes == 2 * 100 * 2 * 2 * 64 * 2
    assert make(cache_dtype="fp8").cache_bytes == 2 * 100 * 2 * 2 * 64
    # Of 100 and 70 tokens.
    assert make(padding=30).cached_tokens == 170
    assert make(padding=30).pairs == 8 * 170
    # The first 32 are there once.
    assert make(padding=30, page=16, prefix=32).cached_tokens == 170 - 32
    assert make(batch=1, page=16, prefix=32).cached_tokens == 100
    # Two tokens of each sequence, K and V, 2 heads of 64 in 2 bytes.
    assert make(seq_q=2, append=True).appended_bytes == 2 * 2 * 2 * 2 * 64 * 2
    assert make(seq_q=2).appended_bytes == 0


def test_tokens_at_the_end_of_sequences_of_different_lengths() -> None:
    # Of 100 and 70 keys three causal tokens see 98 + 99 + 100 and 68 + 69 + 70.
    assert make(seq_q=3, causal=True, padding=30).pairs == 8 * (297 + 207)


def test_what_a_step_moves_at_least() -> None:
    q = 2 * 8 * 64 * 2
    assert compulsory(make()).read_bytes == q + 2 * 100 * 512
    assert compulsory(make()).write_bytes == q
    # fp8: the new token is read in 2 bytes and written in 1; the other 99 are read from the cache.
    found = compulsory(make(cache_dtype="fp8", append=True))
    assert found.read_bytes == q + 2 * 99 * 256 + 2 * 512
    assert found.write_bytes == q + 2 * 256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cache_dtype": "int4"}, "unknown cache dtype 'int4'"),
        ({"page": -1}, "page is a number of tokens from 1 to 256, not -1"),
        ({"page": 257}, "page is a number of tokens from 1 to 256, not 257"),
        (
            {"page": 16, "prefix": 8},
            "prefix must be whole pages and at most the 100 keys of the shortest sequence, not 8",
        ),
        (
            {"page": 16, "prefix": 80, "padding": 30},
            "prefix must be whole pages and at most the 70 keys of the shortest sequence, not 80",
        ),
        (
            {"prefix": 16},
            "prefix must be whole pages and at most the 100 keys of the shortest sequence, not 16",
        ),
        (
            {"page": 10, "prefix": 100, "append": True},
            "1 keys cannot be appended where a sequence has 0 of its own",
        ),
    ],
)
def test_caches_that_mean_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        make(**fields)
    assert refused.value.message == message


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, ()),
        ({"padding": 3}, ("padding",)),
        ({"page": 16, "cache_dtype": "fp8", "append": True}, ("fp8 cache", "pages", "append")),
        ({"seq_q": 100, "pattern": "window:7"}, ("pattern",)),
    ],
)
def test_features_are_refused_by_those_that_have_them_not(
    fields: dict[str, Any], features: tuple[str, ...]
) -> None:
    w = make(**fields)
    assert w.features == features
    flash = find_op("attention").implementation("flash")
    assert flash is not None
    assert flash.refusal(w) == (f"flash has no {features[0]}" if features else None)


def test_records_of_before_have_no_cache_fields() -> None:
    text = b'{"seq_q": 4, "seq_k": 4}'
    w = msgspec.json.decode(text, type=AttentionWorkload)
    assert (w.cache_dtype, w.page, w.prefix, w.append) == (None, 0, 0, False)
