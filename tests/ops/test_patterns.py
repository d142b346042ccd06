"""Masks by hand: which blocks, which keys, how many pairs, and what is no pattern."""

import itertools

import pytest

from perfkit.errors import UsageError
from perfkit.ops import pattern_kinds, patterns
from perfkit.ops.attention_workload import AttentionWorkload

np = pytest.importorskip("numpy")


@pytest.mark.parametrize(
    ("text", "length", "rows"),
    [
        ("local:1@16", 64, ((0, 1), (0, 1, 2), (1, 2, 3), (2, 3))),
        ("local:0@16", 33, ((0,), (1,), (2,))),
        # Row 2 = 0b10 sees itself, 0b00 and 0b11; 0b110 is beyond the four blocks.
        ("butterfly@16", 64, ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))),
        ("random:100%@16", 48, ((0, 1, 2), (0, 1, 2), (0, 1, 2))),
        # One to each side and the first; the first sees all.
        ("bigbird:1+1+0@16", 64, ((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 3), (0, 2, 3))),
        ("bigbird:0+0+0@16", 48, ((0,), (1,), (2,))),
        ("bigbird:0+0+9@16", 48, ((0, 1, 2), (0, 1, 2), (0, 1, 2))),
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


def test_bigbird_draws_its_others_apart_from_the_rest() -> None:
    rows = patterns.blocks("bigbird:1+2+3@16", 1024)  # 64 blocks
    assert [len(row) for row in rows[:2]] == [64, 64]
    # Inside: 3 near, 2 global, 3 others.
    assert [len(row) for row in rows[3:63]] == [8] * 60
    assert all({0, 1, at - 1, at, at + 1} <= set(row) for at, row in enumerate(rows[3:63], 3))


def test_pairs_with_a_partial_last_block() -> None:
    # Blocks of 16, 16 and 8; local:0 is the diagonal.
    assert patterns.pairs("local:0@16", 40, 40) == 16 * 16 + 16 * 16 + 8 * 8
    # local:1 leaves only the two corners out.
    assert patterns.pairs("local:1@16", 40, 40) == 40 * 40 - 2 * 16 * 8
    w = AttentionWorkload(batch=2, heads=3, kv_heads=3, seq_q=40, seq_k=40, pattern="local:1@16")
    assert w.pairs == 2 * 3 * (40 * 40 - 2 * 16 * 8)


# Rows are written as the keys that they see.


