"""Workloads in words: what several have in common, and what tells each from the others."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from perfkit.model.units import short_count
from perfkit.ops.attention_workload import AttentionWorkload

PASS_WORDS: Final = {"fwd": "forward", "bwd": "backward", "fwd-bwd": "forward + backward"}


def _heads(w: AttentionWorkload) -> str:
    heads = "1 head" if w.heads == 1 else f"{w.heads} heads"
    return heads if w.heads == w.kv_heads else f"{heads} over {w.kv_heads} K/V heads"


def _length(w: AttentionWorkload) -> str:
    if w.seq_q == w.seq_k:
        return f"N {short_count(w.seq_q)}"
    return f"N_q {short_count(w.seq_q)}, N_k {short_count(w.seq_k)}"


def _mask(w: AttentionWorkload) -> str:
    if w.pattern is not None:
        return f"pattern {w.pattern}"
    if w.padding:
        return f"up to {w.padding} keys of padding{', causal' if w.causal else ''}"
    return "causal" if w.causal else "full mask"


def _cache(w: AttentionWorkload) -> str:
    """What is special about the K/V cache."""
    parts = (
        f"{w.cache_dtype} cache" if w.cache_dtype else "",
        f"pages of {w.page}" if w.page else "",
        f"first {short_count(w.prefix)} shared" if w.prefix else "",
        f"{w.seq_q} appended" if w.append else "",
    )
    return ", ".join(filter(None, parts))


#: So many places are still read; of more only their number is said.
MANY: Final = 6


#: The parts of a workload in the order that they are said in.
_PARTS: Final[tuple[Callable[[AttentionWorkload], str], ...]] = (
    lambda w: f"batch {w.batch}",
    _heads,
    _length,
    lambda w: f"d {w.head_dim}",
    lambda w: w.dtype,
    _mask,
    _cache,
    lambda w: f"dropout {w.dropout:g}" if w.dropout else "",
    lambda w: PASS_WORDS[w.pass_],
)


def common(workloads: Sequence[AttentionWorkload]) -> str:
    """What all workloads have in common: `batch 1, 16 heads, d 64, bf16, full mask, forward`."""
    said = (part(workloads[0]) for part in _PARTS if not _varies(part, workloads))
    return ", ".join(filter(None, said))


def place(workload: AttentionWorkload, among: Sequence[AttentionWorkload]) -> str:
    """What tells `workload` from the others in `among`: `N 16k`; empty where there is no other."""
    return ", ".join(filter(None, (part(workload) for part in _PARTS if _varies(part, among))))


def only_length(workloads: Sequence[AttentionWorkload]) -> bool:
    """Whether there are at least two workloads and they differ in N alone."""
    varying = [part for part in _PARTS if _varies(part, workloads)]
    return varying == [_length]


def noun(workloads: Sequence[AttentionWorkload]) -> str:
    """What several workloads are called: lengths where they differ in N alone."""
    return "lengths" if only_length(workloads) else "workloads"


def every(workloads: Sequence[AttentionWorkload]) -> str:
    """All of several workloads: `both lengths`, `all 6 workloads`."""
    return f"{'both' if len(workloads) == 2 else f'all {len(workloads)}'} {noun(workloads)}"


def length(workload: AttentionWorkload, among: Sequence[AttentionWorkload]) -> int:
    """The N that varies in `among`: that of the keys, or of the queries where all keys are as many."""
    by_queries = len({w.seq_k for w in among}) == 1
    return workload.seq_q if by_queries else workload.seq_k


def joined(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = list(items) or [""]
    return f"{', '.join(head)} and {last}" if head else last


def places(found: Iterable[str]) -> str:
    """Several places in one phrase, N said once: `N 2k, 4k and 16k`."""
    names = list(dict.fromkeys(found))
    simple = all(name.startswith("N ") and "," not in name for name in names)
    if simple:
        return f"N {joined(name.removeprefix('N ') for name in names)}"
    return "; ".join(names) if len(names) <= MANY else f"{len(names)} workloads"


def _varies(part: Callable[[AttentionWorkload], str], workloads: Sequence[AttentionWorkload]) -> bool:
    return len({part(w) for w in workloads}) > 1
