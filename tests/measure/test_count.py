"""Counted bytes are the closed forms, byte for byte, for every kernel that is shipped."""

from typing import Any

import pytest

from perfkit.errors import UsageError
from perfkit.measure.counting import count as counting
from perfkit.measure.counting.count import count, count_all
from perfkit.measure.counting.recorded import TAGS, numbers_of
from perfkit.measure.counting.types import Atomics, Count, CountFailed, Request, Sampling, request
from perfkit.model.traffic import Traffic
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_counted import differences
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Moved

pytest.importorskip("torch")
triton = pytest.importorskip("triton")


def _row(name: str) -> Implementation:
    row = ATTENTION.implementation(name)
    assert row is not None
    return row


def _w(seq_q: int, seq_k: int, head_dim: int = 64, causal: bool = False, **more: Any) -> AttentionWorkload:
    sizes = {"heads": 1, "kv_heads": 1, "pass_": "fwd-bwd", **more}
    return AttentionWorkload(seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, causal=causal, **sizes)


GROUPED = {"batch": 2, "heads": 4, "kv_heads": 2}
LENGTHS = [(113, 113), (203, 256), (256, 203), (1000, 1000)]
DESCRIBED = [(203, 256), (256, 203)]
#: (implementation, N_q, N_k, head dim, other sizes, causal, descriptors). 96 is padded to 128 columns.
EXACT: list[tuple[Any, ...]] = [
    *(("flash-triton", *n, d, {}, c, False) for n in LENGTHS for d in (64, 96, 128) for c in (False, True)),
    *(("flash-triton", *n, d, {}, c, True) for n in DESCRIBED for d in (64, 96, 128) for c in (False, True)),
    *(
        ("flash-triton", 113, 1000, 64, GROUPED, c, described)
        for c in (False, True)
        for described in (False, True)
    ),
    *(("flash1", *n, 96, {"heads": 2}, c, False) for n in LENGTHS[:3] for c in (False, True)),
]


@pytest.fixture(scope="module")
def counts() -> dict[Request, Count]:
    """All counts of this file, made in one process: starting one takes seconds."""
    requests = [
        *(_exact(case) for case in EXACT),
        *(_request("flash-triton", _w(113, 203, causal=True, pass_=p)) for p in ("fwd", "bwd")),
        *(_request(*case) for case in SAMPLED),
        *(_request("standard", _standard(causal, pass_)) for causal, pass_ in PASSES),
        OLDER,
    ]
    requests = list(dict.fromkeys(requests))
    return dict(zip(requests, count_all(requests), strict=True))


def _exact(case: tuple[Any, ...]) -> Request:
    impl, seq_q, seq_k, head_dim, more, causal, descriptors = case
    return request(_row(impl), _w(seq_q, seq_k, head_dim, causal, **more), descriptors=descriptors)


def _request(impl: str, w: AttentionWorkload, sampling: Sampling | None = None) -> Request:
    return request(_row(impl), w, sampling)


def _differences(found: Count) -> tuple[Any, ...]:
    io = _row(found.impl).io
    assert io is not None
    return differences(found.moved, io.ledger(found.workload, found.uses))


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_the_count_is_the_ledger(case: tuple[Any, ...], counts: dict[Request, Count]) -> None:
    found = counts[_exact(case)]
    assert _differences(found) == ()
    assert len({entry.kernel for entry in found.moved}) == (4 if found.impl == "flash-triton" else 2)
    assert found.atomics == ()
    assert ("tiles read through tensor descriptors" in found.notes) == case[-1]


def _moved(found: Count) -> dict[tuple[str, str], tuple[int, int]]:
    return {(m.kernel, m.tensor): (m.traffic.read_bytes, m.traffic.write_bytes) for m in found.moved}


def test_hand_derived_numbers(counts: dict[Request, Count]) -> None:
    found = counts[_exact(("flash-triton", 113, 113, 64, {}, False, False))]
    assert [(use.kernel, use.block_m, use.block_n) for use in found.uses] == [
        ("flash_forward", 64, 128),
        ("flash_delta", 64, 0),
        ("flash_dkdv", 64, 64),
        ("flash_dq", 128, 64),
    ]
    rows = 113 * 64 * 2  # one pass over 113 rows of 64 elements of 2 bytes: 14464
    assert _moved(found) == {
        ("flash_forward", "Q"): (rows, 0),
        ("flash_forward", "K"): (2 * rows, 0),  # ceil(113 / 64) = 2 blocks of queries
        ("flash_forward", "V"): (2 * rows, 0),
        ("flash_forward", "O"): (0, rows),
        ("flash_forward", "LSE"): (0, 452),  # 113 x 4 bytes
        ("flash_delta", "O"): (rows, 0),
        ("flash_delta", "dO"): (rows, 0),
        ("flash_delta", "D"): (0, 452),
        ("flash_dkdv", "K"): (rows, 0),
        ("flash_dkdv", "V"): (rows, 0),
        ("flash_dkdv", "Q"): (2 * rows, 0),  # ceil(113 / 64) = 2 blocks of keys
        ("flash_dkdv", "dO"): (2 * rows, 0),
        ("flash_dkdv", "LSE"): (904, 0),
        ("flash_dkdv", "D"): (904, 0),
        ("flash_dkdv", "dK"): (0, rows),
        ("flash_dkdv", "dV"): (0, rows),
        ("flash_dq", "Q"): (rows, 0),
        ("flash_dq", "dO"): (rows, 0),
        ("flash_dq", "LSE"): (452, 0),
        ("flash_dq", "D"): (452, 0),
        ("flash_dq", "K"): (rows, 0),  # ceil(113 / 128) = 1 block of queries
        ("flash_dq", "V"): (rows, 0),
        ("flash_dq", "dQ"): (0, rows),
    }


