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
    ("bigbird:1+1+1@32", 200, 64),
    ("random:40%@64", 300, 64),
    ("butterfly@128", 700, 64),
    ("local:1@32", 113, 96),
    ("random:25%@64", 512, 40),
    ("local:0@128", 130, 128),
]
#: Without blocks (pattern, N_q, N_k, head dim): spans of one and of two, runs and none, a cache before the
#: queries, rows that see nothing, and each remainder for itself.
BY_POSITION = [
    ("window:100", 400, 400, 64),
    ("window:1000", 203, 203, 64),
    ("window:50", 300, 600, 64),
    ("window:20", 300, 100, 64),
    ("dilated:20+3", 300, 300, 64),
    ("sinks:4+60", 333, 333, 40),
    ("sinks:130+60", 100, 500, 64),
    ("longformer:70+20", 300, 300, 64),
    ("longformer:70+200", 600, 600, 64),
    ("prefix:130", 333, 400, 128),
    ("packed:60", 400, 400, 64),
    ("packed:1", 70, 70, 64),
]
GROUPED: dict[str, Any] = {"batch": 2, "heads": 4, "kv_heads": 2}
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
    sizes = {"seq_k": n, "heads": 1, "kv_heads": 1, "pass_": "fwd-bwd", **more}
    w = AttentionWorkload(seq_q=n, head_dim=head_dim, pattern=pattern, **sizes)
    return request(_row(impl), w, sampling, descriptors=descriptors)


EXACT = [
    *(_request(impl, *size) for impl in IMPLS for size in SIZES),
    *(_request(impl, "random:40%@64", 300, 64, pass_=pass_) for impl in IMPLS for pass_ in ("fwd", "bwd")),
    *(_request(impl, "random:40%@64", 203, 64, **GROUPED) for impl in IMPLS),
    *(_request("block-sparse", pattern, n, d, seq_k=keys) for pattern, n, keys, d in BY_POSITION),
    _request("block-sparse", "window:50", 150, 64, seq_k=300, **GROUPED),
    _request("block-sparse", "dilated:20+3", 300, 64, **GROUPED),
    _request("block-sparse", "dilated:20+3", 300, 64, ALIKE, **GROUPED),
    _request("block-sparse", "window:100", 400, 64, descriptors=True),
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
    return f"{one.impl}-{w.pattern}-{w.seq_q}-{w.seq_k}-{w.heads}-{w.pass_}{more}"


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
        "members": (2 * 4, 0),  # 2 tiles of keys, which are neighbours, and 1
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


def test_hand_derived_numbers_of_a_window(counts: dict[Request, Count]) -> None:
    # Tiles of 128 queries by 64 keys. Rows 0 to 127 meet tiles 0 and 1; 128 to 255 see keys
    # 29 to 255, tiles 0 to 3; 256 to 383 see 157 to 383, tiles 2 to 5; 384 to 399 see 285 to 399, tiles 4 to
    # 6, of which the last has 16 keys and the middle one is in full. A row is 64 x 2 = 128 bytes.
    one = counts[_request("block-sparse", "window:100", 400, 64)]
    found = {tensor: moved for (kernel, tensor), moved in _moved(one).items() if "forward" in kernel}
    assert (one.uses[0].block_m, one.uses[0].block_n) == (128, 64)
    keys = 2 * 64 + 4 * 64 + 4 * 64 + (2 * 64 + 16)
    assert found == {
        "Q": (400 * 128, 0),
        "K": (keys * 128, 0),
        "V": (keys * 128, 0),
        "offsets": (4 * 8, 0),
        "partial": (4 * 4, 0),
        "members": ((2 + 4 + 4 + 2) * 4 + 1 * 4, 0),
        "spans": (400 * 8, 0),
        "O": (0, 400 * 128),
        "LSE": (0, 400 * 4),
    }
