"""The size of the K/V cache in words, and how many query heads share each of its heads.

Also of backward passes and where nothing is decoded: it is the size of K and V.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from perfkit.model.units import show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run
from perfkit.reports.cells import ended_well
from perfkit.reports.places import joined, place, places

#: More implementations than this with one cache are `the others`, where there are others.
_NAMED = 3


class _Cache(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of K and V together, and h / h_kv."""

    bytes: int
    ratio: int


#: The cache at each place.
_Sizes = dict[str, _Cache]


def kv_words(runs: Sequence[Run]) -> str:
    """`K/V cache 67.1 MB, h/h_kv 4: 4x smaller than with 16 K/V heads`; empty where there is no run.

    Of the runs that ended well, or of all where none did. Where caches differ, each stands with its
    implementations and its place: `K/V cache: mha 268 MB (h/h_kv 1), mqa 16.8 MB (16)`.
    """
    counted = [run for run in runs if ended_well(run)] or runs
    every = [_cache(run.workload) for run in counted]
    if not every:
        return ""
    ratio = every[0].ratio
    if len(set(every)) == 1:
        less = f": {ratio}x smaller than with {counted[0].workload.heads} K/V heads" if ratio > 1 else ""
        return f"K/V cache {show(every[0].bytes, 'bytes')}, h/h_kv {ratio}{less}"
    found = [pair for who, sizes in _groups(counted) for pair in _of_group(who, sizes)]
    if len({cache.ratio for cache in every}) == 1:
        return f"K/V cache, h/h_kv {ratio}: {_listed([text for text, _ in found])}"
    name = "h/h_kv "  # said once
    texts = [f"{text} ({'' if at else name}{ratio})" for at, (text, ratio) in enumerate(found)]
    return f"K/V cache: {_listed(texts)}"


def _cache(w: AttentionWorkload) -> _Cache:
    return _Cache(bytes=w.cache_bytes, ratio=w.heads // w.kv_heads)


def _shape(w: AttentionWorkload) -> AttentionWorkload:
    """The workload without what has no part in its cache: mask, dropout and pass."""
    return msgspec.structs.replace(w, causal=False, pattern=None, dropout=0.0, pass_="fwd")


def _groups(runs: Sequence[Run]) -> Iterator[tuple[str, _Sizes]]:
    """Who has which caches: nobody by name where all implementations have the same ones at each place."""
    among = list(dict.fromkeys(_shape(run.setting) for run in runs))
    everyone: _Sizes = {}
    by_impl: dict[str, _Sizes] = {}
    for run in runs:
        where, cache = place(_shape(run.setting), among), _cache(run.workload)
        everyone.setdefault(where, cache)
        by_impl.setdefault(run.impl, {})[where] = cache
    if all(everyone[where] == cache for sizes in by_impl.values() for where, cache in sizes.items()):
        yield "", everyone
        return
    alike: dict[tuple[tuple[str, _Cache], ...], list[str]] = {}
    for impl, sizes in by_impl.items():
        alike.setdefault(tuple(sizes.items()), []).append(impl)
    most = max(alike.values(), key=len)
    if len(most) <= _NAMED or len(alike) == 1:
        most = []
    for key, impls in sorted(alike.items(), key=lambda group: group[1] is most):
        yield "the others " if impls is most else f"{joined(impls)} ", dict(key)


def _of_group(who: str, sizes: _Sizes) -> Iterator[tuple[str, int]]:
    """The caches of one group, a text for each h / h_kv."""
    several = len(set(sizes.values())) > 1
    for ratio in dict.fromkeys(cache.ratio for cache in sizes.values()):
        here = {where: cache.bytes for where, cache in sizes.items() if cache.ratio == ratio}
        yield f"{who}{_sizes_text(here, several)}", ratio


def _sizes_text(sizes: Mapping[str, int], several: bool) -> str:
    """Bytes with their places, unless the cache is the same at all: two of them, or the ends of a range."""
    at: dict[int, list[str]] = {}
    for where, size in sizes.items():
        at.setdefault(size, []).append(where)
    texts = [
        f"{show(size, 'bytes')}{f' at {places(at[size])}' if several and any(at[size]) else ''}"
        for size in sorted(at)
    ]
    return " and ".join(texts) if len(texts) <= 2 else f"{texts[0]} to {texts[-1]}"


def _listed(found: Sequence[str]) -> str:
    return ("; " if any("," in text for text in found) else ", ").join(found)
