"""Block masks as closed descriptions: from `random:25%@64` follow the blocks, the pairs and the traffic.

The matrix of scores is cut into square blocks of `block` rows and columns, and a pattern says which of them a
block row sees. Every pattern sees its diagonal, so that each query sees a key and each key is seen.
"""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

from perfkit.errors import UsageError

#: Per block of queries, the blocks of keys that it sees, ascending.
Blocks = tuple[tuple[int, ...], ...]

DEFAULT_BLOCK: Final = 128
#: Blocks a row, at most: a pattern is worked out block by block.
MOST_BLOCKS: Final = 2048
_FORM: Final = re.compile(
    r"(?P<kind>[a-z]+)(:(?P<parameter>[0-9.]{1,8})(?P<percent>%?))?(@(?P<block>\d{1,8}))?"
)


class Pattern(NamedTuple):
    """A kind of pattern, its number (a share for `random`, blocks to each side for `local`), its block."""

    kind: str
    parameter: float
    block: int


def _random(row: int, count: int, share: float) -> tuple[int, ...]:
    """The diagonal and as many others as make `share` of the row, the same ones on every machine."""
    others = sorted(
        (column for column in range(count) if column != row),
        key=lambda column: hashlib.blake2b(f"{row} {column}".encode()).digest(),
    )
    return tuple(sorted([row, *others[: max(0, round(share * count) - 1)]]))


def _butterfly(row: int, count: int, _: float) -> tuple[int, ...]:
    """Columns whose number differs from the row's in at most one bit: the factors of an FFT, all at once.

    Source: Chen et al., "Pixelated Butterfly", arXiv 2112.00029, which FA1 section 3.3 takes its mask from.
    """
    return tuple(column for column in range(count) if (row ^ column).bit_count() <= 1)


def _local(row: int, count: int, reach: float) -> tuple[int, ...]:
    """The diagonal and `reach` blocks to each side."""
    return tuple(range(max(0, row - int(reach)), min(count, row + int(reach) + 1)))


#: Kind -> (the blocks of one row, how its number is written; None where it has none).
KINDS: Final[dict[str, tuple[Callable[[int, int, float], tuple[int, ...]], str | None]]] = {
    "random": (_random, "random:25%"),
    "butterfly": (_butterfly, None),
    "local": (_local, "local:2"),
}


def parse(text: str) -> Pattern:
    """The pattern that `text` describes, `KIND[:NUMBER][@BLOCK]`; UsageError says what is allowed."""
    form = _FORM.fullmatch(text)
    if form is None or form["kind"] not in KINDS:
        raise UsageError(f"unknown pattern '{text}'", "allowed: random:25%, butterfly, local:2, and @BLOCK")
    example = KINDS[form["kind"]][1]
    if (form["parameter"] is None) != (example is None):
        raise UsageError(f"pattern '{text}' needs another form", f"write {example or form['kind']}")
    block = int(form["block"] or DEFAULT_BLOCK)
    if not 16 <= block <= 1024 or block & (block - 1):
        raise UsageError(f"the block of pattern '{text}' must be a power of two from 16 to 1024, not {block}")
    return Pattern(form["kind"], _number(text, form), block)


def _number(text: str, form: "re.Match[str]") -> float:
    if form["parameter"] is None:
        return 0.0
    try:
        value = float(form["parameter"])
    except ValueError as error:
        raise UsageError(f"pattern '{text}': {form['parameter']} is not a number") from error
    if form["kind"] == "random":
        share = value / 100 if form["percent"] else value
        if not 0.0001 <= share <= 1:
            raise UsageError(f"pattern '{text}': the share must be from 0.01% to 100%")
        return share
    if form["percent"] or value != int(value) or value > MOST_BLOCKS:
        raise UsageError(f"pattern '{text}': the reach is a whole number of blocks, at most {MOST_BLOCKS}")
    return value


def canonical(text: str) -> str:
    """The one way in which a pattern is written: `random:25%` is `random:25%@128`."""
    pattern = parse(text)
    number = {"random": f":{pattern.parameter * 100:g}%", "local": f":{pattern.parameter:g}", "butterfly": ""}
    return f"{pattern.kind}{number[pattern.kind]}@{pattern.block}"


def check_size(text: str, length: int) -> None:
    """UsageError where `length` rows are more than MOST_BLOCKS blocks."""
    count = -(-length // parse(text).block)
    if count > MOST_BLOCKS:
        raise UsageError(
            f"pattern '{text}' cuts {length} rows into {count} blocks, and {MOST_BLOCKS} are the most",
            "choose larger blocks: a power of two up to 1024 behind the @",
        )


@cache
def blocks(text: str, length: int) -> Blocks:
    """The blocks that each block row sees in a matrix of `length` rows and columns."""
    pattern = parse(text)
    count = -(-length // pattern.block)
    row_of = KINDS[pattern.kind][0]
    return tuple(row_of(row, count, pattern.parameter) for row in range(count))


@cache
def pairs(text: str, length: int) -> int:
    """Pairs of a query and a key that see each other, in one head; the last block may be partial."""
    block = parse(text).block
    rows = blocks(text, length)
    last = len(rows) - 1
    edge = length - last * block

    def size(at: int) -> int:
        return edge if at == last else block

    return sum(size(row) * size(column) for row, columns in enumerate(rows) for column in columns)


def share(text: str, length: int) -> float:
    """The share of blocks that are seen: s of FA1 Proposition 4."""
    rows = blocks(text, length)
    return sum(map(len, rows)) / len(rows) ** 2
