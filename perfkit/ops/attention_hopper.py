"""The IO model of `flash-hopper`: FlashAttention-2's loops with the tiles of kernels for Hopper.

Source: Dao, arXiv 2307.08691, Algorithm 1. FlashAttention-3 (Shah et al., arXiv 2407.08608) overlaps the same
loops in another way, and moves the same bytes for the same tiles. What differs from `flash-triton` forward: a
block of queries that sees no key visits one block of keys, each warpgroup stops at the diagonal of its own
rows, tiles have other columns, and causal blocks of several heads go out together. The backward is in
`attention_hopper_backward`, and what reaches DRAM in `attention_hopper_cache`.
"""

import msgspec

from perfkit.kernels.attention import tiles
from perfkit.ops import attention_hopper_backward as backward
from perfkit.ops import attention_io as io
from perfkit.ops.attention_decode import SM_COUNTS
from perfkit.ops.attention_io import HOPPER
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Uses

UNCOUNTED = "Triton's interpreter cannot execute Gluon, in which its kernels are written"


def hopper_plan(w: AttentionWorkload, _: tuple[int, int]) -> Uses:
    """The tiles that `flash-hopper` would run.

    There is one table: of devices on which the kernels cannot run the model says what they would move.
    """
    tile = tiles.hopper_tile(w.head_dim, w.causal).held
    return (KernelUse(kernel=HOPPER, **tile._asdict()), *backward.backward_plan(w))


def hopper_refuses(w: AttentionWorkload) -> str | None:
    """Why the kernels cannot serve the workload on any device; None where they can."""
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: flash-hopper takes multiples of 8 from 16 to 256"
    return None


def forward_of(w: AttentionWorkload) -> AttentionWorkload | None:
    """The forward pass of a workload, None if it has none."""
    return None if w.pass_ == "bwd" else msgspec.structs.replace(w, pass_="fwd")


def backward_of(w: AttentionWorkload) -> AttentionWorkload | None:
    """The backward pass of a workload, None if it has none."""
    return None if w.pass_ == "fwd" else msgspec.structs.replace(w, pass_="bwd")


def hopper_tiled(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """The kernels of the pass that loop over tiles."""
    after = tuple(use.kernel for use in backward.backward_plan(w))
    return {"fwd": (HOPPER,), "bwd": after, "fwd-bwd": (HOPPER, *after)}[w.pass_]


def hopper_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels move between SMs and L2 for the pass, with the tiles that ran."""
    before, after = forward_of(w), backward_of(w)
    forward = io.flash_ledger(before, uses, HOPPER) if before else ()
    return (*forward, *(backward.backward_ledger(after, uses) if after else ()))


def warpgroup_blocks(w: AttentionWorkload, tile: KernelUse) -> int:
    """Blocks of keys that the warpgroups of one head multiply together, each 64 rows of queries.

    A warpgroup stops at the diagonal of its own last row, where K and V are loaded to that of the tile. Each
    multiplies one block at least, and no more where none of its rows is in range.
    """
    rows = tiles.WARPGROUP_ROWS
    whole, last = -(-w.seq_k // tile.block_n), -(-w.seq_q // tile.block_m) * tile.block_m
    starts = range(0, w.seq_q, rows)
    beyond = len(range(0, last, rows)) - len(starts)
    if not w.causal:
        return len(starts) * whole + beyond
    visible = (min(start + rows, w.seq_q) + w.seq_k - w.seq_q for start in starts)
    return sum(max(1, -(-keys // tile.block_n)) for keys in visible) + beyond


def idle_products(w: AttentionWorkload, tile: KernelUse) -> int:
    """Q K^T that persistent programs start beside the last P V of all, one a warpgroup, and do not use.

    There are as many programs as multiprocessors or tiles: of H100 SXM and H200 the model takes the former.
    """
    if not tiles.hopper_tile(w.head_dim, w.causal).persistent:
        return 0
    blocks = w.batch * w.heads * -(-w.seq_q // tile.block_m)
    return min(blocks, SM_COUNTS[9, 0]) * tile.block_m // tiles.WARPGROUP_ROWS


def hopper_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: forward 2 products for each block of a warpgroup, padded columns.

    One more product where a warpgroup finds that no tile is left. Backward see `backward_flops`.
    """
    flops = 0
    if w.pass_ != "bwd":
        tile = io.tile_of(uses, HOPPER)
        product = 2 * tiles.WARPGROUP_ROWS * tile.block_n * tiles.hopper_width(w.head_dim)
        flops += 2 * product * warpgroup_blocks(w, tile) * w.batch * w.heads
        flops += product * idle_products(w, tile)
    if w.pass_ != "fwd":
        flops += backward.backward_flops(w, uses)
    return flops


def hopper_exps(w: AttentionWorkload, _: Uses = ()) -> int:
    """One exp per visible score forward, and one in each kernel that computes S backward."""
    return (w.pass_ != "bwd") * w.pairs + (backward.backward_exps(w) if w.pass_ != "fwd" else 0)


def hopper_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why it executes more FLOPs than the convention counts."""
    causes = ["masked part of diagonal tiles"] if w.causal else []
    if w.pass_ != "fwd" and backward.is_pair(w):
        causes.append("S and dP recomputed twice (7 products for 5)")
    if padding := _padding(w):
        causes.append(padding)
    return tuple(causes)


def _padding(w: AttentionWorkload) -> str | None:
    """To how many columns the kernels of the pass pad the head dim; None where none does."""
    columns = {"forward": tiles.hopper_width(w.head_dim), "backward": backward.width_of(w)}
    if w.pass_ != "fwd-bwd":
        columns = {"": columns["forward" if w.pass_ == "fwd" else "backward"]}
    elif len(set(columns.values())) == 1:
        columns = {"": columns["forward"]}
    padded = [f"{width} {name}".rstrip() for name, width in columns.items() if width > w.head_dim]
    return f"head dim {w.head_dim} padded to {' and '.join(padded)}" if padded else None


def hopper_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """One forward, and those of the backward."""
    return (w.pass_ != "bwd") + (backward.backward_launches(w) if w.pass_ != "fwd" else 0)


def hopper_workspace(w: AttentionWorkload) -> int:
    """LSE forward; backward also padded statistics, parts of dK and dV, and up to 128 columns a sum of dQ."""
    return io.flash_workspace(w) if w.pass_ == "fwd" else backward.backward_workspace(w)
