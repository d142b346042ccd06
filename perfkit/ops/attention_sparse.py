"""The IO model of `block-sparse`: FlashAttention-2's loops over the tiles that hold a visible pair.

Source: Dao et al., arXiv 2205.14135, section 3.3; the loop order is that of arXiv 2307.08691, with which
2 N d + s T_r 2 N d elements move forward, s the share of tiles that are visited. On-chip memory M holds the
tiles of Q and O, 2 B_r d elements, and so that is Theta(N d + N^2 d^2 s / M), as Proposition 4 of the former
says of its own order. A window of w keys moves 2 N d + T_r 2 (w + B_r + B_c) d at most. Results are totals
over batch and heads.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles
from perfkit.model.device import DeviceProfile
from perfkit.ops import patterns
from perfkit.ops.attention_io import flash_exps, flash_extra_flops, flash_workspace, tile_of
from perfkit.ops.attention_ledger import flash_backward_ledger, flash_forward_ledger, step
from perfkit.ops.attention_tiles import chosen
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Moved, Retiling, Uses

if TYPE_CHECKING:
    from perfkit.kernels.attention.spans import Spans, TileList, TileLists

FORWARD: Final = "block_sparse_forward"
DKDV: Final = "block_sparse_dkdv"
DQ: Final = "block_sparse_dq"
#: In launch order, with the portable kernel of `flash` whose loops each has.
_LOOPS_OF: Final = {
    "flash_forward": FORWARD,
    "flash_delta": "flash_delta",
    "flash_dkdv": DKDV,
    "flash_dq": DQ,
}
LISTS: Final = frozenset({"offsets", "partial", "members", "spans"})
#: Lists are int32, and so is each end of a span.
ENTRY_BYTES: Final = 4
#: Whose tiles the memory that lists take is worked out for, where no device is given.
USUAL: Final = (9, 0)


class Visits(NamedTuple):
    """What the tiles of a kernel visit in one query head.

    Rows of K that the tiles of queries read together, rows of Q that the tiles of keys read together, and the
    pairs of tiles.
    """

    keys: int
    queries: int
    pairs: int


def unstrided(w: AttentionWorkload) -> AttentionWorkload:
    """What the kernels are given: a dilated window is a window in each of D sequences of every D-th token."""
    if w.pattern is None or (stride := patterns.stride_of(w.pattern)) == 1:
        return w
    width, rows = patterns.parse(w.pattern).numbers[0], w.seq_q // stride
    window = f"window:{width:.0f}"
    return msgspec.structs.replace(w, batch=w.batch * stride, seq_q=rows, seq_k=rows, pattern=window)


def mask_of(w: AttentionWorkload) -> "Spans":
    """The spans that the kernels are given; without a pattern one block is all."""
    import numpy as np

    from perfkit.kernels.attention.spans import Spans

    w = unstrided(w)
    if w.pattern is None:
        return Spans(np.array([[[0, w.seq_k]]], np.int32), 1 << 30)
    return patterns.spans(w.pattern, w.seq_q, w.seq_k)


def lists_of(w: AttentionWorkload, tile: KernelUse) -> "TileLists":
    """The tiles that a kernel with this tile visits."""
    w = unstrided(w)
    if w.pattern is not None:
        return patterns.tile_lists(w.pattern, w.seq_q, w.seq_k, tile.block_m, tile.block_n)
    from perfkit.kernels.attention.spans import tile_lists

    spans = mask_of(w)
    return tile_lists(spans.ends, spans.step, w.seq_q, w.seq_k, tile.block_m, tile.block_n)


def visits(w: AttentionWorkload, tile: KernelUse) -> Visits:
    """What the tiles visit: those at the end as far as there are rows."""
    w = unstrided(w)
    found = lists_of(w, tile)
    keys = _rows(found.by_queries.members, tile.block_n, w.seq_k)
    queries = _rows(found.by_keys.members, tile.block_m, w.seq_q)
    return Visits(int(keys.sum()), int(queries.sum()), len(found.by_queries.members))


def _rows(members: Any, side: int, length: int) -> Any:
    """The rows of each tile: `side`, and fewer of the last."""
    import numpy as np

    return np.minimum(side, length - members.astype(np.int64) * side)


def block_sparse_tiled(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """The kernels of the pass that loop over tiles."""
    return {"fwd": (FORWARD,), "bwd": (DKDV, DQ), "fwd-bwd": (FORWARD, DKDV, DQ)}[w.pass_]


def block_sparse_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that would run on a device of this compute capability: `flash-triton`'s, cut to the block.

    Those of its causal kernels, which have two loops as well, for a pattern without blocks.
    """
    capability, cuts = max(capability, (7, 5)), w.pattern is not None and not patterns.is_blocked(w.pattern)
    forward = tiles.forward_tile(w.head_dim, capability, cuts)
    return cut(w, (FORWARD, DKDV, DQ), (forward, *tiles.backward_tiles(w.head_dim, capability, cuts)))


