"""Masks as closed descriptions: from `window:4096` follow the reference mask, tiles, pairs and bytes.

There are two kinds. A block pattern cuts the matrix of scores into square blocks of `block` rows and columns,
and says which of them a block of queries sees. Any other says from which key to which a query sees, by its
position. Either becomes `Spans`, from which all the rest is derived: a new pattern is one small function.
"""

import re
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from perfkit.errors import UsageError
from perfkit.model.units import parse_count
from perfkit.ops.pattern_kinds import FROM_ZERO, KINDS, LISTS, Numbers

if TYPE_CHECKING:
    from perfkit.kernels.attention.spans import Spans, TileLists

#: Per block of queries, the blocks of keys that it sees, ascending.
Blocks = tuple[tuple[int, ...], ...]

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


def parse(text: str) -> Pattern:
    """The pattern that `text` describes, `KIND[:NUMBER+...][@BLOCK]`; UsageError says what is allowed."""
    form = _FORM.fullmatch(text)
    if form is None or form["kind"] not in KINDS:
        examples = ", ".join(kind.example for kind in KINDS.values())
        raise UsageError(f"unknown pattern '{text}'", f"allowed: {examples}")
    kind = KINDS[form["kind"]]
    given = form["numbers"].split("+") if form["numbers"] else []
    wanted = kind.example.partition(":")[2].split("+") if ":" in kind.example else []
    if len(given) != len(wanted) and not (form["kind"] in LISTS and given):
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
    if value > limit or (value == 0 and kind not in FROM_ZERO):
        raise UsageError(f"pattern '{text}': numbers go from {int(kind not in FROM_ZERO)} to {limit}")
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
