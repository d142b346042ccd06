"""The IO model of `flash-hopper`: FlashAttention-2's loops with the tiles of kernels for Hopper.

Source: Dao, arXiv 2307.08691, Algorithm 1. FlashAttention-3 (Shah et al., arXiv 2407.08608) overlaps the same
loops in another way, and moves the same bytes for the same tiles. What differs from `flash-triton` forward: a
block of queries that sees no key visits one block of keys, each warpgroup stops at the diagonal of its own
rows, tiles have 64 columns or more, and causal blocks of several heads go out together. The backward of head
dims up to 128 is in `attention_hopper_backward`; above, its kernels are those of `flash-triton`.
"""

import msgspec

from perfkit.kernels.attention import tiles
from perfkit.model.cache import lost_between
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_hopper_backward as fused
from perfkit.ops import attention_io as io
from perfkit.ops.attention_cache import flash_dram, streamed
from perfkit.ops.attention_decode import SM_COUNTS
from perfkit.ops.attention_io import HOPPER
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Ledger, Uses, total

UNCOUNTED = "Triton's interpreter cannot execute Gluon, in which its kernels are written"


def hopper_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that `flash-hopper` would run.

    Its own kernels have one table: of devices on which they cannot run the model says what they would move.
    """
    named = {HOPPER: tiles.hopper_tile(w.head_dim, w.causal).held}
    if w.head_dim <= tiles.WIDEST_HOPPER_BACKWARD:
        named[fused.DKDV] = tiles.hopper_backward_tile(w.head_dim, w.causal).held
    else:
        found = tiles.backward_tiles(w.head_dim, max(capability, (7, 5)), w.causal)
        named["flash_dkdv"], named["flash_dq"] = found
    return tuple(KernelUse(kernel=name, **tile._asdict()) for name, tile in named.items())


def hopper_refuses(w: AttentionWorkload) -> str | None:
    """Why the kernels cannot serve the workload on any device; None where they can."""
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: flash-hopper takes multiples of 8 from 16 to 256"
    return None


def _forward_of(w: AttentionWorkload) -> AttentionWorkload | None:
    """The forward pass of a workload, None if it has none."""
    return None if w.pass_ == "bwd" else msgspec.structs.replace(w, pass_="fwd")


def hopper_tiled(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """The kernels of the pass that loop over tiles."""
    if not fused.is_fused(w):
        return io.flash_tiled(w, forward=HOPPER)
    return (fused.DKDV,) if w.pass_ == "bwd" else (HOPPER, fused.DKDV)


def hopper_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels move between SMs and L2 for the pass, with the tiles that ran."""
    if not fused.is_fused(w):
        return io.flash_ledger(w, uses, HOPPER)
    before = _forward_of(w)
    return (*(io.flash_ledger(before, uses, HOPPER) if before else ()), *fused.fused_ledger(w, uses))


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

    One more product where a warpgroup finds that no tile is left. Backward five products a tile, less what a
    warpgroup passes over; seven in the kernels of `flash-triton`.
    """
    flops = 0
    if w.pass_ != "bwd":
        tile = io.tile_of(uses, HOPPER)
        product = 2 * tiles.WARPGROUP_ROWS * tile.block_n * fused.width_of(w)
        flops += 2 * product * warpgroup_blocks(w, tile) * w.batch * w.heads
        flops += product * idle_products(w, tile)
    if w.pass_ != "fwd":
        backward = msgspec.structs.replace(w, pass_="bwd")
        flops += fused.fused_flops(w, uses) if fused.is_fused(w) else io.flash_flops(backward, uses)
    return flops


def hopper_exps(w: AttentionWorkload, uses: Uses) -> int:
    """One exp per visible score in each pass, one more backward with the kernels of `flash-triton`."""
    if not fused.is_fused(w):
        return io.flash_exps(w, uses)
    return (1 if w.pass_ == "bwd" else 2) * w.pairs


def hopper_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why it executes more FLOPs than the convention counts: fused, not by recomputing more than it."""
    if w.head_dim > tiles.WIDEST_HOPPER_BACKWARD:
        return io.flash_extra_flops(w, forward=HOPPER)
    causes = ["masked part of diagonal tiles"] if w.causal else []
    if w.head_dim < (width := fused.width_of(w)):
        causes.append(f"head dim {w.head_dim} padded to {width}")
    return tuple(causes)


