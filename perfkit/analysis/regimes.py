"""The two regimes of attention: which of two algorithms moves fewer elements, by fast memory M.

Source: Saha and Ye, arXiv 2402.07443, Theorem 3.1: Theta(min(N^2 d / sqrt(M), N^2 d^2 / M)), which meet at
M = d^2. One head, N queries and keys, forward, no mask; elements, statistics left out.
"""

import math
from typing import Final, Literal

import msgspec

from perfkit.analysis.bounds import Bounds, bounds
from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload

#: Elements of fast memory: powers of two.
MEMORIES: Final = tuple(1 << power for power in range(8, 19))


class AtMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What both algorithms move with `memory` elements of fast memory, and which of them moves less.

    `rows` is the height of `flash`'s tile, M / 2d: below 1 there is none, and its formula goes on as if there
    were. `side` is that of the square tile, sqrt(M).
    """

    memory: int
    rows: float
    side: float
    flash: float
    square: float
    lower: Literal["flash", "square"]
    bounds: Bounds


class Regimes(msgspec.Struct, frozen=True, kw_only=True):
    """The table of one N and d. `meet` is the M at which both move the same, `leading` the law's: d^2."""

    length: int
    head_dim: int
    table: tuple[AtMemory, ...]
    meet: float
    leading: int


def regimes(length: int, head_dim: int) -> Regimes:
    """Both algorithms over MEMORIES for N >= d; UsageError where N < d: there is no second regime to see."""
    if length < head_dim:
        raise UsageError(
            f"N {length} is below d {head_dim}: the two regimes are those of long sequences",
            "choose a larger N",
        )
    return Regimes(
        length=length,
        head_dim=head_dim,
        table=tuple(_at(length, head_dim, memory) for memory in MEMORIES),
        meet=_meet(length, head_dim),
        leading=head_dim**2,
    )


def flash_elements(length: int, head_dim: int, memory: float) -> float:
    """2 N d + 4 N^2 d^2 / M: Q and O once, K and V once for each block of M / 2d rows, at least once.

    Source: FA2 (arXiv 2307.08691) Algorithm 1, with tiles of Q and O in M.
    """
    tensor = float(length * head_dim)
    return 2 * tensor + max(2 * tensor, 4 * tensor**2 / memory)


def square_elements(length: int, head_dim: int, memory: float) -> float:
    """4 N^2 d / sqrt(M) + 2 N^2 + N d: Q, K and V N / sqrt(M) times and S d / sqrt(M) times, at least once.

    2 N^2 is S written, and read for the statistics; N d is O.
    """
    tensor, scores, side = float(length * head_dim), float(length**2), math.sqrt(memory)
    operands = 3 * tensor * max(1.0, length / side)
    return operands + scores * max(1.0, head_dim / side) + 2 * scores + tensor


def _at(length: int, head_dim: int, memory: int) -> AtMemory:
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=length, seq_k=length, head_dim=head_dim)
    flash, square = flash_elements(length, head_dim, memory), square_elements(length, head_dim, memory)
    return AtMemory(
        memory=memory,
        rows=memory / (2 * head_dim),
        side=math.sqrt(memory),
        flash=flash,
        square=square,
        lower="square" if square < flash else "flash",
        bounds=bounds(w, memory),
    )


def _meet(length: int, head_dim: int) -> float:
    """M of 4 N^2 d^2 / M + 2 N d = 4 N^2 d / sqrt(M) + 2 N^2 + N d.

    With x = d / sqrt(M), over N^2: 4 x^2 - 4 x - (2 - d / N) = 0. Its root is above 1 for N > d / 2, so that
    the square tile is narrower than d, and M below d^2: the two passes over S cost `square` that much.
    """
    x = (1 + math.sqrt(3 - head_dim / length)) / 2
    return (head_dim / x) ** 2
