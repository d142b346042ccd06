"""Lower bounds on what attention must move between slow and fast memory, in elements a head.

FA1 = Dao et al., arXiv 2205.14135. SY = Saha and Ye, arXiv 2402.07443. M is the fast memory in elements.
"""

import math
from typing import Literal

import msgspec

from perfkit.ops.attention_workload import AttentionWorkload

Regime = Literal["M >= d^2", "M < d^2"]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What no algorithm can go below, in elements a head, without constants where a bound is Theta.

    `compulsory`: Q, K, V read once and O written once. `flash`: N^2 d^2 / M, which no exact algorithm beats
    for all M (FA1 Proposition 3), and which is the bound for M >= d^2 (SY Theorem 3.1). `square`:
    N^2 d / sqrt(M), that of square tiles, which is the lower one for M < d^2. `least` is the smaller of the
    two, and never below compulsory.
    """

    compulsory: float
    flash: float
    square: float
    least: float
    regime: Regime


def bounds(w: AttentionWorkload, memory: float) -> Bounds:
    """The bounds for one head of `w` without a mask, with `memory` elements of fast memory."""
    pairs, d = float(w.seq_q) * w.seq_k, w.head_dim
    flash, square = pairs * d * d / memory, pairs * d / math.sqrt(memory)
    compulsory = 2.0 * d * (w.seq_q + w.seq_k)
    return Bounds(
        compulsory=compulsory,
        flash=flash,
        square=square,
        least=max(compulsory, min(flash, square)),
        regime="M >= d^2" if memory >= d * d else "M < d^2",
    )
