"""Block masks by hand: which blocks, how many pairs, and what is no pattern."""

import pytest

from perfkit.errors import UsageError
from perfkit.ops import patterns
from perfkit.ops.attention_workload import AttentionWorkload


@pytest.mark.parametrize(
    ("text", "length", "rows"),
    [
        ("local:1@16", 64, ((0, 1), (0, 1, 2), (1, 2, 3), (2, 3))),
        ("local:0@16", 33, ((0,), (1,), (2,))),
        # Row 2 = 0b10 sees itself, 0b00 and 0b11; 0b110 is beyond the four blocks.
        ("butterfly@16", 64, ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))),
        ("random:100%@16", 48, ((0, 1, 2), (0, 1, 2), (0, 1, 2))),
    ],
)
def test_blocks(text: str, length: int, rows: patterns.Blocks) -> None:
    assert patterns.blocks(text, length) == rows


@pytest.mark.parametrize("share", [1, 10, 25, 60, 100])
def test_a_random_pattern_has_its_share_its_diagonal_and_no_luck(share: int) -> None:
    rows = patterns.blocks(f"random:{share}%@16", 1024)  # 64 blocks
    assert [len(row) for row in rows] == [max(1, round(0.64 * share))] * 64
    assert all(at in row and list(row) == sorted(set(row)) for at, row in enumerate(rows))
    assert patterns.share("random:25%@16", 1024) == 0.25
    # The columns are spread: with 16 of 64 in each row, no column is seen by fewer than 4 or more than 32.
    seen = [sum(column in row for row in patterns.blocks("random:25%@16", 1024)) for column in range(64)]
    assert 4 <= min(seen) <= max(seen) <= 32


def test_pairs_with_a_partial_last_block() -> None:
    # Blocks of 16, 16 and 8; local:0 is the diagonal.
    assert patterns.pairs("local:0@16", 40) == 16 * 16 + 16 * 16 + 8 * 8
    # local:1 leaves only the two corners out.
    assert patterns.pairs("local:1@16", 40) == 40 * 40 - 2 * 16 * 8
    w = AttentionWorkload(batch=2, heads=3, kv_heads=3, seq_q=40, seq_k=40, pattern="local:1@16")
    assert w.pairs == 2 * 3 * (40 * 40 - 2 * 16 * 8)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("random:25%", "random:25%@128"), ("random:0.25@64", "random:25%@64"), ("butterfly", "butterfly@128"),
        ("local:2", "local:2@128"), ("local:2@32", "local:2@32"), ("random:12.5%@64", "random:12.5%@64"),
    ],
)  # fmt: skip
def test_one_way_of_writing(text: str, form: str) -> None:
    assert patterns.canonical(text) == form
    assert patterns.parse(form) == patterns.parse(text)
    assert patterns.canonical(form) == form


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("striped", "unknown pattern 'striped'"),
        ("random", "pattern 'random' needs another form"),
        ("butterfly:3", "pattern 'butterfly:3' needs another form"),
        ("random:0%", "pattern 'random:0%': the share must be from 0.01% to 100%"),
        ("random:101%", "pattern 'random:101%': the share must be from 0.01% to 100%"),
        ("random:1.2.3", "pattern 'random:1.2.3': 1.2.3 is not a number"),
        ("random:0.001%", "pattern 'random:0.001%': the share must be from 0.01% to 100%"),
        ("local:9999", "pattern 'local:9999': the reach is a whole number of blocks, at most 2048"),
        ("local:" + "9" * 400, f"unknown pattern 'local:{'9' * 400}'"),
        ("local:1.5", "pattern 'local:1.5': the reach is a whole number of blocks, at most 2048"),
        ("local:2@48", "the block of pattern 'local:2@48' must be a power of two from 16 to 1024, not 48"),
        ("local:2@8", "the block of pattern 'local:2@8' must be a power of two from 16 to 1024, not 8"),
    ],
)
def test_no_pattern(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        patterns.parse(text)
    assert refused.value.message == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pattern": "local:2"}, "pattern 'local:2' is not as patterns are written"),
        ({"pattern": "local:2@32", "seq_k": 128}, "a pattern needs as many queries as keys, not 64 and 128"),
        ({"pattern": "local:2@32", "causal": True}, "a pattern excludes a causal mask, dropout and padding"),
        (
            {"pattern": "local:2@16", "seq_q": 65536, "seq_k": 65536},
            "pattern 'local:2@16' cuts 65536 rows into 4096 blocks, and 2048 are the most",
        ),
        ({"dropout": 1.0}, "dropout is a share from 0 to below 1, not 1.0"),
        ({"padding": 64}, "padding must be from 0 to below the 64 keys, not 64"),
        ({"padding": 3, "causal": True}, "padding and a causal mask exclude each other"),
    ],
)
def test_workloads_that_mean_nothing(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        AttentionWorkload(**{"seq_q": 64, "seq_k": 64, **given})  # type: ignore[arg-type]
    assert refused.value.message == message


def test_padding_is_spread_over_the_batch() -> None:
    w = AttentionWorkload(batch=5, heads=2, kv_heads=2, seq_q=64, seq_k=64, padding=20)
    assert w.lengths == (64, 59, 54, 49, 44)
    assert w.pairs == 2 * 64 * (64 + 59 + 54 + 49 + 44)
    assert w.features == ("padding",)
    assert AttentionWorkload(seq_q=64, seq_k=64, padding=20).lengths == (64,)
