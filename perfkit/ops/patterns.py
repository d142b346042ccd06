"""Masks as closed descriptions: from `window:4096` follow the reference mask, tiles, pairs and bytes.

There are two kinds. A block pattern cuts the matrix of scores into square blocks of `block` rows and columns,
and says which of them a block of queries sees. Any other says from which key to which a query sees, by its
position. Either becomes `Spans`, from which all the rest is derived: a new pattern is one small function.
"""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from perfkit.errors import UsageError
from perfkit.model.units import parse_count

if TYPE_CHECKING:
    from perfkit.kernels.attention.spans import Spans, TileLists

#: Per block of queries, the blocks of keys that it sees, ascending.
Blocks = tuple[tuple[int, ...], ...]
#: The numbers of a pattern: counts, and for `random` a share.
Numbers = tuple[float, ...]
#: Arrays of positions, one entry a query.
Rows = Any

DEFAULT_BLOCK: Final = 128
#: Blocks a row, at most: a pattern is worked out block by block.
MOST_BLOCKS: Final = 2048
#: Rows of any other pattern, at most: each has its spans.
MOST_ROWS: Final = 4 << 20
_FORM: Final = re.compile(
    r"(?P<kind>[a-z]+)(:(?P<numbers>[0-9.kmKM]{1,12}%?(\+[0-9.kmKM]{1,12}){0,255}))?(@(?P<block>\d{1,8}))?"
)


class Pattern(NamedTuple):
    """A kind of pattern, its numbers, and the rows of its blocks; 1 where it has none."""

    kind: str
    numbers: Numbers
    block: int


# Block patterns: the blocks of one block row of `count`.


def _random(row: int, count: int, numbers: Numbers) -> set[int]:
    """The diagonal and as many others as make the share of the row, the same ones on every machine."""
    others = _drawn(row, count, {row})
    return {row, *others[: max(0, round(numbers[0] * count) - 1)]}


def _drawn(row: int, count: int, but: set[int]) -> list[int]:
    """All columns `but` some, in an order of the row's own."""
    return sorted(
        (column for column in range(count) if column not in but),
        key=lambda column: hashlib.blake2b(f"{row} {column}".encode()).digest(),
    )


def _butterfly(row: int, count: int, _: Numbers) -> set[int]:
    """Columns whose number differs from the row's in at most one bit: the factors of an FFT, all at once.

    Source: Chen et al., "Pixelated Butterfly", arXiv 2112.00029, which FA1 section 3.3 takes its mask from.
    """
    return {column for column in range(count) if (row ^ column).bit_count() <= 1}


def _local(row: int, count: int, numbers: Numbers) -> set[int]:
    """The diagonal and so many blocks to each side."""
    reach = int(numbers[0])
    return set(range(max(0, row - reach), min(count, row + reach + 1)))


def _bigbird(row: int, count: int, numbers: Numbers) -> set[int]:
    """So many blocks to each side, so many global blocks at the start, and so many others at random.

    Source: Zaheer et al., "Big Bird", arXiv 2007.14062, section 2 and appendix D: in blocks, "internal"
    global tokens, which see all and are seen by all.
    """
    _, first, others = (int(number) for number in numbers)
    if row < first:
        return set(range(count))
    near = _local(row, count, numbers) | set(range(min(first, count)))
    return near | set(_drawn(row, count, near)[:others])


# Patterns by position: for queries at positions `i` among `keys` keys, the ends (lo, hi) of each span.
# The spans may reach beyond the keys; they are cut.

Ends = list[tuple[Rows, Rows]]


def _window(i: Rows, _: int, numbers: Numbers) -> Ends:
    """The last w keys, itself included: Jiang et al., "Mistral 7B", arXiv 2310.06825, section 2."""
    return [(i + 1 - int(numbers[0]), i + 1)]


def _dilated(i: Rows, _: int, numbers: Numbers) -> Ends:
    """The last w of each D-th key, itself included: Beltagy et al., "Longformer", arXiv 2004.05150."""
    width, stride = (int(number) for number in numbers)
    return [(i + 1 - ((width - 1) * stride + 1), i + 1)]


def _sinks(i: Rows, _: int, numbers: Numbers) -> Ends:
    """The first s keys and the last w: Xiao et al., "Attention Sinks", arXiv 2309.17453, section 3.2."""
    import numpy as np

    first, width = (int(number) for number in numbers)
    start = np.maximum(i + 1 - width, 0)
    return [(0 * i, np.minimum(first, start)), (start, i + 1)]


