"""The decode map in Markdown: K and V read a second, tokens/s and bound by batch and context."""

from collections.abc import Callable, Iterator, Sequence

from perfkit.analysis.decode_map import DecodeCell, DecodeMap, by_family
from perfkit.model.units import short_count
from perfkit.reports import decode_map_words as said
from perfkit.reports.markdown.text import bullets, table


def decode_text(maps: Sequence[DecodeMap], backend: str) -> str:
    """The tables of the first map of each family, and the others beside it; empty without a map."""
    return "\n".join(text for family in by_family(maps) for text in _family(family, backend))


def _family(family: Sequence[DecodeMap], backend: str) -> Iterator[str]:
    one, rivals = family[0], [other for other in family[1:] if other.known]
    notes = [said.about(one), said.cache_words(one), f"Tokens/s are {said.ONE_LAYER}."]
    yield f"**Decode map, {one.impl}**\n\n{bullets([*notes, *_notes(family)])}"
    of = said.bandwidth_words(one, backend)
    yield f"K and V read, and the share of {of}:\n\n{_table(one, said.rate_text)}"
    yield f"Tokens/s, and the most that the bound allows:\n\n{_table(one, said.tokens_text)}"
    yield f"Bound, and the least time as a share of the time:\n\n{_table(one, said.bound_text)}"
    if rivals:
        rows = [(rival.impl, *row) for rival in rivals for row in _beside(one, rival)]
        title = f"Beside {one.impl}: share of bandwidth, times as fast (~ too near to tell):"
        yield f"{title}\n\n{table(('impl', *_columns(one)), rows)}"


def _notes(family: Sequence[DecodeMap]) -> Iterator[str]:
    if any(cell.provenance == "modelled" for one in family for cell in one.cells):
        yield said.MODELLED
    for one in family:
        yield from said.missing_words(one)
    yield from said.winner_words(family)


def _columns(one: DecodeMap) -> tuple[str, ...]:
    return ("batch", *(f"N_k {short_count(context)}" for context in one.contexts))


def _table(one: DecodeMap, text: Callable[[DecodeCell], str]) -> str:
    rows = [(str(batch), *(text(cell) for cell in one.row(batch))) for batch in one.batches]
    return table(_columns(one), rows)


def _beside(one: DecodeMap, rival: DecodeMap) -> Iterator[tuple[str, ...]]:
    for batch in one.batches:
        both = zip(one.row(batch), rival.row(batch), strict=True)
        yield (str(batch), *(said.pace_text(base, other) for base, other in both))