def hopper_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """One forward; backward those of the fused kernels, or the three of `flash-triton`."""
    backward = fused.fused_launches(w) if fused.is_fused(w) else 3
    return {"fwd": 1, "bwd": backward, "fwd-bwd": 1 + backward}[w.pass_]


def hopper_workspace(w: AttentionWorkload) -> int:
    """LSE forward; backward also padded statistics and the sum of dQ, or D with portable kernels."""
    return fused.fused_workspace(w) if fused.is_fused(w) else io.flash_workspace(w)


def hopper_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """As `flash_dram`. Causal blocks go out the longest first, over all heads that share L2 by the kernel.

    The fused backward is taken to read and write the sum of dQ as often as it reads Q and dO: L2 adds, and
    what it has lost in between it reads and writes once more. That is an assumption.
    """
    kv_head = 2 * w.seq_k * w.head_dim * w.element_bytes
    together = tiles.hopper_together(kv_head) if w.causal else 1
    if not fused.is_fused(w):
        return flash_dram(w, uses, device, HOPPER, together)
    before = _forward_of(w)
    first = flash_dram(before, uses, device, HOPPER, together) if before else None
    found = _fused_dram(w, uses, device)
    if first is None:
        return found
    reason = "; ".join(dict.fromkeys((first.reason, found.reason)))
    return Cached(traffic=first.traffic + found.traffic, reason=reason)


def _working_set(w: AttentionWorkload) -> int:
    """Bytes of the inputs of the backward and of the sum."""
    return io.compulsory(msgspec.structs.replace(w, pass_="bwd")).read_bytes + fused.sum_bytes(w)


def _fused_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """The fused backward alone."""
    tile = io.tile_of(uses, fused.DKDV)
    q, kv = w.query_bytes, w.key_bytes
    padded, whole = fused.padded_bytes(w), fused.sum_bytes(w)
    visible = io.query_blocks(w, tile)
    rows_head = (2 * q + 2 * padded + whole) // (w.batch * w.kv_heads)
    found = streamed(w, tile, rows_head, len(visible), device)
    seen = sum(map(len, visible)) / (len(visible) * -(-w.seq_q // tile.block_m))
    again = max(0.0, found.passes * seen - 1.0)
    once = io.compulsory(msgspec.structs.replace(w, pass_="bwd")).read_bytes
    parts = fused.parts_bytes(w)
    # O, dO and LSE; K, V, Q, dO and statistics; the sum to add to, and to convert; parts of dK and dV.
    least = 2 * q + 4 * w.rows + 2 * kv + 2 * q + 2 * padded + 2 * whole + parts
    lost = lost_between(_working_set(w), device.level("l2").capacity_bytes)
    asked = total(fused.fused_ledger(w, uses))
    reads = once + round(lost * (least - once)) + round(again * (2 * q + 2 * padded + whole))
    added = fused.added_bytes(w, tile)
    # Zeros reach DRAM, and what is added to them later, unless it all stays in L2.
    writes = 2 * kv + parts + q + 2 * padded + whole + round((lost + again) * whole)
    reasons = [found.reason, "the sum of dQ is read and written as often as Q and dO are read (assumed)"]
    if lost < 1:
        reasons.append(f"{1 - lost:.0%} of its inputs stay in L2 between its kernels")
    traffic = Traffic(
        read_bytes=min(reads, asked.read_bytes + added), write_bytes=min(writes, asked.write_bytes + added)
    )
    return Cached(traffic=traffic, reason="; ".join(reasons))
