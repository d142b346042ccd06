"""The kinds of masks: each is one small function, from a block row to blocks, or from positions to spans."""

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

#: The numbers of a pattern: counts, and for `random` a share.
Numbers = tuple[float, ...]
#: Arrays of positions, one entry a query.
Rows = Any


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
LISTS: Final = frozenset({"packed"})
#: Numbers that may be 0.
FROM_ZERO: Final = frozenset({"local", "bigbird", "longformer", "sinks", "prefix"})