def cut(w: AttentionWorkload, kernels: tuple[str, ...], found: tuple[tiles.Tile, ...]) -> Uses:
    """The tiles of `kernels`, no side longer than the pattern's block, if it has blocks."""
    if (block := block_of(w)) is not None:
        found = tuple(tiles.within(tile, block) for tile in found)
    named = zip(kernels, found, strict=True)
    return tuple(KernelUse(kernel=name, **tile._asdict()) for name, tile in named)


def block_of(w: AttentionWorkload) -> int | None:
    """The rows of a block of the pattern; None where it has no blocks."""
    blocked = w.pattern is not None and patterns.is_blocked(w.pattern)
    return patterns.parse(str(w.pattern)).block if blocked else None


def within_blocks(
    plan: Callable[[AttentionWorkload, tuple[int, int]], Uses],
    needed: Callable[[AttentionWorkload, Uses], tuple[str, ...]],
) -> Retiling:
    """`chosen`, and UsageError for a tile that is longer than a block of the pattern."""
    choose = chosen(plan, needed)

    def retiled(
        w: AttentionWorkload, device: DeviceProfile, block_m: int | None, block_n: int | None
    ) -> tuple[Mapping[str, Any], Uses]:
        block = block_of(w)
        for option, size in (("--block-m", block_m), ("--block-n", block_n)):
            if block is not None and size is not None and size > block:
                raise UsageError(
                    f"{option} {size} is more than the {block} rows of a block of {w.pattern}",
                    f"choose at most {block}, or a pattern with @{size}",
                )
        return choose(w, device, block_m, block_n)

    return retiled


def sparse_refuses(w: AttentionWorkload) -> str | None:
    """Why `block-sparse` cannot serve the workload; None where it can."""
    if w.pattern is None:
        return "there is no mask: name a pattern, such as random:25% or window:4096"
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: block-sparse kernels take multiples of 8 from 16 to 256"
    return None


def block_sparse_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels of the pass move between SMs and L2: `flash-triton`'s for visited tiles, and lists."""
    w = unstrided(w)
    moved: list[Moved] = []
    if w.pass_ != "bwd":
        tile = tile_of(uses, FORWARD)
        moved += flash_forward_ledger(w, visits(w, tile).keys)
        moved += _along_keys("flash_forward", w, tile)
    if w.pass_ != "fwd":
        dkdv, dq = tile_of(uses, DKDV), tile_of(uses, DQ)
        moved += flash_backward_ledger(w, visits(w, dkdv).queries, visits(w, dq).keys)
        moved += _along_queries("flash_dkdv", w, dkdv)
        moved += _along_keys("flash_dq", w, dq)
    order = list(_LOOPS_OF)
    return tuple(
        Moved(kernel=_LOOPS_OF[entry.kernel], tensor=entry.tensor, traffic=entry.traffic)
        for entry in sorted(moved, key=lambda entry: order.index(entry.kernel))
    )


