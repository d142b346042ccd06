"""The K/V cache of a workload: it holds what K and V are, shares the pages of a prefix, and NaN elsewhere."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention.cache import Cache, New  # noqa: E402
from perfkit.measure.cache_inputs import LARGEST, page_table  # noqa: E402
from perfkit.measure.inputs import Inputs, make_inputs  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

CASES: list[dict[str, Any]] = [
    {"append": True},
    {"cache_dtype": "fp8"},
    {"cache_dtype": "fp8", "append": True, "seq_q": 3, "padding": 40},
    *({"page": page, "padding": 40} for page in (1, 7, 16, 100, 256)),
    {"page": 16, "prefix": 32, "padding": 40},
    {"page": 7, "prefix": 35, "padding": 65, "cache_dtype": "fp8"},
    {"page": 16, "prefix": 32, "append": True, "seq_q": 5, "cache_dtype": "fp8", "padding": 17},
]
EACH = pytest.mark.parametrize("fields", CASES, ids=str)


def made(fields: dict[str, Any], seed: int = 0) -> tuple[AttentionWorkload, Inputs]:
    common = {"batch": 3, "heads": 4, "kv_heads": 2, "seq_q": 1, "seq_k": 100, "head_dim": 16}
    w = AttentionWorkload(**{**common, "dtype": "fp16", **fields})
    return w, make_inputs(w, "cpu", seed)


def rows_of(cache: Cache, which: str) -> Any:
    """What the cache says K or V is, float32 [B, h_kv, slots, d]."""
    stored, scale = getattr(cache, which).float(), getattr(cache, f"{which}_scale")
    if scale is not None:
        stored = stored * scale[..., None, None]
    return stored if cache.table is None else stored[cache.table.long()].transpose(1, 2).flatten(2, 3)


@EACH
@pytest.mark.parametrize("which", ["k", "v"])
def test_the_cache_holds_what_k_and_v_say(which: str, fields: dict[str, Any]) -> None:
    w, inputs = made(fields)
    rows, tensor = rows_of(inputs.given["cache"], which), getattr(inputs, which).float()
    for at, length in enumerate(w.lengths):
        filled = length - (w.seq_q if w.append else 0)
        assert torch.equal(rows[at, :, :filled], tensor[at, :, :filled])


@EACH
def test_slots_without_a_token_are_nan(fields: dict[str, Any]) -> None:
    w, inputs = made(fields)
    cache: Cache = inputs.given["cache"]
    filled = sum(w.lengths) - (w.batch - 1) * w.prefix - (w.batch * w.seq_q if w.append else 0)
    for tensor in cache[:2]:
        there = tensor.float().isfinite()
        assert int(there.all(-1).sum()) == int(there.any(-1).sum()) == filled * w.kv_heads
        assert tensor.float()[~there].isnan().all()


@EACH
def test_the_given_sizes(fields: dict[str, Any]) -> None:
    w, inputs = made(fields)
    cache: Cache = inputs.given["cache"]
    assert cache.k.shape == cache.v.shape
    assert cache.k.dtype == (torch.float8_e4m3fn if w.cache_dtype else torch.float16)
    if w.page:
        assert cache.k.shape[1:] == (2, w.page, 16)
        assert cache.table is not None
        assert (cache.table.shape, cache.table.dtype) == ((3, -(-100 // w.page)), torch.int32)
    else:
        assert (cache.k.shape, cache.table) == ((3, 2, 100, 16), None)
    for scale in (cache.k_scale, cache.v_scale):
        if w.cache_dtype:
            assert scale is not None
            assert (scale.shape, scale.dtype) == (((len(cache.k), 2) if w.page else (2,)), torch.float32)
        else:
            assert scale is None
    assert ("new" in inputs.given) == w.append
    assert ("lengths" in inputs.given) == bool(w.padding)


@EACH
def test_scales_are_powers_of_two_that_the_largest_element_fits(fields: dict[str, Any]) -> None:
    w, inputs = made(fields)
    if not w.cache_dtype:
        assert inputs.given["cache"].k_scale is None
        return
    cache: Cache = inputs.given["cache"]
    assert cache.k_scale is not None
    assert (torch.log2(cache.k_scale) % 1 == 0).all()
    # A power of two above the largest over 448 is less than twice that: the largest element is above 224,
    # but for what is still to be appended, whose slot is NaN.
    largest = cache.k.float().nan_to_num().abs().amax((-1, -2) if w.page else (0, 2, 3))
    assert largest.max() <= LARGEST
    assert w.append or largest.min() > LARGEST / 2


@EACH
def test_new_rows_are_the_last_of_each_sequence_before_rounding(fields: dict[str, Any]) -> None:
    w, inputs = made(fields)
    if not w.append:
        assert "new" not in inputs.given
        return
    new: New = inputs.given["new"]
    for rows, tensor in zip(new, (inputs.k, inputs.v), strict=True):
        assert rows.shape == (3, 2, w.seq_q, 16)
        for at, length in enumerate(w.lengths):
            last = tensor[at, :, length - w.seq_q : length].float()
            # Rounded to three bits behind the point: by 1 in 16 of an element at most, or of the smallest
            # number of fp8 times its scale, which is under 2^-6.
            error = (rows[at].float() - last).abs()
            assert (error <= (rows[at].float().abs() / 16).clamp(min=2.0**-15)).all()
            assert bool(error.any()) == bool(w.cache_dtype)


@pytest.mark.parametrize("page", [1, 7, 16, 100, 256])
def test_tables_have_no_page_twice(page: int) -> None:
    w, inputs = made({"page": page, "padding": 40})
    table = inputs.given["cache"].table
    used = [table[at, : -(-length // page)].tolist() for at, length in enumerate(w.lengths)]
    numbers = [number for row in used for number in row]
    assert sorted(numbers) == list(range(len(numbers))) == list(range(len(inputs.given["cache"].k)))
    for at, row in enumerate(used):
        assert not table[at, len(row) :].any()


def test_pages_are_in_no_order() -> None:
    table = page_table(made({"page": 1})[0], "cpu")
    steps = table[:, 1:] - table[:, :-1]
    assert (steps == 1).float().mean() < 0.1


def test_only_the_pages_of_the_prefix_are_shared() -> None:
    w, inputs = made({"page": 16, "prefix": 32, "padding": 40})
    table = inputs.given["cache"].table
    assert (table[:, :2] == table[:1, :2]).all()
    own = [table[at, 2 : -(-length // 16)].tolist() for at, length in enumerate(w.lengths)]
    everything = [number for row in own for number in row] + table[0, :2].tolist()
    assert sorted(everything) == list(range(len(everything)))
    assert torch.equal(inputs.k[0, :, :32], inputs.k[2, :, :32])
    assert not torch.equal(inputs.k[0, :, 32:40], inputs.k[2, :, 32:40])


def test_without_a_cache_nothing_is_given_or_changed() -> None:
    w, inputs = made({"padding": 40})
    assert list(inputs.given) == ["lengths"]
    again = torch.randn(3, 4, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float16)
    assert torch.equal(inputs.q, again)
    assert w.features == ("padding",)


def test_the_same_seed_gives_the_same_cache() -> None:
    one, other, third = (made(CASES[2], seed)[1].given["cache"].k.view(torch.uint8) for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
