"""What executing `gpt2` on a CPU moves is its ledger, but for differences that are known and explained."""

from typing import Any

import pytest

from perfkit.measure.counting.count import count_all
from perfkit.measure.counting.types import Count, Request, Sampling, request
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_counted import Difference, differences
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, total

pytest.importorskip("torch")

BATCH, HEADS, SEQ_Q, SEQ_K = 3, 2, 113, 203
SQUARE = BATCH * HEADS * SEQ_Q * SEQ_K * 2
KEPT = SQUARE // 2  # Z: one byte an element
ROW = SEQ_K * 2  # the mask of one sequence
FEATURES = {"plain": {}, "padding": {"padding": 20}, "dropout": {"dropout": 0.1},
            "both": {"padding": 20, "dropout": 0.1}}  # fmt: skip
EVERY = Sampling(heads="all")


def _row() -> Implementation:
    row = ATTENTION.implementation("gpt2")
    assert row is not None
    return row


def _request(features: str, pass_: str, sampling: Sampling = EVERY) -> Request:
    sizes: dict[str, Any] = {"batch": BATCH, "heads": HEADS, "kv_heads": HEADS}
    w = AttentionWorkload(
        **sizes, seq_q=SEQ_Q, seq_k=SEQ_K, head_dim=32, dtype="fp16", pass_=pass_, **FEATURES[features]
    )
    return request(_row(), w, sampling)


@pytest.fixture(scope="module")
def counts() -> dict[Request, Count]:
    """All counts of this file, made in one process."""
    requests = [_request(features, pass_) for features in FEATURES for pass_ in ("fwd", "bwd")]
    requests += [_request("both", "fwd-bwd"), _request("both", "fwd-bwd", Sampling())]
    return dict(zip(requests, count_all(requests), strict=True))


def _differences(found: Count) -> dict[tuple[str, str], Difference]:
    io = _row().io
    assert io is not None
    return {(d.kernel, d.tensor): d for d in differences(found.moved, io.ledger(found.workload, ()))}


def _moved(found: dict[tuple[str, str], Difference]) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """(read counted, written counted, read expected, written expected) of each difference."""
    return {
        key: (d.counted.read_bytes, d.counted.write_bytes, d.expected.read_bytes, d.expected.write_bytes)
        for key, d in found.items()
    }


VECTORS = {
    ("aten::arange", "index"): (0, 4 * SEQ_K, 0, 0),  # int32
    ("padding mask", "index"): (4 * SEQ_K, 0, 0, 0),
    ("padding mask", "unnamed"): (4 * BATCH, 0, 0, 0),  # the lengths
}
Z_WRITTEN = {
    ("P o Z", "P o Z"): (0, SQUARE + KEPT, 0, SQUARE),
    ("P o Z", "Z"): (0, 0, 0, KEPT),
}
Z_READ = {
    ("dP o Z", "P o Z"): (KEPT, 0, 0, 0),
    ("dP o Z", "Z"): (0, 0, KEPT, 0),
}


def _softmax(gradient: str) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """On a GPU P o dP is a kernel of its own: 4 passes more, and the gradient is not read again in dS."""
    return {
        ("P o dP", "P"): (0, 0, SQUARE, 0),
        ("P o dP", gradient): (0, 0, SQUARE, 0),
        ("P o dP", "P o dP"): (0, 0, 0, SQUARE),
        ("dS", "P o dP"): (0, 0, SQUARE, 0),
        ("dS", gradient): (SQUARE, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("features", "pass_", "expected"),
    [
        ("plain", "fwd", {}),
        ("padding", "fwd", VECTORS),
        ("dropout", "fwd", Z_WRITTEN),
        ("both", "fwd", {**VECTORS, **Z_WRITTEN}),
        ("plain", "bwd", _softmax("dP")),
        ("padding", "bwd", _softmax("dP")),
        ("dropout", "bwd", {**_softmax("dP o Z"), **Z_READ}),
        ("both", "bwd", {**_softmax("dP o Z"), **Z_READ}),
        ("both", "fwd-bwd", {**VECTORS, **Z_WRITTEN, **_softmax("dP o Z"), **Z_READ}),
    ],
)
def test_the_count_is_the_ledger_but_for_what_is_known(
    features: str, pass_: str, expected: dict[Any, Any], counts: dict[Request, Count]
) -> None:
    found = _differences(counts[_request(features, pass_)])
    assert _moved(found) == expected
    assert all(d.reason for d in found.values())


def test_what_ran_are_the_steps(counts: dict[Request, Count]) -> None:
    assert counts[_request("both", "fwd-bwd")].passes == (
        "aten::arange",
        "padding mask",
        "S = Q K^T",
        "S + mask",
        "P = softmax(S)",
        "P o Z",
        "O = (P o Z) V",
        "dV = (P o Z)^T dO",
        "dP = dO V^T",
        "dP o Z",
        "dS",
        "dQ = dS K",
        "dK = dS^T Q",
    )


def test_a_cpu_moves_what_was_published(counts: dict[Request, Count]) -> None:
    """Its softmax backward is one kernel: 18 passes, 12 u, and the mask with what it is made from."""
    q, kv = BATCH * HEADS * SEQ_Q * 32 * 2, BATCH * HEADS * SEQ_K * 32 * 2
    mask = 2 * BATCH * ROW + 2 * 4 * SEQ_K + 4 * BATCH
    # Q, O; dO, dO, dQ, Q and K, V; dV, V, K, dK
    assert total(counts[_request("both", "fwd-bwd")].moved).total_bytes == 18 * SQUARE + 6 * q + 6 * kv + mask


def test_a_sample_of_heads_has_the_mask_of_one_sequence(counts: dict[Request, Count]) -> None:
    whole, sample = (counts[_request("both", "fwd-bwd", s)] for s in (EVERY, Sampling()))
    more = _moved(_differences(sample)).items() - _moved(_differences(whole)).items()
    assert dict(more) == {
        ("padding mask", "mask"): (0, ROW, 0, BATCH * ROW),
        ("S + mask", "mask"): (ROW, 0, BATCH * ROW, 0),
        ("padding mask", "unnamed"): (4, 0, 0, 0),
    }
    assert all(d.reason for d in _differences(sample).values())
