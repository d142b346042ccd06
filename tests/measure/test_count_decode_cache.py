"""Counted bytes of `flash-decode` over a K/V cache in every form are its closed form, byte for byte."""

from typing import Any

import msgspec
import pytest

from perfkit.measure.counting.count import count_all
from perfkit.measure.counting.types import Count, Request, Sampling, request
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_counted import differences
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, total

pytest.importorskip("torch")
pytest.importorskip("triton")

#: Workloads of 300 keys unless they say otherwise; `splits` asks for shares.
CASES: list[dict[str, Any]] = [
    {"padding": 250, "batch": 3, "splits": 3},
    {"padding": 250, "batch": 3, "splits": 1},
    {"padding": 200, "batch": 2, "seq_q": 5, "causal": True, "heads": 16, "splits": 3},  # 40 rows: a tile
    *({"page": page, "splits": 2} for page in (1, 2, 7, 16, 24, 64, 100, 256)),
    *({"page": page, "padding": 290, "batch": 3, "causal": True} for page in (1, 16, 24, 100)),
    {
        "page": 16,
        "seq_q": 17,
        "causal": True,
        "heads": 16,
        "padding": 31,
        "batch": 2,
    },  # 136 rows: three tiles
    {"page": 16, "prefix": 96, "batch": 3, "padding": 150},
    {"cache_dtype": "fp8", "splits": 3},
    {"cache_dtype": "fp8", "padding": 250, "batch": 2, "splits": 2},
    *({"cache_dtype": "fp8", "page": page, "padding": 30, "batch": 2} for page in (1, 16, 24, 256)),
    {"append": True, "splits": 1},
    {"append": True, "seq_q": 20, "page": 16, "causal": True, "padding": 90, "batch": 2},
    {"append": True, "seq_q": 3, "page": 7, "cache_dtype": "fp8"},
    {"append": True, "seq_q": 20, "cache_dtype": "fp8", "padding": 90, "batch": 2},
]
#: Merged by the last share, which `uses` of a count does not tell: (workload, shares).
FUSED: list[tuple[dict[str, Any], int]] = [
    ({}, 3),
    ({"padding": 250, "batch": 3}, 3),
    ({"page": 16, "padding": 250, "batch": 3, "cache_dtype": "fp8"}, 3),
    ({"seq_q": 17, "causal": True, "heads": 16}, 2),
]


def row() -> Implementation:
    found = ATTENTION.implementation("flash-decode")
    assert found is not None
    return found


def asked(fields: dict[str, Any], fused: bool = False, **more: Any) -> Request:
    """The request, in as many shares as `splits` says."""
    sizes = {"heads": 4, "kv_heads": 2, "seq_q": 1, "seq_k": 300, "head_dim": 128, **fields}
    options = {"splits": sizes.pop("splits", None), "fused": fused}
    target = row().target.replace(":attention", ":forward")
    made = msgspec.structs.replace(row(), target=target, options=options)
    return request(made, AttentionWorkload(**sizes), Sampling(heads="all"), **more)


@pytest.fixture(scope="module")
def counts() -> list[Count]:
    """All counts of this file, made in one process."""
    described = asked({"page": 256, "seq_k": 512}, descriptors=True)
    return list(
        count_all(
            [
                *map(asked, CASES),
                *(asked({**fields, "splits": splits}, True) for fields, splits in FUSED),
                described,
            ]
        )
    )


@pytest.mark.parametrize("at", range(len(CASES)), ids=lambda at: str(CASES[at]))
def test_the_count_is_the_ledger(at: int, counts: list[Count]) -> None:
    found, io = counts[at], row().io
    assert io is not None
    assert differences(found.moved, io.ledger(found.workload, found.uses)) == ()
    assert (found.atomics, found.passes) == ((), ())


@pytest.mark.parametrize("at", range(len(FUSED)), ids=lambda at: str(FUSED[at]))
def test_merging_at_the_end_moves_what_the_ledger_says(at: int, counts: list[Count]) -> None:
    found, splits, io = counts[len(CASES) + at], FUSED[at][1], row().io
    assert io is not None
    (split,) = (use for use in found.uses if use.kernel == "decode_split")
    merge = KernelUse(kernel="decode_merge", block_m=splits, block_n=0)
    ledger = io.ledger(found.workload, (split, merge))
    assert differences(found.moved, ledger) == ()
    assert found.passes == ()
    # Each share that has work says once that it is ready: as often as row tiles are read.
    (arrivals,) = found.atomics
    assert (arrivals.kernel, arrivals.tensor) == ("decode_split", "arrivals")
    lse = next(entry.traffic for entry in ledger if entry.tensor == "LSE")
    rows = found.workload.heads // found.workload.kv_heads * found.workload.seq_q
    tiles_m = -(-rows // split.block_m)
    assert arrivals.operations == lse.write_bytes // 4 * tiles_m // rows


def test_a_page_through_descriptors_moves_as_much(counts: list[Count]) -> None:
    found, io = counts[-1], row().io
    assert io is not None
    assert "tiles read through tensor descriptors" in found.notes
    assert differences(found.moved, io.ledger(found.workload, found.uses)) == ()


def test_hand_derived_numbers(counts: list[Count]) -> None:
    # Three sequences of 300, 175 and 50 keys, two K/V heads, blocks of 128 keys: 3 blocks, a share each, so
    # that the second sequence has two shares and the third one. 6 of 9 are at work, each for 2 x 2 rows.
    moved = {(m.kernel, m.tensor): m.traffic for m in counts[0].moved}
    keys = 2 * (300 + 175 + 50) * 128 * 2
    assert moved[("decode_split", "K")].read_bytes == moved[("decode_split", "V")].read_bytes == keys
    assert moved[("decode_split", "Q")].read_bytes == 6 * 4 * 128 * 2
    assert moved[("decode_split", "lengths")].read_bytes == 2 * 9 * 4
    assert moved[("decode_combine", "LSE")].read_bytes == 6 * 4 * 4
    assert moved[("decode_combine", "lengths")].read_bytes == 3 * 4 * 4


def test_fp8_moves_half_and_its_scales(counts: list[Count]) -> None:
    whole, eight = (
        total(m for m in counts[at].moved if m.tensor in ("K", "V"))
        for at in (CASES.index({"page": 16, "splits": 2}), CASES.index({"cache_dtype": "fp8", "splits": 3}))
    )
    assert whole.read_bytes == 2 * eight.read_bytes == 2 * 2 * 300 * 128 * 2
