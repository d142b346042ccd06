"""The IO model of `square`: attention in square tiles, whose fast memory is a tile of t x t sums, M = t^2.

Source: Saha and Ye, arXiv 2402.07443, Theorem 3.1: N^2 d / sqrt(M), the least for M < d^2. Three kernels: S
in tiles, the statistics of its rows, O in tiles. Results are totals over batch and heads.
"""

from collections.abc import Mapping
from typing import Any, Final

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles
from perfkit.model.cache import IN_PART, STAYS, Prediction, missed_share, shared_passes
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops.attention_cache import resident
from perfkit.ops.attention_io import tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_tiles import chosen
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Ledger, Moved, Uses, total

SCORES: Final = "square_scores"
STATISTICS: Final = "square_statistics"
OUTPUT: Final = "square_output"


def square_tiled(_: AttentionWorkload, __: Uses = ()) -> tuple[str, ...]:
    """The kernels: all of them loop over tiles."""
    return SCORES, STATISTICS, OUTPUT


def square_plan(w: AttentionWorkload, _: tuple[int, int]) -> Uses:
    """The tiles that `square` would run: the same on every device."""
    tile = tiles.square_tile()
    return tuple(KernelUse(kernel=name, **tile._asdict()) for name in square_tiled(w))


_chosen: Final = chosen(square_plan, square_tiled, tiles.square_warps)


def square_retiled(
    w: AttentionWorkload, device: DeviceProfile, block_m: int | None, block_n: int | None
) -> tuple[Mapping[str, Any], Uses]:
    """Other tiles, as high as wide: one side is both. UsageError for a rectangle, and sides above 128."""
    side = block_m or block_n
    if block_m and block_n and block_m != block_n:
        raise UsageError(
            f"square tiles are as high as wide, not {block_m} x {block_n}", "give one of --block-m, --block-n"
        )
    if side is not None and side > 128:
        raise UsageError(f"square tiles have a side of at most 128, not {side}", "choose a smaller one")
    return _chosen(w, device, side, side)


def square_refuses(w: AttentionWorkload) -> str | None:
    """Why the kernels cannot serve the workload; None where they can."""
    if w.pass_ != "fwd":
        return f"pass {w.pass_}: square has a forward pass only"
    if w.causal:
        return "square has no causal mask"
    if w.head_dim % 16:
        return f"head dim {w.head_dim}: square takes multiples of 16 up to 1024"
    return None


def square_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels move between SMs and L2, with the tiles that ran.

    In elements, for one head with t dividing N and d: 2 N^2 d / t + N^2, N^2, and 2 N^2 d / t + N d, together
    4 N^2 d / sqrt(M) + 2 N^2 + N d. What the O kernel reads of S is an entry of its own, "S again": it is of
    the leading term, and the other two passes over S are not.
    """
    of_scores, of_output = tile_of(uses, SCORES), tile_of(uses, OUTPUT)
    statistic, square = STATISTIC_BYTES * w.rows, scores_bytes(w)
    columns = _over(w.head_dim, of_output.block_n)
    # Query heads do not share tiles: with grouped heads each reads K and V for itself.
    keys = w.key_bytes * (w.heads // w.kv_heads)
    return (
        *_entries(
            SCORES,
            {
                "Q": (w.query_bytes * _over(w.seq_k, of_scores.block_n), 0),
                "K": (keys * _over(w.seq_q, of_scores.block_m), 0),
                "S": (0, square),
            },
        ),
        *_entries(STATISTICS, {"S": (square, 0), "l": (0, statistic), "m": (0, statistic)}),
        *_entries(
            OUTPUT,
            {
                "S again": (square * columns, 0),
                "l": (statistic * columns, 0),
                "m": (statistic * columns, 0),
                "V": (keys * _over(w.seq_q, of_output.block_m), 0),
                "O": (0, w.query_bytes),
            },
        ),
    )


def scores_bytes(w: AttentionWorkload) -> int:
    """Bytes of S in device memory: its rows are padded to whole sectors, and the padding moves too."""
    return w.rows * tiles.square_pitch(w.seq_k) * w.element_bytes


def _over(length: int, block: int) -> int:
    """Blocks that cover a length."""
    return -(-length // block)


def _entries(kernel: str, moved: Mapping[str, tuple[int, int]]) -> Ledger:
    return tuple(
        Moved(kernel=kernel, tensor=tensor, traffic=Traffic(read_bytes=read, write_bytes=written))
        for tensor, (read, written) in moved.items()
    )


def square_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: whole tiles of S, d deep, and of O, whole slices of keys deep."""
    of_scores, of_output = tile_of(uses, SCORES), tile_of(uses, OUTPUT)
    keys = tiles.square_slice(of_output.block_m)
    scores = _area(of_scores, w.seq_q, w.seq_k) * w.head_dim
    output = _area(of_output, w.seq_q, w.head_dim) * _over(w.seq_k, keys) * keys
    return 2 * w.batch * w.heads * (scores + output)


