"""A K/V cache as decoding finds it: in one piece a sequence or in pages, in the working dtype or in fp8."""

from typing import NamedTuple

import torch
from torch import Tensor

from .shape import Shape
from .tile_io import rows_contiguous

#: Tokens of the longest page.
LONGEST_PAGE = 256
#: The oldest compute capability that converts float8_e4m3fn.
FP8_CAPABILITY = (8, 9)


class Cache(NamedTuple):
    """Keys and values in place of k and v.

    In one piece: `k` and `v` are [B, h_kv, N_k, d]. In pages: [P, h_kv, page, d], and `table`, int32
    [B, ceil(N_k / page)], names the page that holds the tokens i page to (i + 1) page of each sequence; pages
    may be shared. Scales, float32, are given for float8_e4m3fn: [h_kv] in one piece, [P, h_kv] in pages; a
    key or value is what is stored times its scale. What lies beyond a sequence's length may be anything.
    """

    k: Tensor
    v: Tensor
    table: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


class New(NamedTuple):
    """Keys and values [B, h_kv, n, d] in the working dtype: the last n of each sequence, not yet cached."""

    k: Tensor
    v: Tensor


def checked_cache(
    cache: Cache, lengths: Tensor | None, shape: Shape, q: Tensor, capability: tuple[int, int]
) -> int:
    """Tokens of a page, 0 where the cache is in one piece. ValueError for what does not fit `shape` and q.

    Numbers in `table` and `lengths` are not looked at: they are on the device.
    """
    page = 0 if cache.table is None else _checked_table(cache, cache.table, shape)
    sizes = (
        (len(cache.k), shape.kv_heads, page, shape.head_dim)
        if page
        else (shape.batch, shape.kv_heads, shape.seq_k, shape.head_dim)
    )
    _check_same("cache", cache.k, cache.v, sizes, q)
    scales = {"k_scale": cache.k_scale, "v_scale": cache.v_scale}
    if cache.k.dtype == torch.float8_e4m3fn:
        if capability < FP8_CAPABILITY:
            raise ValueError(f"an fp8 cache needs compute capability 8.9, got {capability}")
        for name, scale in scales.items():
            _check_numbers(name, scale, sizes[:2] if page else sizes[1:2], torch.float32, q)
    elif cache.k.dtype != q.dtype:
        raise ValueError(f"the cache must be {q.dtype} or float8_e4m3fn, got {cache.k.dtype}")
    elif any(scale is not None for scale in scales.values()):
        raise ValueError(f"scales are for a cache in float8_e4m3fn, not {cache.k.dtype}")
    if lengths is not None:
        _check_numbers("lengths", lengths, (shape.batch,), torch.int32, q)
    return page


def _checked_table(cache: Cache, table: Tensor, shape: Shape) -> int:
    page = cache.k.shape[2] if cache.k.dim() == 4 else 0
    if not 1 <= page <= LONGEST_PAGE:
        raise ValueError(f"pages of 1 to {LONGEST_PAGE} tokens are served, got {tuple(cache.k.shape)}")
    _check_numbers("table", table, (shape.batch, -(-shape.seq_k // page)), torch.int32, cache.k)
    return page


def checked_new(new: New, shape: Shape, q: Tensor) -> New:
    """The new keys and values with contiguous rows. ValueError where they do not fit `shape` and q."""
    count = new.k.shape[2] if new.k.dim() == 4 else 0
    _check_same("new", new.k, new.v, (shape.batch, shape.kv_heads, count, shape.head_dim), q)
    if not 1 <= count <= shape.seq_k or new.k.dtype != q.dtype:
        raise ValueError(f"new must be 1 to {shape.seq_k} tokens of {q.dtype}, got {count} of {new.k.dtype}")
    return New(rows_contiguous(new.k), rows_contiguous(new.v))


def _check_same(name: str, k: Tensor, v: Tensor, sizes: tuple[int, ...], q: Tensor) -> None:
    """ValueError unless both are of `sizes`, one dtype, on q's device, with contiguous rows in a cache."""
    if not tuple(k.shape) == tuple(v.shape) == sizes:
        raise ValueError(f"{name}: k and v must be {sizes}, got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.dtype != v.dtype or not k.device == v.device == q.device:
        raise ValueError(f"{name}: k and v must share one dtype and q's device")
    if name == "cache" and not k.stride(3) == v.stride(3) == 1:
        raise ValueError("cache: the last dimension must be contiguous")


def _check_numbers(
    name: str, numbers: Tensor | None, sizes: tuple[int, ...], dtype: torch.dtype, like: Tensor
) -> None:
    """ValueError unless `numbers` are contiguous, of `sizes` and `dtype`, on the device of `like`."""
    if numbers is None or tuple(numbers.shape) != sizes or numbers.dtype != dtype:
        got = "none" if numbers is None else f"{numbers.dtype} {tuple(numbers.shape)}"
        raise ValueError(f"{name} must be {dtype} {sizes}, got {got}")
    if not numbers.is_contiguous() or numbers.device != like.device:
        raise ValueError(f"{name} must be contiguous, on the device of the tensors that it is for")
