"""The IO model of `block-sparse`: FlashAttention-2's loops over the visible blocks of a mask.

Source: Dao et al., arXiv 2205.14135, section 3.3; the loop order is that of arXiv 2307.08691, with which
2 N d + s T_r 2 N d elements move forward, s the share of blocks that are visible. On-chip memory M holds the
tiles of Q and O, 2 B_r d elements, and so that is Theta(N d + N^2 d^2 s / M), as Proposition 4 of the former
says of its own order. Results are totals over batch and heads.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles
from perfkit.model.device import DeviceProfile
from perfkit.ops import patterns
from perfkit.ops.attention_io import flash_exps, flash_extra_flops, flash_workspace, tile_of
from perfkit.ops.attention_ledger import flash_backward_ledger, flash_forward_ledger, step
from perfkit.ops.attention_tiles import chosen
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Moved, Retiling, Uses

FORWARD: Final = "block_sparse_forward"
DKDV: Final = "block_sparse_dkdv"
DQ: Final = "block_sparse_dq"
#: In launch order, with the kernel of `flash` whose loops each has.
_LOOPS_OF: Final = {
    "flash_forward": FORWARD,
    "flash_delta": "flash_delta",
    "flash_dkdv": DKDV,
    "flash_dq": DQ,
}
LISTS: Final = frozenset({"offsets", "columns", "rows"})
#: Lists are int32. Where a list begins and ends are two numbers.
ENTRY_BYTES: Final = 4


class Visits(NamedTuple):
    """What the tiles of a kernel visit in one query head.

    Rows of K that the tiles of queries read together, rows of Q that the tiles of keys read together, and the
    pairs of tiles. Tiles do not cross blocks.
    """

    keys: int
    queries: int
    pairs: int


def visible(w: AttentionWorkload) -> tuple[patterns.Blocks, int]:
    """The visible blocks by block of queries, and the rows of a block; without a pattern one block is all."""
    if w.pattern is None:
        return ((0,),), max(w.seq_q, w.seq_k)
    return patterns.blocks(w.pattern, w.seq_q), patterns.parse(w.pattern).block


def visits(w: AttentionWorkload, tile: KernelUse) -> Visits:
    """What the tiles visit: those of the last block, which may be partial, as far as there are rows."""
    rows, block = visible(w)
    last = len(rows) - 1
    edge_keys = w.seq_k - last * block
    keys = queries = pairs = 0
    for at, columns in enumerate(rows):
        height = min(block, w.seq_q - at * block)
        edge = columns[-1] == last
        whole = len(columns) - edge
        high = -(-height // tile.block_m)
        wide = whole * -(-block // tile.block_n) + edge * -(-edge_keys // tile.block_n)
        keys += high * (whole * block + edge * edge_keys)
        queries += wide * height
        pairs += high * wide
    return Visits(keys, queries, pairs)


def block_sparse_tiled(w: AttentionWorkload) -> tuple[str, ...]:
    """The kernels of the pass that loop over tiles."""
    return {"fwd": (FORWARD,), "bwd": (DKDV, DQ), "fwd-bwd": (FORWARD, DKDV, DQ)}[w.pass_]


def block_sparse_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that would run on a device of this compute capability: `flash`'s, cut to the block."""
    capability = max(capability, (7, 5))
    forward = tiles.forward_tile(w.head_dim, capability, False)
    return cut(w, (FORWARD, DKDV, DQ), (forward, *tiles.backward_tiles(w.head_dim, capability, False)))


def cut(w: AttentionWorkload, kernels: tuple[str, ...], found: tuple[tiles.Tile, ...]) -> Uses:
    """The tiles of `kernels`, no side longer than the pattern's block."""
    block = patterns.parse(w.pattern).block if w.pattern else max(max(tile[:2]) for tile in found)
    named = zip(kernels, (tiles.within(tile, block) for tile in found), strict=True)
    return tuple(KernelUse(kernel=name, **tile._asdict()) for name, tile in named)


def within_blocks(
    plan: Callable[[AttentionWorkload, tuple[int, int]], Uses],
    needed: Callable[[AttentionWorkload], tuple[str, ...]],
) -> Retiling:
    """`chosen`, and UsageError for a tile that is longer than a block of the pattern."""
    choose = chosen(plan, needed)

    def retiled(
        w: AttentionWorkload, device: DeviceProfile, block_m: int | None, block_n: int | None
    ) -> tuple[Mapping[str, Any], Uses]:
        _, block = visible(w)
        for option, size in (("--block-m", block_m), ("--block-n", block_n)):
            if w.pattern is not None and size is not None and size > block:
                raise UsageError(
                    f"{option} {size} is more than the {block} rows of a block of {w.pattern}",
                    f"choose at most {block}, or a pattern with @{size}",
                )
        return choose(w, device, block_m, block_n)

    return retiled