def test_a_pass_is_counted_alone(counts: dict[Request, Count]) -> None:
    """The forward that a backward pass needs is run and not counted."""
    forward, backward = (
        counts[_request("flash-triton", _w(113, 203, causal=True, pass_=p))] for p in ("fwd", "bwd")
    )
    assert {entry.kernel for entry in forward.moved} == {"flash_forward"}
    assert {entry.kernel for entry in backward.moved} == {"flash_delta", "flash_dkdv", "flash_dq"}
    assert _differences(forward) == _differences(backward) == ()
    assert [use.kernel for use in backward.uses] == ["flash_delta", "flash_dkdv", "flash_dq"]


# Sampling.

EVERY = Sampling(heads="all")
ALIKE = Sampling(programs="alike")
EVERY_ALIKE = Sampling(heads="all", programs="alike")
SAMPLINGS = {
    "flash-triton": (Sampling(), EVERY, ALIKE, EVERY_ALIKE),
    "flash1": (Sampling(), EVERY),
    "standard": (Sampling(), EVERY),
}
SAMPLED = [
    (impl, _w(203, 256, 64, causal, **GROUPED), sampling)
    for impl, samplings in SAMPLINGS.items()
    for causal in (False, True)
    for sampling in samplings
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("impl", ["flash-triton", "flash1", "standard"])
def test_a_sample_counts_what_all_count(impl: str, causal: bool, counts: dict[Request, Count]) -> None:
    found = [counts[_request(*case)] for case in SAMPLED if case[0] == impl and case[1].causal == causal]
    assert len(found) == len(SAMPLINGS[impl])
    assert found[0].moved
    assert all(_moved(one) == _moved(found[0]) for one in found)
    assert found[0].notes[1].startswith("1 of 4 K/V heads ran with 2 query heads, bytes ")
    assert not any("K/V heads" in note for note in found[1].notes)


def test_what_was_sampled_is_stated(counts: dict[Request, Count]) -> None:
    found = counts[_request("flash-triton", _w(203, 256, **GROUPED), ALIKE)]
    # One K/V head with 2 query heads. Blocks of 64: ceil(203 / 64) = 4 with a partial one, 8 in two heads, of
    # which one of each class and a witness of each run. Blocks of 64 keys: 4 whole ones, one and a witness.
    assert [(s.kernel, s.ran, s.programs) for s in found.sampled] == [
        ("flash_forward", 4, 8),
        ("flash_delta", 4, 8),
        ("flash_dkdv", 2, 4),
        ("flash_dq", 4, 4),
    ]
    assert found.notes == (
        "run in fp16: the interpreter multiplies bf16 wrongly, and the elements are as wide",
        "1 of 4 K/V heads ran with 2 query heads, bytes times 4",
        "tiles of compute capability 9.0",
        "flash_forward: 4 of 8 programs ran, one whole tile and the partial one; checked against 2 more",
        "flash_delta: 4 of 8 programs ran, one whole tile and the partial one; checked against 2 more",
        "flash_dkdv: 2 of 4 programs ran, one tile; checked against 1 more",
    )


OLDER = request(_row("flash"), _w(256, 256, causal=False, dtype="fp16"), capability=(8, 0))


def test_the_tiles_of_another_device(counts: dict[Request, Count]) -> None:
    """There `flash` runs the portable kernels, and its model is that of what ran."""
    found = counts[OLDER]
    assert found.uses[0].block_m == 128  # 64 on 9.0
    # Q once, K and V in ceil(256 / 128) = 2 passes: (1 + 2 + 2) x 256 x 64 x 2 bytes.
    assert sum(m.traffic.read_bytes for m in found.moved if m.kernel == "flash_forward") == 5 * 32768
    assert _differences(found) == ()
    assert found.notes == ("tiles of compute capability 8.0",)  # fp16 as asked, and there is one head


# Standard attention: passes over tensors.

PASSES = [(causal, pass_) for causal in (False, True) for pass_ in ("fwd", "bwd", "fwd-bwd")]


def _standard(causal: bool, pass_: str) -> AttentionWorkload:
    return _w(113, 203, 32, causal, pass_=pass_, **GROUPED)


def test_standard_forward_is_the_ledger(counts: dict[Request, Count]) -> None:
    found = counts[_request("standard", _standard(False, "fwd"))]
    assert _differences(found) == ()
    assert found.passes == ("S = Q K^T", "P = softmax(S)", "O = P V")


def test_the_causal_mask_is_made_from_vectors(counts: dict[Request, Count]) -> None:
    found = _differences(counts[_request("standard", _standard(True, "fwd"))])
    vectors = 4 * (113 + 203)  # int32, once for all heads
    assert {(d.kernel, d.tensor): (d.counted.read_bytes, d.counted.write_bytes) for d in found} == {
        ("aten::arange", "index"): (0, vectors),
        ("mask", "index"): (vectors, 0),
    }
    assert all(d.reason and "index vectors" in d.reason for d in found)


@pytest.mark.parametrize("causal", [False, True])
def test_standard_backward_differs_by_the_softmax(causal: bool, counts: dict[Request, Count]) -> None:
    w = _standard(causal, "bwd")
    found = counts[_request("standard", w)]
    square = 2 * 4 * 113 * 203 * 2  # batch x heads x N_q x N_k x 2 bytes
    assert w.scores_bytes == square
    unequal = _differences(found)
    # The ledger: P o dP reads two and writes one, dS reads it: 4 N^2; a CPU reads dP in dS instead: 1 N^2.
    assert {(d.kernel, d.tensor) for d in unequal} == {
        ("P o dP", "P"),
        ("P o dP", "dP"),
        ("P o dP", "P o dP"),
        ("dS", "P o dP"),
        ("dS", "dP"),
    }
    assert sum(d.expected.total_bytes for d in unequal) == 4 * square
    assert sum(d.counted.total_bytes for d in unequal) == square
    assert all(d.reason and "on a CPU" in d.reason for d in unequal)
    squares = sum(m.traffic.total_bytes for m in found.moved if m.tensor in ("P", "dP", "dS"))
    assert squares == 7 * square  # FA1 Algorithm 3


# What a count is for, and what cannot be counted.


def test_counted_numbers_of_a_run(counts: dict[Request, Count]) -> None:
    found = numbers_of(counts[_request("flash-triton", _w(113, 203, causal=True, pass_="fwd"))])
    read, written = (found[tag] for tag in TAGS)
    # Blocks of 128 x 64: one block of queries, which sees all 203 keys. Q and O 113 rows of 128 bytes.
    assert read.value == 113 * 128 + 2 * 203 * 128
    assert written.value == 113 * 128 + 113 * 4
    assert read.provenance == written.provenance == "counted"
    assert read.reason is not None
    assert "tiles of compute capability 9.0" in read.reason


def test_passes_are_not_bytes_between_sms_and_l2(counts: dict[Request, Count]) -> None:
    for found in numbers_of(counts[_request("standard", _standard(False, "fwd"))]).values():
        assert found.value is None
        assert found.reason == (
            "passes of torch over tensors were counted, not what its kernels load and store"
        )


def test_atomics_are_apart() -> None:
    entry = Moved(kernel="k", tensor="Q", traffic=Traffic(read_bytes=8, write_bytes=2))
    atomics = (Atomics(kernel="k", tensor="dQ", operations=3, operand_bytes=12),)
    found = numbers_of(Count(impl="flash-triton", workload=_w(16, 16), moved=(entry,), atomics=atomics))
    assert [found[tag].value for tag in TAGS] == [8, 2]
    assert found[TAGS[0]].reason == "12 bytes of atomic operations apart"


def test_differences_name_what_is_missing_on_either_side() -> None:
    def entry(tensor: str, read: int) -> Moved:
        return Moved(kernel="k", tensor=tensor, traffic=Traffic(read_bytes=read, write_bytes=0))

    # Two entries of one tensor are one; zero bytes are no entry.
    assert differences((entry("Q", 2), entry("Q", 3), entry("V", 0)), (entry("Q", 5),)) == ()
    found = differences((entry("Q", 4), entry("K", 1)), (entry("Q", 5), entry("V", 7)))
    assert [(d.tensor, d.counted.read_bytes, d.expected.read_bytes) for d in found] == [
        ("Q", 4, 5),
        ("V", 0, 7),
        ("K", 1, 0),
    ]
    assert all(d.reason is None for d in found)


@pytest.mark.parametrize(
    ("impl", "w", "reason"),
    [
        ("sdpa-flash", _w(64, 64), "not perfkit's own"),
        ("flash-triton", _w(64, 64, dtype="fp32"), "dtype fp32: flash-triton takes bf16, fp16"),
        ("flash-triton", _w(64, 64, 20), "head dim 20"),
        ("flash", _w(64, 64, 20), "head dim 20"),
        (
            "flash",
            _w(64, 64),
            "Gluon, .*--impl flash-triton",
        ),  # with the tiles of 9.0, unless others are asked for
    ],
)
def test_what_cannot_be_counted_is_refused(impl: str, w: AttentionWorkload, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{impl} cannot be counted: .*{reason}"):
        count(ATTENTION, _row(impl), w)


def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting.sys, "executable", "/bin/false")
    with pytest.raises(CountFailed, match="ended with status 1: no word"):
        count(ATTENTION, _row("flash-triton"), _w(64, 64))
