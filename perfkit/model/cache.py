"""A model of L2: which part of the traffic that SMs ask for reaches DRAM.

What is re-read either stays resident (*fits*), and DRAM sees compulsory traffic; or it does not, and the
thread blocks that run together (a *wave*) share one pass over K and V, so that DRAM sees one pass a wave. In
between, part of each pass is lost.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

#: Parts of L2 that re-read data can fill: up to RESIDENT all of it stays, from LOST on none does. Fitted to
#: `flash-triton` on an H200 (N 2k to 64k, d 64 and 128), whose L2 is two halves that keep copies of each
#: other's lines.
RESIDENT: Final = 0.3
LOST: Final = 0.5
#: The same where one head is in flight, so that nothing of heads before it takes room: of its re-reads 3, 17
#: and 95 % missed at 0.27, 0.40 and 0.53 of L2.
RESIDENT_ALONE: Final = 0.37
LOST_ALONE: Final = 0.54
#: Parts of L2 from which on the blocks of a wave no longer share a pass, and at which they share none: each
#: half of L2 then reads for its own SMs, twice a wave. Fitted to `flash-triton` on an H200, K and V of 33 to
#: 134 MB a head: 1.0, 1.8, 2.0 and 2.1 passes a wave at 0.53, 1.07 (d 128, d 64) and 2.13 of L2.
TOGETHER: Final = 0.55
APART: Final = 1.0
#: Size of a matrix over L2 -> share of it that the next kernel no longer finds there, linear in between.
#: Fitted to `standard` forward on an H200, S of 17 to 101 MB: 0, 6, 41, 72, 80, 88, 99 % at 0.27, 0.40, 0.53,
#: 0.67, 0.80, 1.07 and 1.60 of L2.
MISSED: Final = ((0.37, 0.0), (0.67, 0.72), (1.6, 1.0))

#: The same for what a kernel goes round in, reading and writing all of it in every turn. Fitted to `flash1`
#: on an H200, N 2k to 12k, d 64 to 256: 1, 5, 19, 45, 68 and 100 % at 0.41, 0.51, 0.61, 0.71, 0.81 and 1.0.
CIRCLED: Final = ((0.42, 0.0), (0.61, 0.2), (0.82, 0.72), (1.0, 1.0))

#: How a prediction says that a matrix never leaves L2 between being written and read.
STAYS: Final = "stays in L2"
IN_PART: Final = f"in part {STAYS}"


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted passes over the re-read operand (1: compulsory), the case, and why."""

    case: Literal["fits", "partly", "waves"]
    passes: float
    reason: str


def missed_share(size_bytes: int, l2_bytes: int) -> float:
    """The share of a matrix (`size_bytes`) that the next kernel does not find in L2, by MISSED."""
    return _between(size_bytes / l2_bytes, MISSED)


def circled_share(size_bytes: int, l2_bytes: int) -> float:
    """The share of what a kernel goes round in (`size_bytes`) that its next turn misses, by CIRCLED."""
    return _between(size_bytes / l2_bytes, CIRCLED)


def _between(size: float, table: Sequence[tuple[float, float]]) -> float:
    for (left, low), (right, high) in itertools.pairwise(table):
        if size <= right:
            return low + (high - low) * max(0.0, size - left) / (right - left)
    return 1.0


def lost_share(size_bytes: int, l2_bytes: int, alone: bool = False) -> float:
    """The share of a working set's re-reads that miss L2: 0 up to RESIDENT, 1 from LOST on.

    `alone` where it is of one head.
    """
    low, high = (RESIDENT_ALONE, LOST_ALONE) if alone else (RESIDENT, LOST)
    return min(1.0, max(0.0, (size_bytes / l2_bytes - low) / (high - low)))


def _apart(size_bytes: int, l2_bytes: int) -> float:
    """How far the halves of L2 read for themselves: 0 up to TOGETHER, 1 from APART on."""
    return min(1.0, max(0.0, (size_bytes / l2_bytes - TOGETHER) / (APART - TOGETHER)))


def lost_between(size_bytes: int, l2_bytes: int) -> float:
    """The share of an op's inputs (`size_bytes`) that a later kernel of it no longer finds in L2.

    0 up to a third of L2, 1 from all of it on: fitted to the backward of `flash-triton` on an H200, N 2k to
    16k.
    """
    return min(1.0, max(0.0, (3 * size_bytes / l2_bytes - 1) / 2))


def shared_passes(
    *, blocks_per_head: int, heads: int, head_bytes: int, resident_blocks: int, l2_bytes: int
) -> Prediction:
    """Passes over K and V in DRAM when `blocks_per_head` thread blocks each read a head's `head_bytes`.

    Blocks are started head by head, `resident_blocks` at a time, so that a wave touches a few heads. What is
    lost of their K and V is read once more by every wave that touches them.
    """
    total = blocks_per_head * heads
    waves = -(-total // resident_blocks)
    in_flight = min(heads, max(1, -(-resident_blocks // blocks_per_head)))
    # Each head once, and once more for every wave that starts inside a head.
    aligned = (waves - 1) // (blocks_per_head // math.gcd(blocks_per_head, resident_blocks))
    touched = heads + (waves - 1) - aligned
    share = lost_share(in_flight * head_bytes, l2_bytes, alone=in_flight == 1)
    passes = 1.0 + share * (touched / heads - 1.0)
    apart = _apart(in_flight * head_bytes, l2_bytes)
    passes += apart * max(0.0, min(blocks_per_head, 2 * total / (resident_blocks * heads)) - passes)
    case: Literal["fits", "partly", "waves"] = "fits" if share == 0 else "waves" if share == 1 else "partly"
    size = f"{in_flight} head(s) in flight take {in_flight * head_bytes / l2_bytes:.0%} of L2"
    text = {
        "fits": f"{size}: they stay",
        "partly": f"{size}: {share:.0%} of re-reads miss",
        "waves": f"{size}: read {'twice' if apart == 1 else 'once'} by each of {waves} waves",
    }[case]
    if 0 < apart < 1:
        text = f"{size}: read more than once by each of {waves} waves"
    return Prediction(case=case, passes=passes, reason=text)


def resident_blocks(
    *,
    sm_count: int,
    shared_bytes_per_sm: int,
    registers_bytes_per_sm: int,
    max_threads_per_sm: int,
    num_warps: int | None,
    shared_bytes: int | None,
    registers: int | None,
) -> int:
    """Thread blocks of a kernel that the device holds at a time, from what its compiled code takes.

    `registers` are 32-bit and per thread; a block pays 1 KiB of shared memory on top of its own. One block
    an SM where the kernel was never compiled.
    """
    limits = [32]
    if shared_bytes:
        limits.append(shared_bytes_per_sm // (shared_bytes + 1024))
    if registers and num_warps:
        limits.append(registers_bytes_per_sm // (registers * 4 * 32 * num_warps))
    if num_warps:
        limits.append(max_threads_per_sm // (32 * num_warps))
    return sm_count * max(1, min(limits) if shared_bytes and registers else 1)