def _along_keys(kernel: str, w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """The lists of tiles of keys; the spans of each row whose tile meets one in part, once a program."""
    found, heads = lists_of(w, tile).by_queries, w.batch * w.heads
    rows = int(_rows(found.partial.nonzero()[0], tile.block_m, w.seq_q).sum())
    return _list(kernel, w, found, heads, heads, rows)


def _along_queries(kernel: str, w: AttentionWorkload, tile: KernelUse) -> Ledger:
    """The lists of tiles of queries, for each query head; the spans of their rows with every tile."""
    import numpy as np

    found = lists_of(w, tile).by_keys
    parts = found.offsets[:-1] + found.partial  # where in a list those that are met in full begin
    in_part = np.arange(len(found.members)) < parts.repeat(np.diff(found.offsets))
    rows = int(_rows(found.members[in_part], tile.block_m, w.seq_q).sum())
    return _list(kernel, w, found, w.batch * w.kv_heads, w.batch * w.heads, rows)


def _list(
    kernel: str, w: AttentionWorkload, found: "TileList", programs: int, walks: int, rows: int
) -> Ledger:
    """Where a list begins and ends for each program of a tile; its members for each walk along them.

    Where lists are split, how many are met in part as well, and the spans of `rows` rows a walk. Of members
    that have consecutive numbers the first alone is read.
    """
    from perfkit.kernels.attention.spans import walk_of

    spans = mask_of(w)
    walk, count = walk_of(found, spans.step), len(found.partial)
    sizes = found.offsets[1:] - found.offsets[:-1]
    full = sizes - (found.partial if walk.split else 0)
    members = int((sizes - full).sum()) + int((full > 0).sum() if walk.runs else full.sum())
    read = {
        "offsets": programs * 2 * ENTRY_BYTES * count,
        "partial": programs * ENTRY_BYTES * count if walk.split else 0,
        "members": walks * ENTRY_BYTES * members,
        "spans": walks * 2 * ENTRY_BYTES * spans.ends.shape[1] * rows if walk.split else 0,
    }
    return step(kernel, {tensor: moved for tensor, moved in read.items() if moved}, {})


def block_sparse_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: 2 products a tile forward, 4 and 3 in the backward kernels."""
    products = {FORWARD: 2, DKDV: 4, DQ: 3}
    return sum(products[name] * product(w, tile_of(uses, name)) for name in block_sparse_tiled(w))


def product(w: AttentionWorkload, tile: KernelUse) -> int:
    """FLOPs of one product over all pairs of tiles that are visited, the head dim a power of two."""
    w = unstrided(w)
    depth = 1 << max(4, (w.head_dim - 1).bit_length())
    return 2 * tile.block_m * tile.block_n * depth * visits(w, tile).pairs * w.batch * w.heads


def block_sparse_exps(w: AttentionWorkload, uses: Uses) -> int:
    """One exp per visible score forward, and one in each of the two backward kernels."""
    return flash_exps(w, uses)


def block_sparse_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why it executes more FLOPs than the convention counts."""
    return edge_flops(w) + flash_extra_flops(w)


def edge_flops(w: AttentionWorkload) -> tuple[str, ...]:
    """That the mask cuts through tiles; of one of blocks, that tiles are padded if the last is partial."""
    block = block_of(w)
    if block is None:
        return ("masked part of partial tiles",) if w.pattern is not None else ()
    return ("tiles padded in the last block",) if w.seq_k % block else ()


def block_sparse_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """One kernel forward, three backward; the lists are made before, once for a mask."""
    return {"fwd": 1, "bwd": 3, "fwd-bwd": 4}[w.pass_]


def list_bytes(w: AttentionWorkload) -> int:
    """What is kept of a mask on the device, with the tiles of compute capability 9.0."""
    w, needed = unstrided(w), block_sparse_tiled(w)
    made = {
        (use.block_m, use.block_n, use.kernel == DKDV): lists_of(w, use)[use.kernel == DKDV]
        for use in block_sparse_plan(w, USUAL)
        if use.kernel in needed
    }
    return sum(ENTRY_BYTES * sum(map(len, found)) for found in made.values())


def block_sparse_workspace(w: AttentionWorkload) -> int:
    """LSE forward, D as well backward, and the lists."""
    return flash_workspace(w) + list_bytes(w)
