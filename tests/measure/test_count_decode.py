"""Counted bytes of `flash-decode` are its closed form, byte for byte, in one share of the keys or several."""

from typing import Any

import msgspec
import pytest

from perfkit.measure.counting.count import count_all
from perfkit.measure.counting.types import Count, Request, Sampling, request
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_counted import differences
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation

pytest.importorskip("torch")
pytest.importorskip("triton")

#: (heads, kv_heads, N_q, N_k, head dim, causal, shares asked for, shares that run).
CASES: list[tuple[Any, ...]] = [
    (2, 1, 1, 300, 64, False, 1, 1),
    (2, 1, 1, 300, 64, False, None, 3),  # 3 blocks of 128 on an idle device
    (8, 2, 1, 257, 128, True, 3, 3),  # 3 blocks of 128, a share each
    (6, 2, 3, 203, 48, True, 2, 2),
    (6, 2, 3, 203, 48, True, 1, 1),
    (4, 1, 64, 130, 128, True, 3, 3),  # four row tiles, and some see nothing of the last share
    (4, 2, 9, 5, 32, True, None, 1),
    (3, 3, 1, 1, 16, False, None, 1),
]
DESCRIBED = CASES[2]


def row(splits: int | None) -> Implementation:
    """The implementation, with a kernel of its own that merges."""
    found = ATTENTION.implementation("flash-decode")
    assert found is not None
    target = found.target.replace(":attention", ":forward")
    return msgspec.structs.replace(found, target=target, options={"splits": splits, "fused": False})


def asked(case: tuple[Any, ...], descriptors: bool = False) -> Request:
    heads, kv_heads, seq_q, seq_k, head_dim, causal, splits, _ = case
    w = AttentionWorkload(
        batch=2, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, causal=causal
    )
    return request(row(splits), w, Sampling(heads="all"), descriptors=descriptors)


@pytest.fixture(scope="module")
def counts() -> dict[tuple[Any, ...], Count]:
    """All counts of this file, made in one process; the last one reads through tensor descriptors."""
    found = count_all([*map(asked, CASES), asked(DESCRIBED, descriptors=True)])
    return dict(zip([*CASES, "descriptors"], found, strict=True))


@pytest.mark.parametrize("case", [*CASES, "descriptors"], ids=str)
def test_the_count_is_the_ledger(case: Any, counts: dict[Any, Count]) -> None:
    found, splits = counts[case], (DESCRIBED if case == "descriptors" else case)[-1]
    io = row(None).io
    assert io is not None
    merged = [("decode_combine", splits)] if splits > 1 else []
    assert [(use.kernel, use.block_m) for use in found.uses if use.kernel != "decode_split"] == merged
    assert differences(found.moved, io.ledger(found.workload, found.uses)) == ()
    assert (found.atomics, found.passes) == ((), ())


def moved(found: Count) -> dict[tuple[str, str], tuple[int, int]]:
    return {(m.kernel, m.tensor): (m.traffic.read_bytes, m.traffic.write_bytes) for m in found.moved}


def test_hand_derived_numbers(counts: dict[Any, Count]) -> None:
    # Batch 2, 8 query heads over 2 K/V heads, N_q 1, N_k 257, d 128: 3 shares, and the 4 rows of a K/V head
    # read its keys once. 16 rows in all; a partial result is 128 + 1 numbers of 4 bytes.
    q, k = 16 * 128 * 2, 2 * 2 * 257 * 128 * 2
    assert moved(counts[CASES[2]]) == {
        ("decode_split", "Q"): (3 * q, 0),
        ("decode_split", "K"): (k, 0),
        ("decode_split", "V"): (k, 0),
        ("decode_split", "O in fp32"): (0, 3 * 16 * 128 * 4),
        ("decode_split", "LSE"): (0, 3 * 16 * 4),
        ("decode_combine", "O in fp32"): (3 * 16 * 128 * 4, 0),
        ("decode_combine", "LSE"): (3 * 16 * 4, 0),
        ("decode_combine", "O"): (0, q),
    }


def test_one_share_moves_what_is_compulsory(counts: dict[Any, Count]) -> None:
    q, k = 4 * 64 * 2, 2 * 300 * 64 * 2
    assert moved(counts[CASES[0]]) == {
        ("decode_split", "Q"): (q, 0),
        ("decode_split", "K"): (k, 0),
        ("decode_split", "V"): (k, 0),
        ("decode_split", "O"): (0, q),
    }


def test_one_head_counts_what_all_heads_count_in_as_many_shares(counts: dict[Any, Count]) -> None:
    one = count_all([msgspec.structs.replace(asked(CASES[3]), sampling=Sampling())])[0]
    assert moved(one) == moved(counts[CASES[3]])