def sparse_refuses(w: AttentionWorkload) -> str | None:
    """Why neither block-sparse implementation can serve the workload; None where they can."""
    if w.pattern is None:
        return "there is no block mask: name a pattern, such as random:25%"
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: block-sparse kernels take multiples of 8 from 16 to 256"
    return None


def block_sparse_ledger(w: AttentionWorkload, uses: Uses) -> Ledger:
    """What the kernels of the pass move between SMs and L2: that of `flash` for visible blocks, and lists."""
    moved: list[Moved] = []
    if w.pass_ != "bwd":
        tile = tile_of(uses, FORWARD)
        moved += flash_forward_ledger(w, visits(w, tile).keys)
        moved += _list("flash_forward", "columns", w, tile, -(-w.seq_q // tile.block_m) * w.heads)
    if w.pass_ != "fwd":
        dkdv, dq = tile_of(uses, DKDV), tile_of(uses, DQ)
        moved += flash_backward_ledger(w, visits(w, dkdv).queries, visits(w, dq).keys)
        moved += _list("flash_dkdv", "rows", w, dkdv, -(-w.seq_k // dkdv.block_n) * w.kv_heads)
        moved += _list("flash_dq", "columns", w, dq, -(-w.seq_q // dq.block_m) * w.heads)
    order = list(_LOOPS_OF)
    return tuple(
        Moved(kernel=_LOOPS_OF[entry.kernel], tensor=entry.tensor, traffic=entry.traffic)
        for entry in sorted(moved, key=lambda entry: order.index(entry.kernel))
    )


def _list(kernel: str, members: str, w: AttentionWorkload, tile: KernelUse, programs: int) -> Ledger:
    """Each program reads where its list begins and ends; for every tile that it visits, of which block it is.

    Where the last block is partial, each program also reads its last member, to see whether it is that one.
    `programs` are of one batch.
    """
    _, block = visible(w)
    steps = w.heads * visits(w, tile).pairs + (programs if w.seq_k % block else 0)
    read = {"offsets": w.batch * 2 * ENTRY_BYTES * programs, members: w.batch * ENTRY_BYTES * steps}
    return step(kernel, read, {})


def block_sparse_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: 2 products a tile forward, 4 and 3 in the backward kernels."""
    products = {FORWARD: 2, DKDV: 4, DQ: 3}
    return sum(products[name] * product(w, tile_of(uses, name)) for name in block_sparse_tiled(w))


def product(w: AttentionWorkload, tile: KernelUse) -> int:
    """FLOPs of one product over all pairs of tiles that are visited, the head dim a power of two."""
    depth = 1 << max(4, (w.head_dim - 1).bit_length())
    return 2 * tile.block_m * tile.block_n * depth * visits(w, tile).pairs * w.batch * w.heads


def block_sparse_exps(w: AttentionWorkload, uses: Uses) -> int:
    """One exp per visible score forward, and one in each of the two backward kernels."""
    return flash_exps(w, uses)


def block_sparse_extra_flops(w: AttentionWorkload) -> tuple[str, ...]:
    """Why it executes more FLOPs than the convention counts."""
    return edge_flops(w) + flash_extra_flops(w)


def edge_flops(w: AttentionWorkload) -> tuple[str, ...]:
    """That tiles are padded, if the last block is partial."""
    return ("tiles padded in the last block",) if w.seq_k % visible(w)[1] else ()


def block_sparse_launches(w: AttentionWorkload) -> int:
    """One kernel forward, three backward; the lists are made before, once for a mask."""
    return {"fwd": 1, "bwd": 3, "fwd-bwd": 4}[w.pass_]


def list_bytes(w: AttentionWorkload) -> int:
    """What is kept of a mask: both lists with their offsets, and a byte a block."""
    rows, _ = visible(w)
    return 2 * ENTRY_BYTES * (len(rows) + 1 + sum(map(len, rows))) + len(rows) ** 2


def block_sparse_workspace(w: AttentionWorkload) -> int:
    """LSE forward, D as well backward, and the lists."""
    return flash_workspace(w) + list_bytes(w)
