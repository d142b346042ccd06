"""The IO model of `flash1`: FlashAttention's Algorithms 1 and 4 as written, K and V in the outer loop.

Source: Dao et al., arXiv 2205.14135. O, l and m (backward: dQ) of every row that sees a block of keys are
read and written for that block. One program owns a query head, backward a K/V head. Results are totals over
batch and heads.
"""

from collections.abc import Mapping
from typing import Final

from perfkit.kernels.attention import tiles
from perfkit.model.cache import IN_PART, circled_share
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops.attention_cache import resident
from perfkit.ops.attention_io import query_blocks, tile_of
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Ledger, Moved, Uses, total

FORWARD: Final = "flash1_forward"
BACKWARD: Final = "flash1_backward"
#: l and m, and O and dQ between blocks of keys, are fp32, whatever the dtype of the rest.
FP32: Final = 4


def flash1_tiled(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """The kernels of the pass: both loop over tiles."""
    return {"fwd": (FORWARD,), "bwd": (BACKWARD,), "fwd-bwd": (FORWARD, BACKWARD)}[w.pass_]


def flash1_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that `flash1` would run on a device of this compute capability, or on the oldest known."""
    pair = tiles.flash1_tiles(w.head_dim, max(capability, (7, 5)))
    named = zip((FORWARD, BACKWARD), pair, strict=True)
    return tuple(KernelUse(kernel=name, **tile._asdict()) for name, tile in named)


def flash1_refuses(w: AttentionWorkload) -> str | None:
    """Why the kernels cannot serve the workload; None where they can."""
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: flash1 takes multiples of 8 from 16 to 256"
    return None


def on_chip_elements(tile: KernelUse, head_dim: int) -> int:
    """M of the paper for a tile, in elements: Algorithm 1 sets B_c = M / 4d.

    B_c is what makes the traffic, 3 N^2 d / B_c = 12 N^2 d^2 / M elements. The rows of Q are not a share of M
    here: the paper's B_r = min(B_c, d) overflows M for M < 8 d^2.
    """
    return 4 * head_dim * tile.block_n


def visited_rows(w: AttentionWorkload, tile: KernelUse) -> int:
    """Rows of Q that the blocks of keys visit together, for one query head; T_c N_q without a mask."""
    # Blocks of rows are visited from the first that sees a key of the block to the last there is.
    return sum(w.seq_q - blocks.start * tile.block_m for blocks in query_blocks(w, tile))


def flash1_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels of the pass move between SMs and L2, with the tiles that ran.

    In elements, for one head and no mask: forward 2 N d + T_c (3 N d + 4 N) + N d + 2 N, backward
    T_c (5 N d + 2 N) + 7 N d, the paper's loops line by line.
    """
    return tuple(
        entry
        for name in flash1_tiled(w)
        for entry in (_forward if name == FORWARD else _backward)(w, tile_of(uses, name))
    )


def _forward(w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """O, l and m zeroed, then read and written for each block of keys; the last one writes O in its dtype.

    Query heads do not share programs: with grouped heads each reads K and V for itself.
    """
    heads = w.batch * w.heads
    rows, keys = heads * visited_rows(w, tile), heads * w.seq_k * w.head_dim * w.element_bytes
    partial, statistic = rows * w.head_dim * FP32, rows * FP32
    return _entries(
        FORWARD,
        {
            "K": (keys, 0),
            "V": (keys, 0),
            "Q": (rows * w.head_dim * w.element_bytes, 0),
            # One write fewer than blocks of keys, and one to zero it.
            "O in fp32": (partial, partial),
            "l": (statistic, statistic + FP32 * w.rows),
            "m": (statistic, statistic + FP32 * w.rows),
            "O": (0, w.query_bytes),
        },
    )


def _backward(w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """dQ as O forward. dK and dV stay on chip for a block of keys; Algorithm 4 zeroes them first."""
    rows = w.batch * w.heads * visited_rows(w, tile)
    row_bytes, partial = rows * w.head_dim * w.element_bytes, rows * w.head_dim * FP32
    return _entries(
        BACKWARD,
        {
            "K": (w.key_bytes, 0),
            "V": (w.key_bytes, 0),
            "Q": (row_bytes, 0),
            "O": (row_bytes, 0),
            "dO": (row_bytes, 0),
            "l": (rows * FP32, 0),
            "m": (rows * FP32, 0),
            "dQ in fp32": (partial, partial),
            "dQ": (0, w.query_bytes),
            "dK": (0, 2 * w.key_bytes),
            "dV": (0, 2 * w.key_bytes),
        },
    )


def _entries(kernel: str, moved: Mapping[str, tuple[int, int]]) -> Ledger:
    return tuple(
        Moved(kernel=kernel, tensor=tensor, traffic=Traffic(read_bytes=read, write_bytes=written))
        for tensor, (read, written) in moved.items()
    )


def flash1_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: 2 products a tile forward, 5 backward, the head dim a power of two."""
    depth = 1 << max(4, (w.head_dim - 1).bit_length())
    flops = 0
    for name, products in ((FORWARD, 2), (BACKWARD, 5)):
        if name in flash1_tiled(w):
            tile = tile_of(uses, name)
            visits = w.batch * w.heads * sum(len(blocks) for blocks in query_blocks(w, tile))
            flops += products * 2 * tile.block_m * tile.block_n * depth * visits
    return flops


def flash1_exps(w: AttentionWorkload, _: Uses) -> int:
    """One exp per visible score in each pass."""
    return len(flash1_tiled(w)) * w.pairs


def flash1_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why `flash1` executes more FLOPs than the convention counts: not by recomputing more than it."""
    causes = ["masked part of diagonal tiles"] if w.causal else []
    if w.head_dim & (w.head_dim - 1):
        causes.append(f"head dim {w.head_dim} padded to a power of two")
    return tuple(causes)


def flash1_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """One kernel a pass: it zeroes what it accumulates in."""
    return len(flash1_tiled(w))


def flash1_workspace(w: AttentionWorkload) -> int:
    """l and m, and O (backward: dQ) in fp32; what the forward pass had of it is free in the backward."""
    return w.rows * (w.head_dim + 2) * FP32


def flash1_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """Each tensor once, while what the heads in flight go round in stays in L2; else all of the ledger."""
    found = [_kernel_dram(w, tile_of(uses, name), device) for name in flash1_tiled(w)]
    traffic = sum((one.traffic for one in found), Traffic(read_bytes=0, write_bytes=0))
    return Cached(traffic=traffic, reason="; ".join(one.reason for one in found))


def _kernel_dram(w: AttentionWorkload, tile: KernelUse, device: DeviceProfile) -> Cached:
    forward = tile.kernel == FORWARD
    programs = w.batch * (w.heads if forward else w.kv_heads)
    in_flight = min(programs, resident(tile, device))
    inputs = (1 if forward else 3) * w.head_dim * w.element_bytes  # Q, or Q, O and dO
    row_bytes = inputs + (w.head_dim + 2) * FP32
    size, l2 = in_flight * (w.rows // programs) * row_bytes, device.level("l2").capacity_bytes
    share = circled_share(size, l2)
    once, asked = _once(w, tile, inputs), total((_forward if forward else _backward)(w, tile))
    # The query heads of a group run side by side, and what one reads of K and V the others find in L2.
    shared = 2 * (w.heads // w.kv_heads - 1) * w.key_bytes if forward else 0
    traffic = Traffic(
        read_bytes=once.read_bytes + round(share * (asked.read_bytes - shared - once.read_bytes)),
        write_bytes=once.write_bytes + round(share * (asked.write_bytes - once.write_bytes)),
    )
    moved = "Q, O, l and m" if forward else "Q, O, dO, dQ, l and m"
    end = "they stay"
    if share:
        part = f"{IN_PART}, {share:.0%} of re-reads miss"
        end = part if share < 1 else "every block of keys moves them again"
    return Cached(
        traffic=traffic, reason=f"{moved} of {in_flight} head(s) in flight take {size / l2:.0%} of L2: {end}"
    )


def _once(w: AttentionWorkload, tile: KernelUse, input_bytes: int) -> Traffic:
    """Every byte that a kernel touches, once: what is read back of what it wrote comes from L2."""
    # Rows in blocks that see no key (causal, N_q > N_k) are never read.
    seen = w.batch * w.heads * (w.seq_q - query_blocks(w, tile)[0].start * tile.block_m)
    partial, statistics = seen * w.head_dim * FP32, 2 * FP32
    if tile.kernel == FORWARD:
        return Traffic(
            read_bytes=seen * input_bytes + 2 * w.key_bytes,
            write_bytes=partial + w.query_bytes + w.rows * statistics,
        )
    return Traffic(
        read_bytes=seen * (input_bytes + statistics) + 2 * w.key_bytes,
        write_bytes=partial + w.query_bytes + 2 * w.key_bytes,
    )
