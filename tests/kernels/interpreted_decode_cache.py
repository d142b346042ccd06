"""Decoding from a K/V cache in Triton's interpreter. `test_decode_interpreter.py` runs this file.

The interpreter converts fp8 to fp16 as a GPU does, but rounds to fp8 wrongly (1000 becomes 256, -124 becomes
-64). What is appended to an fp8 cache here therefore needs no rounding; the rounding is tested on a GPU.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_decode_interpreter.py"

from perfkit.kernels.attention import decode  # noqa: E402
from perfkit.kernels.attention.cache import Cache, New  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402
from perfkit.measure.correctness import Inputs, Judge, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

#: Every page size, lengths that no block and no page divides, every feature alone and with others.
CASES: list[dict[str, Any]] = [
    {"padding": 100, "batch": 3},
    {"padding": 299, "batch": 2, "seq_q": 3, "causal": True},  # one token, and rows that see no key
    {"padding": 160, "batch": 2, "seq_q": 7, "causal": True, "heads": 6},  # 21 rows a tile of 32
    *({"page": page} for page in (1, 2, 24, 100, 256)),
    *({"page": page, "padding": 150, "batch": 2} for page in (1, 7, 16, 24, 64, 100, 256)),
    {"page": 16, "seq_k": 384},  # no row of a tile to mask
    {"page": 64, "seq_k": 384, "head_dim": 128},
    {"page": 100, "seq_q": 5, "causal": True, "padding": 33, "batch": 2},
    {"page": 16, "prefix": 96, "batch": 3, "padding": 150},
    {"cache_dtype": "fp8"},
    {"cache_dtype": "fp8", "padding": 100, "batch": 2, "head_dim": 48},
    *({"cache_dtype": "fp8", "page": page, "padding": 20, "batch": 2} for page in (1, 16, 24, 64, 256)),
    {"append": True},
    {"append": True, "seq_q": 5, "causal": True, "padding": 90, "batch": 2},
    {"append": True, "seq_q": 3, "page": 7, "padding": 90, "batch": 2},
    {"append": True, "seq_q": 20, "page": 16, "causal": True},  # two programs of 16 rows
    {"append": True, "page": 64, "cache_dtype": "fp8", "padding": 9, "batch": 2, "seq_q": 2},
    {"append": True, "cache_dtype": "fp8", "seq_q": 2},
]


def workload(fields: dict[str, Any]) -> AttentionWorkload:
    common = {"heads": 4, "kv_heads": 2, "seq_q": 1, "seq_k": 300, "head_dim": 64, "dtype": "fp16"}
    return AttentionWorkload(**{**common, **fields})


def inputs_of(w: AttentionWorkload, seed: int = 0) -> Inputs:
    """The inputs, with new rows that fp8 can represent."""
    inputs = make_inputs(w, "cpu", seed)
    if w.append and w.cache_dtype:
        rows = [
            torch.stack([tensor[at, :, n - w.seq_q : n] for at, n in enumerate(w.lengths)])
            for tensor in (inputs.k, inputs.v)
        ]
        inputs.given["new"] = New(*rows)
    return inputs


def run(w: AttentionWorkload, inputs: Inputs, **options: Any) -> torch.Tensor:
    return decode.forward(inputs.q, inputs.k, inputs.v, w.causal, **options, **inputs.given)


@pytest.mark.parametrize("at", range(len(CASES)), ids=lambda at: str(CASES[at]))
def test_no_worse_than_twice_the_eager_error(at: int) -> None:
    w = workload(CASES[at])
    inputs = inputs_of(w, seed=at)
    judge = Judge(w, inputs)
    # Tiles of 32 keys hold pages in parts, whole, and several; the shipped one holds most in one block.
    for tile, splits, fused in ((None, None, False), (Tile(16, 32, 2, 2), 3, at % 2 == 0)):
        out = run(w, inputs, tile=tile, splits=splits, fused=fused)
        require(w, judge.errors((out,)))


@pytest.mark.parametrize(
    ("splits", "fields"),
    [(5, CASES[0]), (2, {"page": 24, "padding": 150, "batch": 2}), (5, CASES[1])],
    ids=str,
)
def test_both_ways_to_merge_agree(splits: int, fields: dict[str, Any]) -> None:
    w = workload(fields)
    inputs = inputs_of(w)
    one, other = (
        run(w, inputs, splits=splits, fused=fused, tile=Tile(16, 32, 4, 2)) for fused in (False, True)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_a_page_through_descriptors_gives_the_same_bits() -> None:
    w = workload({"page": 64, "seq_k": 320, "head_dim": 128})
    inputs = inputs_of(w)
    tile = Tile(16, 64, 4, 3)  # a block is a page
    one, other = (run(w, inputs, descriptors=way, splits=2, tile=tile) for way in (False, True))
    assert torch.equal(one, other)


def test_what_may_be_garbage_is_not_read_through_descriptors() -> None:
    for fields in ({"padding": 100, "batch": 2}, {"page": 256}, {"page": 16}):
        w = workload(fields)
        inputs = inputs_of(w)
        assert torch.equal(run(w, inputs, descriptors=True), run(w, inputs, descriptors=False))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("fused", [False, True])
def test_a_sequence_without_tokens_gives_zeros(fused: bool, splits: int) -> None:
    q, k = torch.randn(2, 2, 2, 16).half(), torch.randn(2, 1, 500, 16).half()
    k[1] = float("nan")
    lengths = torch.tensor([500, 0], dtype=torch.int32)
    for causal in (False, True):
        out = decode.forward(q, k, k, causal, splits=splits, lengths=lengths, fused=fused)
        assert not out[1].any()
        assert out[0].isfinite().all()


@pytest.mark.parametrize("page", [0, 7])
def test_what_is_appended_lies_behind_what_is_there(page: int) -> None:
    w = workload({"append": True, "seq_q": 3, "page": page, "padding": 90, "batch": 2})
    inputs = inputs_of(w)
    cache: Cache = inputs.given["cache"]
    before = cache.k.clone()
    run(w, inputs)
    for at, length in enumerate(w.lengths):
        for token in range(length):
            if cache.table is None:
                slot, old = cache.k[at, :, token], before[at, :, token]
            else:
                number = int(cache.table[at, token // page])
                slot, old = cache.k[number, :, token % page], before[number, :, token % page]
            assert torch.equal(slot, inputs.k[at, :, token])
            assert token < length - 3 or old.isnan().all()


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.randn(2, 2, 1, 16).half(), torch.randn(2, 1, 40, 16).half()
    pages, table = torch.randn(5, 1, 20, 16).half(), torch.zeros(2, 2, dtype=torch.int32)
    eight, scale = k.to(torch.float8_e4m3fn), torch.ones(1)
    new = New(k[:, :, :1], k[:, :, :1])
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("new keys and values need a cache", {"new": new}),
        ("lengths must be torch.int32", {"lengths": torch.ones(2)}),
        ("lengths must be torch.int32 \\(2,\\), got torch.int32 \\(3,\\)", {"lengths": torch.ones(3).int()}),
        ("cache: k and v must be \\(2, 1, 40, 16\\)", {"cache": Cache(k[:, :, :39], k[:, :, :39])}),
        ("cache must be torch.float16 or float8", {"cache": Cache(k.float(), k.float())}),
        ("scales are for a cache in float8", {"cache": Cache(k, k, None, scale, scale)}),
        ("k_scale must be torch.float32 \\(1,\\), got none", {"cache": Cache(eight, eight)}),
        ("v_scale must be", {"cache": Cache(eight, eight, None, scale, torch.ones(2))}),
        ("table must be torch.int32 \\(2, 2\\)", {"cache": Cache(pages, pages, table[:, :1])}),
        ("table must be torch.int32", {"cache": Cache(pages, pages, table.long())}),
        (
            "pages of 1 to 256 tokens",
            {"cache": Cache(*[torch.zeros(5, 1, 257, 16).half()] * 2, table[:, :1])},
        ),
        ("cache: the last dimension", {"cache": Cache(k.mT.contiguous().mT, k.mT.contiguous().mT)}),
        ("new must be 1 to 40 tokens", {"cache": Cache(k, k), "new": New(k[:, :, :0], k[:, :, :0])}),
        ("new must be 1 to 40 tokens", {"cache": Cache(k, k), "new": New(new.k.float(), new.v.float())}),
    ]
    for reason, given in wrong:
        with pytest.raises(ValueError, match=reason):
            decode.attention(q, k, k, **given)
    monkeypatch.setattr(decode, "capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"an fp8 cache needs compute capability 8.9, got \(8, 0\)"):
        decode.attention(q, k, k, cache=Cache(eight, eight, None, scale, scale))


def test_counters_are_zeros_after_a_call(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(1, 2, 2, 1, 300, 64))
    made: list[torch.Tensor] = []

    def arrivals(_: torch.Tensor, blocks: int) -> torch.Tensor:
        made.append(torch.zeros(blocks, dtype=torch.int32))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "_arrivals", arrivals)
        decode.forward(q, k, v, splits=3, fused=True)
    assert [one.tolist() for one in made] == [[0, 0]]