def _longformer(i: Rows, keys: int, numbers: Numbers) -> Ends:
    """So many keys to each side, and so many global tokens, which see all and are seen by all.

    Source: Beltagy et al., "Longformer", arXiv 2004.05150, section 3.1; the global tokens stand first.
    """
    import numpy as np

    reach, tokens = (int(number) for number in numbers)
    everything = i < tokens
    return [
        (0 * i, np.where(everything, keys, tokens)),
        (np.where(everything, keys, np.maximum(i - reach, tokens)), i + reach + 1),
    ]


def _prefix(i: Rows, _: int, numbers: Numbers) -> Ends:
    """The first p keys from anywhere, causal behind them: a prefix language model."""
    import numpy as np

    return [(0 * i, np.maximum(i + 1, int(numbers[0])))]


def _packed(i: Rows, keys: int, numbers: Numbers) -> Ends:
    """Sequences behind each other in one row of tokens, each causal for itself."""
    import numpy as np

    starts = np.array(starts_of(numbers, keys))
    return [(starts[np.searchsorted(starts, i, side="right") - 1], i + 1)]


def starts_of(numbers: Numbers, keys: int) -> tuple[int, ...]:
    """Where the packed sequences start: of the lengths given, and one more where they leave a rest.

    A single number is a mean: lengths spread over 1 to twice that number, the same ones on every machine.
    """
    starts, lengths = [0], [int(number) for number in numbers]
    while starts[-1] < keys:
        at = len(starts) - 1
        if len(lengths) > 1:
            length = lengths[at] if at < len(lengths) else keys
        else:
            word = hashlib.blake2b(f"{at}".encode(), digest_size=8).digest()
            length = 1 + int.from_bytes(word) % (2 * lengths[0] - 1)
        starts.append(starts[-1] + length)
    return tuple(starts[:-1])


class Kind(NamedTuple):
    """How a kind is written, and one of: the blocks of a block row, or the spans of positions.

    One that is `square` makes sense for as many queries as keys only, as all block patterns do.
    """

    example: str
    blocks: Callable[[int, int, Numbers], set[int]] | None = None
    spans: Callable[[Rows, int, Numbers], Ends] | None = None
    square: bool = True


KINDS: Final[dict[str, Kind]] = {
    "random": Kind("random:25%", blocks=_random),
    "butterfly": Kind("butterfly", blocks=_butterfly),
    "local": Kind("local:2", blocks=_local),
    "bigbird": Kind("bigbird:1+2+3", blocks=_bigbird),
    "window": Kind("window:4096", spans=_window, square=False),
    "dilated": Kind("dilated:512+4", spans=_dilated),
    "sinks": Kind("sinks:4+1024", spans=_sinks, square=False),
    "longformer": Kind("longformer:256+64", spans=_longformer),
    "prefix": Kind("prefix:1024", spans=_prefix, square=False),
    "packed": Kind("packed:2048", spans=_packed),
}
#: Kinds that take any number of numbers.
_LISTS: Final = frozenset({"packed"})
#: Numbers that may be 0.
_ZERO: Final = frozenset({"local", "bigbird", "longformer", "sinks", "prefix"})


def parse(text: str) -> Pattern:
    """The pattern that `text` describes, `KIND[:NUMBER+...][@BLOCK]`; UsageError says what is allowed."""
    form = _FORM.fullmatch(text)
    if form is None or form["kind"] not in KINDS:
        examples = ", ".join(kind.example for kind in KINDS.values())
        raise UsageError(f"unknown pattern '{text}'", f"allowed: {examples}")
    kind = KINDS[form["kind"]]
    given = form["numbers"].split("+") if form["numbers"] else []
    wanted = kind.example.partition(":")[2].split("+") if ":" in kind.example else []
    if len(given) != len(wanted) and not (form["kind"] in _LISTS and given):
        raise UsageError(f"pattern '{text}' needs another form", f"write {kind.example}")
    if form["block"] and kind.blocks is None:
        raise UsageError(f"pattern '{text}' has no blocks", f"write {kind.example}")
    block = int(form["block"] or DEFAULT_BLOCK) if kind.blocks else 1
    if kind.blocks and (not 16 <= block <= 1024 or block & (block - 1)):
        raise UsageError(f"the block of pattern '{text}' must be a power of two from 16 to 1024, not {block}")
    return Pattern(form["kind"], tuple(_number(text, form["kind"], number) for number in given), block)


def _number(text: str, kind: str, number: str) -> float:
    if kind == "random":
        return _share(text, number)
    limit = MOST_BLOCKS if KINDS[kind].blocks else MOST_ROWS
    try:
        value = 0 if number == "0" else parse_count(number, "number")
    except UsageError as error:
        raise UsageError(f"pattern '{text}': {number} is no whole number") from error
    if value > limit or (value == 0 and kind not in _ZERO):
        raise UsageError(f"pattern '{text}': numbers go from {int(kind not in _ZERO)} to {limit}")
    return value


