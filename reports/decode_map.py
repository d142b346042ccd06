"""The decode map in the terminal: K and V read a second, tokens/s and bound by batch and context."""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from perfkit.analysis.decode_map import DecodeCell, DecodeMap, by_family
from perfkit.model.units import short_count
from perfkit.reports import decode_map_words as said
from perfkit.reports.grid import Column, Row, grid
from perfkit.reports.lines import line, note, title

_GAP = 1


def decode_parts(maps: Sequence[DecodeMap], backend: str, width: int) -> Iterator[RenderableType]:
    """Each family: the first map with all its numbers, the others beside it; nothing without a map."""
    for family in by_family(maps):
        one, rivals = family[0], [other for other in family[1:] if other.known]
        yield from (Text(), title("Decode map", one.impl), Text(said.about(one)))
        yield Text(said.cache_words(one))
        yield from _own(one, backend, width)
        yield from _beside(one, rivals, width) if rivals else ()
        if any(cell.provenance == "modelled" for other in family for cell in other.cells):
            yield note(said.MODELLED)
        for other in family:
            yield from map(note, said.missing_words(other))


def _own(one: DecodeMap, backend: str, width: int) -> Iterator[RenderableType]:
    timed = any(cell.provenance == "measured" for cell in one.cells)
    of = f"{'and' if timed else 'in the least time, and'} the share of {said.bandwidth_words(one, backend)}"
    most = "and the most that the bound allows" if timed else "at most"
    bound = "and the least time it allows as a share of the time" if timed else "what needs the longest"
    yield from (Text(), title("K and V read", of), _table(one, said.rate_text, width))
    yield from (Text(), title("Tokens/s", most), _table(one, said.tokens_text, width))
    yield note(said.ONE_LAYER)
    yield from (Text(), title("Bound", bound), _table(one, said.bound_text, width))


def _table(one: DecodeMap, text: Callable[[DecodeCell], str], width: int) -> RenderableType:
    heads = [(str(batch),) for batch in one.batches]
    body = [[text(cell) for cell in one.row(batch)] for batch in one.batches]
    return _by_context((Column(name="batch"),), heads, one.contexts, body, width)


def _beside(one: DecodeMap, rivals: Sequence[DecodeMap], width: int) -> Iterator[RenderableType]:
    """A row for each rival and batch, and who is the fastest in how many cells."""
    heads, body = [], []
    for rival in rivals:
        for batch in one.batches:
            heads.append(("" if batch != one.batches[0] else rival.impl, str(batch)))
            both = zip(one.row(batch), rival.row(batch), strict=True)
            body.append([said.pace_text(base, other) for base, other in both])
    columns = (Column(name="impl", justify="left"), Column(name="batch"))
    table = _by_context(columns, heads, one.contexts, body, width)
    what = "share of bandwidth, times as fast (~ too near to tell)"
    yield from (Text(), title(f"Beside {one.impl}", what), table)
    yield from map(line, said.winner_words((one, *rivals)))


def _by_context(
    columns: Sequence[Column],
    heads: Sequence[tuple[str, ...]],
    contexts: Sequence[int],
    body: Sequence[Sequence[str]],
    width: int,
) -> RenderableType:
    """A table with a column for each context; contexts that find no room stand in another one below."""
    names = [f"N_k {short_count(context)}" for context in contexts]
    body = [[f" {text}" for text in row] for row in body]  # cells are of several words
    wide = [max(map(len, (name, *(row[at] for row in body)))) for at, name in enumerate(names)]
    first = sum(
        max(map(len, (column.name, *(head[at] for head in heads)))) + _GAP
        for at, column in enumerate(columns)
    )
    parts = []
    for chosen in _blocks(wide, width - first):
        found = [*columns, *(Column(name=names[at]) for at in chosen)]
        cells = [(*head, *(row[at] for at in chosen)) for head, row in zip(heads, body, strict=True)]
        styles = [tuple("bold red" if cell == " INVALID" else "" for cell in row) for row in cells]
        rows = [Row(cells=row, styles=style) for row, style in zip(cells, styles, strict=True)]
        parts.append(grid(found, rows, width))
    return Group(*parts)


def _blocks(wide: Sequence[int], room: int) -> list[list[int]]:
    """Columns side by side as long as there is room, at least one in each block."""
    blocks: list[list[int]] = [[]]
    left = room
    for at, size in enumerate(wide):
        if blocks[-1] and size > left:
            blocks.append([])
            left = room
        blocks[-1].append(at)
        left -= size + _GAP
    return blocks