def _area(tile: KernelUse, rows: int, columns: int) -> int:
    """Elements of the tiles that cover a matrix."""
    return _over(rows, tile.block_m) * tile.block_m * _over(columns, tile.block_n) * tile.block_n


def square_exps(w: AttentionWorkload, uses: Uses) -> int:
    """One exp per score for the statistics, and one in each program of a row of tiles of O."""
    return (1 + _over(w.head_dim, tile_of(uses, OUTPUT).block_n)) * w.pairs


def square_extra_flops(_: AttentionWorkload, __: Uses = ()) -> tuple[str, ...]:
    """Nothing is computed twice by the tensor units, and slices divide the head dim."""
    return ()


def square_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """The three kernels."""
    return len(square_tiled(w))


def square_workspace(w: AttentionWorkload) -> int:
    """S, l and m."""
    return scores_bytes(w) + 2 * STATISTIC_BYTES * w.rows


def square_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """Q, K and V once or once a wave, all writes, and of S what a later kernel does not find in L2.

    Assumes that the programs of a row of tiles run side by side (they follow each other in the grid): they
    share one pass over their rows of Q or of S, while S, streaming by, leaves K and V of the heads in flight
    in L2.
    """
    asked, l2 = total(square_ledger(w, uses)), device.level("l2").capacity_bytes
    of_scores, of_output = tile_of(uses, SCORES), tile_of(uses, OUTPUT)
    of_k = _passes(w, of_scores, _over(w.seq_k, of_scores.block_n), device)
    of_v = _passes(w, of_output, _over(w.head_dim, of_output.block_n), device)
    missed = missed_share(scores_bytes(w), l2)
    again = 2 * scores_bytes(w) + 2 * STATISTIC_BYTES * w.rows
    operands = w.query_bytes + round(w.key_bytes * (of_k.passes + of_v.passes))
    traffic = Traffic(read_bytes=operands + round(missed * again), write_bytes=asked.write_bytes)
    case = f"{IN_PART if missed else STAYS}: {missed:.0%} of its re-reads miss"
    if missed == 1:
        case = "exceeds it: every kernel reads it from DRAM"
    size = f"S takes {scores_bytes(w) / l2:.0%} of L2 and {case}"
    return Cached(traffic=traffic, reason=f"{size}; K of {of_k.reason}; V of {of_v.reason}")


def _passes(w: AttentionWorkload, tile: KernelUse, columns: int, device: DeviceProfile) -> Prediction:
    """Passes over K or V, which every row of tiles (`columns` programs) reads once."""
    return shared_passes(
        blocks_per_head=w.heads // w.kv_heads * _over(w.seq_q, tile.block_m),
        heads=w.batch * w.kv_heads,
        head_bytes=w.seq_k * w.head_dim * w.element_bytes,
        resident_blocks=max(1, resident(tile, device) // columns),
        l2_bytes=device.level("l2").capacity_bytes,
    )
