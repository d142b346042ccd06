"""Multi-head, grouped-query and multi-query attention: the same kernels with other numbers of K/V heads.

Sources: Shazeer, "Fast Transformer Decoding", arXiv 1911.02150 (MQA: one K/V head); Ainslie et al., "GQA",
arXiv 2305.13245 (a K/V head for each group of query heads). The K/V cache is h / h_kv times smaller.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation

#: Query heads a K/V head of `gqa`, where the workload does not say: as in Llama 3 8B.
GROUP: Final = 4


def _mha(w: AttentionWorkload) -> int:
    return w.heads


def _gqa(w: AttentionWorkload) -> int:
    """The K/V heads that the workload has, if they are grouped; else one for every GROUP query heads."""
    if 1 < w.kv_heads < w.heads:
        return w.kv_heads
    if w.heads % GROUP or w.heads == GROUP:
        raise UsageError(f"gqa cannot share {w.heads} query heads in groups of {GROUP}", "give --kv-heads")
    return w.heads // GROUP


def _mqa(_: AttentionWorkload) -> int:
    return 1


_KV_HEADS: Final[tuple[tuple[str, str, Callable[[AttentionWorkload], int]], ...]] = (
    ("mha", "multi-head: a K/V head for each query head", _mha),
    ("gqa", "grouped-query: a K/V head for every 4 query heads, or --kv-heads", _gqa),
    ("mqa", "multi-query: one K/V head", _mqa),
)


def _with_kv_heads(
    kv_heads: Callable[[AttentionWorkload], int], asked: AttentionWorkload
) -> AttentionWorkload:
    return msgspec.structs.replace(asked, kv_heads=kv_heads(asked))


def variants(row: Implementation) -> tuple[Implementation, ...]:
    """`mha`, `gqa` and `mqa`, each computed by `row`."""
    return tuple(
        msgspec.structs.replace(
            row,
            name=name,
            description=f"{words}, by {row.name}",
            named_only=True,
            shaped=partial(_with_kv_heads, kv_heads),
        )
        for name, words, kv_heads in _KV_HEADS
    )