def _share(text: str, number: str) -> float:
    try:
        value = float(number.removesuffix("%"))
    except ValueError as error:
        raise UsageError(f"pattern '{text}': {number} is not a number") from error
    share = value / 100 if number.endswith("%") else value
    if not 0.0001 <= share <= 1:
        raise UsageError(f"pattern '{text}': the share must be from 0.01% to 100%")
    return share


def canonical(text: str) -> str:
    """The one way in which a pattern is written: `random:25%` is `random:25%@128`, 4k is 4096."""
    kind, numbers, block = parse(text)
    said = f"{numbers[0] * 100:g}%" if kind == "random" else "+".join(f"{number:.0f}" for number in numbers)
    return f"{kind}{f':{said}' if said else ''}{f'@{block}' if block > 1 else ''}"


def check_size(text: str, seq_q: int, seq_k: int) -> None:
    """UsageError where the pattern makes no sense for `seq_q` queries and `seq_k` keys."""
    kind, numbers, block = parse(text)
    if KINDS[kind].square and seq_q != seq_k:
        raise UsageError(f"pattern '{text}' needs as many queries as keys, not {seq_q} and {seq_k}")
    if block == 1 and max(seq_q, seq_k) > MOST_ROWS:
        raise UsageError(f"pattern '{text}' is worked out for {MOST_ROWS} rows at most")
    if (count := -(-seq_q // block)) > MOST_BLOCKS and block > 1:
        raise UsageError(
            f"pattern '{text}' cuts {seq_q} rows into {count} blocks, and {MOST_BLOCKS} are the most",
            "choose larger blocks: a power of two up to 1024 behind the @",
        )
    if stride_of(text) > 1 and seq_q % int(numbers[1]):
        raise UsageError(f"pattern '{text}': {int(numbers[1])} must divide the {seq_q} rows")


def is_blocked(text: str) -> bool:
    """Whether the pattern is one of blocks."""
    return KINDS[parse(text).kind].blocks is not None


def stride_of(text: str) -> int:
    """Of how many keys a query sees one within its spans: 1 but for dilated windows."""
    pattern = parse(text)
    return int(pattern.numbers[1]) if pattern.kind == "dilated" else 1


@cache
def blocks(text: str, length: int) -> Blocks:
    """The blocks that each block row sees in a matrix of `length` rows; of a block pattern only."""
    pattern = parse(text)
    row_of = KINDS[pattern.kind].blocks
    assert row_of is not None, text
    count = -(-length // pattern.block)
    return tuple(tuple(sorted(row_of(row, count, pattern.numbers))) for row in range(count))


@cache
def spans(text: str, seq_q: int, seq_k: int) -> "Spans":
    """The pattern as spans. The queries are the last of the sequence: query i has position i + N_k - N_q."""
    import numpy as np

    from perfkit.kernels.attention.spans import Spans

    kind, numbers, block = parse(text)
    if block > 1:
        runs = [_runs(columns) for columns in blocks(text, seq_k)]
        ends = np.zeros((len(runs), max(map(len, runs)), 2), np.int32)
        for row, found in enumerate(runs):
            ends[row, : len(found)] = np.array(found) * block
    else:
        spans_of = KINDS[kind].spans
        assert spans_of is not None, text
        found = spans_of(np.arange(seq_k - seq_q, seq_k), seq_k, numbers)
        ends = np.stack([np.stack(pair, -1) for pair in found], 1)
    return Spans(np.clip(ends, 0, seq_k).astype(np.int32), block, stride_of(text))


def _runs(columns: tuple[int, ...]) -> list[tuple[int, int]]:
    """Neighbours together, as (first, behind the last)."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return runs


@cache
def tile_lists(text: str, seq_q: int, seq_k: int, block_m: int, block_n: int) -> "TileLists":
    """The tiles that kernels visit, of a pattern without stride."""
    from perfkit.kernels.attention.spans import tile_lists as listed

    ends, step, _ = spans(text, seq_q, seq_k)
    return listed(ends, step, seq_q, seq_k, block_m, block_n)


@cache
def pairs(text: str, seq_q: int, seq_k: int) -> int:
    """Pairs of a query and a key that it sees, in one head."""
    import numpy as np

    ends, step, stride = spans(text, seq_q, seq_k)
    seen = -(-np.maximum(ends[..., 1] - ends[..., 0], 0).astype(np.int64) // stride)
    heights = np.minimum(seq_q - np.arange(len(ends)) * step, step)
    return int((seen.sum(1) * heights).sum())


def share(text: str, length: int) -> float:
    """The share of blocks that are seen: s of FA1 Proposition 4; of pairs for a pattern without blocks."""
    if not is_blocked(text):
        return pairs(text, length, length) / length**2
    rows = blocks(text, length)
    return sum(map(len, rows)) / len(rows) ** 2
