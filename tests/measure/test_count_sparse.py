"""Block-sparse kernels executed and counted: the bytes are the closed forms, byte for byte."""

from typing import Any

import pytest

from perfkit.measure.counting.count import count_all
from perfkit.measure.counting.types import Count, Request, Sampling, request
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_counted import differences
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation

pytest.importorskip("torch")
pytest.importorskip("triton")

IMPLS = ("block-sparse", "block-sparse1")
#: (pattern, N, head dim): whole blocks and partial ones; blocks of one tile, of several, and too small.
SIZES = [
    ("random:40%@64", 300, 64),
    ("butterfly@128", 700, 64),
    ("local:1@32", 113, 96),
    ("random:25%@64", 512, 40),
    ("local:0@128", 130, 128),
]
GROUPED = {"batch": 2, "heads": 4, "kv_heads": 2}
ALIKE = Sampling(heads="all", programs="alike")


def _row(name: str) -> Implementation:
    row = ATTENTION.implementation(name)
    assert row is not None
    return row


def _request(
    impl: str,
    pattern: str,
    n: int,
    head_dim: int,
    sampling: Sampling | None = None,
    descriptors: bool = False,
    **more: Any,
) -> Request:
    sizes = {"heads": 1, "kv_heads": 1, "pass_": "fwd-bwd", **more}
    w = AttentionWorkload(seq_q=n, seq_k=n, head_dim=head_dim, pattern=pattern, **sizes)
    return request(_row(impl), w, sampling, descriptors=descriptors)


EXACT = [
    *(_request(impl, *size) for impl in IMPLS for size in SIZES),
    *(_request(impl, "random:40%@64", 300, 64, pass_=pass_) for impl in IMPLS for pass_ in ("fwd", "bwd")),
    *(_request(impl, "random:40%@64", 203, 64, **GROUPED) for impl in IMPLS),
    _request("block-sparse", "random:40%@64", 300, 64, descriptors=True),
    _request("block-sparse", "random:40%@64", 203, 64, ALIKE, **GROUPED),
]


@pytest.fixture(scope="module")
def counts() -> dict[Request, Count]:
    """All counts of this file, made in one process: starting one takes seconds."""
    return dict(zip(EXACT, count_all(EXACT), strict=True))


def _name(one: Request) -> str:
    w = one.workload
    more = "-alike" if one.sampling == ALIKE else "-described" if one.descriptors else ""
    return f"{one.impl}-{w.pattern}-{w.seq_q}-{w.heads}-{w.pass_}{more}"


@pytest.mark.parametrize("one", EXACT, ids=_name)
def test_the_count_is_the_ledger(one: Request, counts: dict[Request, Count]) -> None:
    found, io = counts[one], _row(one.impl).io
    assert io is not None
    assert differences(found.moved, io.ledger(found.workload, found.uses)) == ()
    assert {entry.kernel for entry in found.moved} == {use.kernel for use in found.uses}
    assert set(io.tiled(found.workload)) <= {use.kernel for use in found.uses}
    assert len(found.uses) == io.launches(found.workload)
    assert (found.atomics, found.passes) == ((), ())  # nor does making the lists count


def test_the_tiles_that_ran_are_those_of_the_plan(counts: dict[Request, Count]) -> None:
    for one in EXACT:
        plan = _row(one.impl).plan
        assert plan is not None
        planned = {use.kernel: (use.block_m, use.block_n) for use in plan(one.workload, (9, 0))}
        ran = {use.kernel: (use.block_m, use.block_n) for use in counts[one].uses if use.block_n}
        assert ran == {kernel: planned[kernel] for kernel in ran}


def test_programs_of_other_heads_are_alike(counts: dict[Request, Count]) -> None:
    sampled = {one.kernel: (one.ran, one.programs) for one in counts[EXACT[-1]].sampled}
    # N 203 in tiles of 64: 4 rows of tiles, one of each and 2 witnesses; 2 x 4 heads, or 2 x 2 of keys.
    assert sampled["block_sparse_forward"] == sampled["block_sparse_dq"] == (4 + 2, 4 * 8)
    assert sampled["block_sparse_dkdv"] == (4 + 2, 4 * 4)


def _moved(found: Count) -> dict[tuple[str, str], tuple[int, int]]:
    return {(m.kernel, m.tensor): (m.traffic.read_bytes, m.traffic.write_bytes) for m in found.moved}


def test_hand_derived_numbers(counts: dict[Request, Count]) -> None:
    # local:0 of two blocks: 128 keys and 2. A row is 128 x 2 = 256 bytes.
    forward = counts[_request("block-sparse", "local:0@128", 130, 128)]
    found = {tensor: moved for (kernel, tensor), moved in _moved(forward).items() if "forward" in kernel}
    assert (forward.uses[0].block_m, forward.uses[0].block_n) == (128, 64)
    assert found == {
        "Q": (130 * 256, 0),
        "K": (130 * 256, 0),  # a tile of 128 queries reads 128 keys, one of 2 queries 2
        "V": (130 * 256, 0),
        "offsets": (2 * 8, 0),
        "columns": (
            (2 + 1) * 4 + 2 * 4,
            0,
        ),  # 2 tiles of keys and 1; each program once, for the partial block
        "O": (0, 130 * 256),
        "LSE": (0, 130 * 4),
    }
    first = counts[_request("block-sparse1", "local:0@128", 130, 128)]
    found = {tensor: moved for (kernel, tensor), moved in _moved(first).items() if "forward" in kernel}
    assert (first.uses[0].block_m, first.uses[0].block_n) == (64, 64)
    rows = 128 + 128 + 2  # two tiles of keys of the first block see its 128 queries, one its 2
    assert found == {
        "K": (130 * 256, 0),
        "V": (130 * 256, 0),
        "mask": (3 * 3, 0),
        "Q": (rows * 256, 0),
        "O in fp32": (rows * 512, rows * 512),  # zeroed once, and once in its dtype instead
        "l": (rows * 4, rows * 4 + 130 * 4),
        "m": (rows * 4, rows * 4 + 130 * 4),
        "O": (0, 130 * 256),
    }