def seen(text: str, seq_q: int, seq_k: int) -> list[list[int]]:
    """The keys that each query sees, from its spans."""
    ends, step, stride = patterns.spans(text, seq_q, seq_k)
    position = seq_k - seq_q
    return [
        sorted(
            key
            for low, high in ends[row // step]
            for key in range(low, high)
            if (row + position - key) % stride == 0
        )
        for row in range(seq_q)
    ]


@pytest.mark.parametrize(
    ("text", "seq_q", "seq_k", "rows"),
    [
        ("window:2", 4, 4, [[0], [0, 1], [1, 2], [2, 3]]),
        ("window:9", 3, 3, [[0], [0, 1], [0, 1, 2]]),
        # The queries are the last tokens: of 5 keys the first has position 3.
        ("window:2", 2, 5, [[2, 3], [3, 4]]),
        # 3 queries over 1 key: the first two stand before it.
        ("window:2", 3, 1, [[], [], [0]]),
        ("dilated:2+3", 6, 6, [[0], [1], [2], [0, 3], [1, 4], [2, 5]]),
        ("dilated:3+2", 8, 8, [[0], [1], [0, 2], [1, 3], [0, 2, 4], [1, 3, 5], [2, 4, 6], [3, 5, 7]]),
        ("sinks:1+2", 5, 5, [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]),
        ("sinks:2+1", 2, 6, [[0, 1, 4], [0, 1, 5]]),
        ("sinks:0+0", 2, 2, [[], []]),
        ("longformer:1+1", 5, 5, [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4]]),
        ("longformer:0+0", 3, 3, [[0], [1], [2]]),
        ("prefix:3", 5, 5, [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        ("prefix:0", 2, 4, [[0, 1, 2], [0, 1, 2, 3]]),
        ("packed:2+1+9", 5, 5, [[0], [0, 1], [2], [3], [3, 4]]),
        ("packed:1", 3, 3, [[0], [1], [2]]),
        ("bigbird:0+1+0@16", 17, 17, [list(range(17))] * 17),
    ],
)
def test_keys_by_hand(text: str, seq_q: int, seq_k: int, rows: list[list[int]]) -> None:
    assert seen(text, seq_q, seq_k) == rows
    assert patterns.pairs(text, seq_q, seq_k) == sum(map(len, rows))


def test_pairs_in_closed_form() -> None:
    n, w = 1000, 96
    # Row i sees min(i + 1, w) keys: w in each row, but for the 1 + ... + (w - 1) that the first ones lack.
    assert patterns.pairs(f"window:{w}", n, n) == n * w - w * (w - 1) // 2
    assert patterns.pairs("window:5000", n, n) == n * (n + 1) // 2
    # With a cache before it no row lacks any.
    assert patterns.pairs(f"window:{w}", n, n + w) == n * w
    # D sequences of N / D tokens, each with its window.
    assert patterns.pairs(f"dilated:{w}+4", n, n) == 4 * (250 * w - w * (w - 1) // 2)
    # A window, and s keys for each row beyond s + w - 1 of them; fewer before.
    assert patterns.pairs("sinks:4+96", n, n) == n * w - w * (w - 1) // 2 + (n - w) * 4 - (1 + 2 + 3)
    # g rows of N, and of each other the g and 2 r + 1 keys, less those beyond both ends and the global ones.
    g, r = 10, 50
    lost = r * (r + 1) // 2  # of the rows at the end, and so of those right behind the global ones
    assert patterns.pairs(f"longformer:{r}+{g}", n, n) == g * n + (n - g) * (g + 2 * r + 1) - 2 * lost
    # Causal, and in the first p rows what is above the diagonal.
    p = 100
    assert patterns.pairs(f"prefix:{p}", n, n) == n * (n + 1) // 2 + p * (p - 1) // 2
    # Causal for each sequence.
    assert patterns.pairs("packed:300+500", n, n) == (300 * 301 + 500 * 501 + 200 * 201) // 2
    w_ = AttentionWorkload(batch=2, heads=3, kv_heads=3, seq_q=8, seq_k=24, pattern="window:4")
    assert w_.pairs == 2 * 3 * 8 * 4


def test_packed_sequences_are_as_long_as_their_mean_on_average() -> None:
    assert pattern_kinds.starts_of((3, 4, 2), 20) == (0, 3, 7, 9)  # one more takes the rest
    assert pattern_kinds.starts_of((3, 4, 2), 9) == (0, 3, 7)
    assert pattern_kinds.starts_of((3, 4, 2), 6) == (0, 3)
    starts = pattern_kinds.starts_of((64,), 64 * 1000)
    lengths = [after - at for at, after in itertools.pairwise(starts)]
    assert min(lengths) >= 1
    assert max(lengths) <= 127
    # Uniform on 1..127: mean 64 and deviation 36.7 a length, so of 1000 the mean is within 5 of it.
    assert 64 - 5 <= sum(lengths) / len(lengths) <= 64 + 5
    assert starts == pattern_kinds.starts_of((64,), 64 * 1000)


@pytest.mark.parametrize("text", [kind.example for kind in pattern_kinds.KINDS.values()])
def test_every_kind_keeps_what_spans_promise(text: str) -> None:
    """Ends within the keys, spans of a row apart, and neighbours that touch unless blocks divide tiles."""
    ends, step, stride = patterns.spans(text, 4096, 4096)
    assert ends.dtype == np.int32
    assert ends.shape == (4096 // step, ends.shape[1], 2)
    assert stride == patterns.stride_of(text)
    assert 0 <= ends.min() <= ends.max() <= 4096
    assert patterns.is_blocked(text) == (step > 1)
    filled = ends[..., 0] < ends[..., 1]
    for row in range(len(ends)):
        spans = sorted(map(tuple, ends[row][filled[row]].tolist()))
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    if step == 1:
        both = filled[1:] & filled[:-1]
        apart = np.maximum(ends[1:, :, 0], ends[:-1, :, 0]) > np.minimum(ends[1:, :, 1], ends[:-1, :, 1])
        assert not (apart & both).any()


def test_share() -> None:
    assert patterns.share("local:0@16", 64) == 4 / 16  # of blocks
    assert patterns.share("window:2", 4) == 7 / 16  # of pairs


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("random:25%", "random:25%@128"), ("random:0.25@64", "random:25%@64"), ("butterfly", "butterfly@128"),
        ("local:2", "local:2@128"), ("local:2@32", "local:2@32"), ("random:12.5%@64", "random:12.5%@64"),
        ("bigbird:1+2+3", "bigbird:1+2+3@128"),
        ("window:4k", "window:4096"), ("packed:3+1k", "packed:3+1024"),
        ("dilated:512+4", "dilated:512+4"), ("sinks:4+1k", "sinks:4+1024"), ("prefix:0", "prefix:0"),
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
        ("local:9999", "pattern 'local:9999': numbers go from 0 to 2048"),
        ("local:" + "9" * 400, f"unknown pattern 'local:{'9' * 400}'"),
        ("local:1.5", "pattern 'local:1.5': 1.5 is no whole number"),
        ("window:0", "pattern 'window:0': numbers go from 1 to 4194304"),
        ("window:5m", "pattern 'window:5m': numbers go from 1 to 4194304"),
        ("window", "pattern 'window' needs another form"),
        ("window:4@64", "pattern 'window:4@64' has no blocks"),
        ("dilated:4", "pattern 'dilated:4' needs another form"),
        ("dilated:4+0", "pattern 'dilated:4+0': numbers go from 1 to 4194304"),
        ("longformer:1+2+3", "pattern 'longformer:1+2+3' needs another form"),
        ("packed", "pattern 'packed' needs another form"),
        ("packed:3+0", "pattern 'packed:3+0': numbers go from 1 to 4194304"),
        ("packed:" + "1+" * 256 + "1", f"unknown pattern 'packed:{'1+' * 256}1'"),
        ("bigbird:1+2", "pattern 'bigbird:1+2' needs another form"),
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
        (
            {"pattern": "local:2@32", "seq_k": 128},
            "pattern 'local:2@32' needs as many queries as keys, not 64 and 128",
        ),
        ({"pattern": "local:2@32", "causal": True}, "a pattern excludes a causal mask, dropout and padding"),
        (
            {"pattern": "local:2@16", "seq_q": 65536, "seq_k": 65536},
            "pattern 'local:2@16' cuts 65536 rows into 4096 blocks, and 2048 are the most",
        ),
        ({"dropout": 1.0}, "dropout is a share from 0 to below 1, not 1.0"),
        ({"padding": 64}, "padding must be from 0 to below the 64 keys, not 64"),
        (
            {"pattern": "packed:9", "seq_k": 65},
            "pattern 'packed:9' needs as many queries as keys, not 64 and 65",
        ),
        ({"pattern": "dilated:4+3"}, "pattern 'dilated:4+3': 3 must divide the 64 rows"),
        (
            {"pattern": "window:4", "seq_k": 5 << 20},
            "pattern 'window:4' is worked out for 4194304 rows at most",
        ),
        ({"pattern": "window:4k"}, "pattern 'window:4k' is not as patterns are written"),
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
