"""What a simulation of a K/V cache says in sentences, the same in the terminal and in HTML."""

from collections.abc import Iterator
from typing import Final

from perfkit.analysis.cache_outcome import CacheStudy, Outcome
from perfkit.model.units import show, significant

#: vLLM's default, and the page that stands for all of them where it was asked for.
_PAGE: Final = 16


def contrasted(study: CacheStudy) -> tuple[Outcome, Outcome]:
    """The contiguous cache, and the paged one to set beside it."""
    paged = [one for one in study.outcomes if one.policy.page]
    chosen = next((one for one in paged if one.policy.page == _PAGE), paged[0])
    return study.outcomes[0], chosen


def subject(study: CacheStudy) -> Iterator[str]:
    """Trace, model and memory, a line each."""
    shape, count = study.shape, study.requests
    yield (
        f"{study.source}: {count:,} requests, on average {study.prompt / count:,.0f} tokens of prompt and "
        f"{study.generated / count:,.0f} generated"
    )
    yield (
        f"{shape.layers} layers, {shape.kv_heads} K/V heads, d {shape.head_dim}, {shape.dtype}: "
        f"{show(shape.token_bytes, 'bytes')} a token; {show(study.memory_bytes, 'bytes')} hold "
        f"{study.memory_bytes // shape.token_bytes:,} tokens; at most {study.max_len:,} a request"
    )


def sentences(study: CacheStudy) -> Iterator[str]:
    """Waste, batch and steps of the paged cache beside the contiguous one."""
    old, new = contrasted(study)
    yield (
        f"{_named(new)} wastes {show(new.waste, 'percent')} of the memory that it takes, {_named(old)} "
        f"{show(old.waste, 'percent')}."
    )
    yield (
        f"{_named(new)} holds {significant(new.batch)} requests at once on average, {_named(old)} "
        f"{significant(old.batch)}."
    )
    if new.steps == old.steps:
        yield f"All requests are done after {new.steps:,} step{'s' * (new.steps > 1)} with both."
    else:
        yield (
            f"All requests are done after {new.steps:,} steps with {_named(new)}, after {old.steps:,} with "
            f"{_named(old)}: {significant(old.steps / new.steps)}x."
        )


def _named(one: Outcome) -> str:
    return one.policy.name


#: How to read the columns.
NOTES: Final = (
    "tokens: slots that hold a token; later: taken, filled before the request ends; never: taken, never "
    "filled; holes: free, but none is large enough for the request that waits. Shares of the memory, means "
    "over all steps with a request in the cache",
    "wasted: later, never and holes as a share of themselves and tokens; most wasted: at one step",
    "at once: requests in the cache, mean and most; wait: steps that a request spends outside, mean; swapped "
    "out: how often one was, for want of a page; shared: copies of tokens that are spared, mean; tables: "
    "block tables, most",
)
