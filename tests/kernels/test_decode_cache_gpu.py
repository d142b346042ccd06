"""Decoding from a K/V cache on a GPU, against the float64 oracle: lengths, pages, fp8, appending, prefixes.

Slots of the cache without a token hold NaN, and so does what `torch.empty` gives: what a kernel should not
read, or forgets to write, is seen.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import decode  # noqa: E402
from perfkit.kernels.attention.cache import Cache  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402
from perfkit.measure.correctness import Inputs, Judge, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

PAGES = (1, 2, 7, 16, 24, 64, 100, 256)
DRAWS = 50
KINDS: dict[str, Callable[[random.Random, int, int], dict[str, Any]]] = {
    "ragged": lambda draw, n, _: {"padding": draw.randrange(1, n)},
    "paged": lambda draw, n, page: {"page": page, "padding": draw.choice((0, draw.randrange(n)))},
    "fp8": lambda draw, n, _: {"cache_dtype": "fp8", "padding": draw.choice((0, draw.randrange(n)))},
    "fp8 paged": lambda draw, n, page: {
        "cache_dtype": "fp8", "page": page, "padding": draw.choice((0, draw.randrange(n))),
    },
    "append": lambda draw, n, page: {
        "append": True, "page": draw.choice((0, page)), "cache_dtype": draw.choice((None, "fp8")),
        "padding": draw.choice((0, draw.randrange(n // 2))),
    },
    "prefix": lambda draw, n, page: {
        "batch": draw.randrange(2, 5), "page": page, "padding": draw.randrange(n // 2),
        "prefix": page * draw.randrange(n // 2 // page + 1),
    },
}  # fmt: skip


def workload(kind: str, at: int) -> AttentionWorkload:
    """Draw number `at` of a kind; the page sizes in turn."""
    draw = random.Random(f"{kind} {at}")
    kv_heads, n = draw.choice((1, 2, 3)), draw.choice((2, 5, 63, 300, 777, 1024, 2049, 4500))
    fields = {
        "batch": draw.randrange(1, 5),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw.choice((1, 2, 4, 5, 8)),
        "seq_q": draw.choice((1, 1, 2, 3, 7)) if n > 30 else 1,
        "seq_k": n,
        "head_dim": draw.choice((64, 128, 128, 80, 256)) if at % 5 == 0 else 128,
        "causal": draw.random() < 0.5,
        "dtype": draw.choice(("bf16", "fp16")),
        **KINDS[kind](draw, n, PAGES[at % len(PAGES)]),
    }
    return AttentionWorkload(**fields)


def skip_without_fp8(w: AttentionWorkload) -> None:
    if w.cache_dtype and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not convert fp8")


def run(w: AttentionWorkload, inputs: Inputs, **options: Any) -> Any:
    return decode.forward(inputs.q, inputs.k, inputs.v, w.causal, **options, **inputs.given)


@pytest.mark.parametrize("at", range(DRAWS))
@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_twice_the_eager_error(kind: str, at: int) -> None:
    w = workload(kind, at)
    skip_without_fp8(w)
    inputs = make_inputs(w, "cuda", seed=at)
    options = {"splits": (None, None, 1, 2, 7)[at % 5], "fused": at % 2 == 0}
    out = run(w, inputs, **options)
    require(w, Judge(w, inputs).errors((out,)))
    assert torch.equal(run(w, inputs, **options), out), "two runs differ"


LONG = {"heads": 8, "kv_heads": 2, "seq_k": 3000, "head_dim": 128}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"padding": 2500, "batch": 3},
    {"page": 16},
    {"page": 16, "padding": 1234, "batch": 3},
    {"page": 64, "padding": 1234, "batch": 3, "append": True, "seq_q": 5, "causal": True},
    {"page": 16, "cache_dtype": "fp8", "padding": 17, "batch": 2},
    {"cache_dtype": "fp8"},
    {"seq_q": 7, "causal": True, "padding": 2999, "batch": 4},  # one token, and rows that see none
    {"heads": 64, "kv_heads": 1, "seq_q": 3, "causal": True, "page": 24},  # 192 rows: three row tiles
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_every_way_to_merge_gives_what_is_right(fields: dict[str, Any]) -> None:
    w = AttentionWorkload(**{**LONG, "seq_q": 1, **fields})
    skip_without_fp8(w)
    inputs = make_inputs(w, "cuda", seed=3)
    judge = Judge(w, inputs)
    apart = run(w, inputs, splits=9, overlap=False)
    require(w, judge.errors((apart,)))
    found = [run(w, inputs, splits=9, fused=True) for _ in range(20)]
    require(w, judge.errors((found[0],)))
    assert all(torch.equal(one, found[0]) for one in found), "what arrives last matters"
    if torch.cuda.get_device_capability() >= (9, 0):
        assert torch.equal(run(w, inputs, splits=9, overlap=True), apart)


TILES = [Tile(16, 16, 1, 6), Tile(16, 32, 2, 4), Tile(16, 64, 8, 3), Tile(16, 128, 4, 2), Tile(64, 64, 4, 2)]


@pytest.mark.parametrize("page", [0, 16, 64, 100])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_gives_what_is_right(tile: Tile, page: int) -> None:
    w = AttentionWorkload(**{**LONG, "seq_q": 1, "seq_k": 4096, "page": page, "batch": 2})
    inputs = make_inputs(w, "cuda", seed=4)
    judge = Judge(w, inputs)
    for descriptors in (None, False):
        require(w, judge.errors((run(w, inputs, tile=tile, descriptors=descriptors),)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("splits", [1, 4])
def test_a_sequence_without_tokens_gives_zeros(splits: int, causal: bool) -> None:
    q = torch.randn(2, 4, 2, 64, device="cuda", dtype=torch.float16)
    k = torch.randn(2, 2, 500, 64, device="cuda", dtype=torch.float16)
    k[1] = float("nan")
    lengths = torch.tensor([500, 0], dtype=torch.int32, device="cuda")
    for fused in (False, True):
        out = decode.forward(q, k, k, causal, splits=splits, lengths=lengths, fused=fused)
        assert not out[1].any()
        assert out[0].isfinite().all()


def rows_of(cache: Cache, which: str) -> Any:
    """What the cache says K or V is, float32 [B, h_kv, slots, d]."""
    stored = getattr(cache, which).float()
    scale = getattr(cache, f"{which}_scale")
    if scale is not None:
        stored = stored * scale[..., None, None]
    if cache.table is None:
        return stored
    return stored[cache.table.long()].transpose(1, 2).flatten(2, 3)


@pytest.mark.parametrize("at", range(20))
def test_what_is_appended_is_in_the_cache_and_nothing_else_changed(at: int) -> None:
    w = workload("append", at)
    skip_without_fp8(w)
    inputs = make_inputs(w, "cuda", seed=at)
    cache: Cache = inputs.given["cache"]
    before = [tensor.view(torch.uint8).clone() for tensor in cache[:2]]
    run(w, inputs)
    for which, tensor in (("k", inputs.k), ("v", inputs.v)):
        rows = rows_of(cache, which)
        for sequence, length in enumerate(w.lengths):
            assert torch.equal(rows[sequence, :, :length], tensor[sequence, :, :length].float()), which
    for tensor, old in zip(cache[:2], before, strict=True):
        changed = (tensor.view(torch.uint8) != old).view(*tensor.shape[:3], -1).any(-1)
        assert int(changed.sum()) <= w.batch * w.kv_heads * w.seq_q


def test_fp8_beyond_its_range_is_the_largest_number() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not convert fp8")
    w = AttentionWorkload(heads=2, kv_heads=2, seq_q=1, seq_k=40, head_dim=64, cache_dtype="fp8", append=True)
    inputs = make_inputs(w, "cuda")
    inputs.given["new"].k.fill_(60000.0)
    run(w, inputs)
    assert (inputs.given["cache"].k[:, :, -1].float() == 448.0).all()
    assert inputs.given["cache"].k[:, :, :-1].float().abs().max() <= 448.0


def test_a_graph_replays_what_was_captured() -> None:
    """The counters of a fused call are zeros again after each replay, and those of eager calls are others."""
    w = AttentionWorkload(heads=8, kv_heads=2, seq_q=1, seq_k=4000, page=16, padding=100, batch=2)
    inputs = make_inputs(w, "cuda")
    expected = run(w, inputs, splits=6, fused=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(w, inputs, splits=6, fused=True)
    for _ in range(3):
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
        assert torch.equal(run(w, inputs, splits=6, fused=True), expected)
