"""Zeros that TMA fills into the tiles of the flash kernels: of each box what lies outside of its tensor.

TMA loads what of a box lies inside of the tensor and fills the rest, which may be all of it. The counter at
the SM, `l1tex__m_xbar2l1tex_read_bytes`, counts whole boxes. On an H200 that was a third more than the ledger
at head dims 96 and 192 in tiles of 128 and 256 columns, and at N 16k, d 64, 128 rows of Q a head in tiles of
192 rows: to the last byte, but for 32 a tile that the forward kernel for Hopper takes from its counter; and
backward a third at head dim 96, within 0.01 %. Those of rows were not looked at backward.
LSE and D have padded rows, and none is loaded from outside. Results are totals over batch and heads.
"""

from perfkit.kernels.attention import tiles
from perfkit.model.device import DeviceProfile
from perfkit.ops import attention_hopper_backward as backward
from perfkit.ops.attention_io import (
    FORWARD,
    HOPPER,
    key_blocks,
    keys_read,
    queries_read,
    query_blocks,
    tile_of,
)
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Uses, Zeros
from perfkit.ops.plan import table_capability


def flash_zeros(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> tuple[Zeros, ...]:
    """Those of the portable kernels: all but the D kernel load by TMA, on compute capability 9 to 11."""
    if not (9, 0) <= table_capability(device) < (12, 0):
        return ()
    width, found = 1 << (w.head_dim - 1).bit_length(), []
    if w.pass_ != "bwd":
        found.append(_along_keys(w, tile_of(uses, FORWARD), width, 1))
    if w.pass_ != "fwd":
        found.append(_along_queries(w, tile_of(uses, "flash_dkdv"), width, 1))
        found.append(_along_keys(w, tile_of(uses, "flash_dq"), width, 2))
    return tuple(found)


def hopper_zeros(w: AttentionWorkload, uses: Uses, _: DeviceProfile) -> tuple[Zeros, ...]:
    """Those of the kernels for Hopper; what surrounds the products of the backward loads without TMA."""
    found = []
    if w.pass_ != "bwd":
        found.append(_along_keys(w, tile_of(uses, HOPPER), tiles.hopper_width(w.head_dim), 1))
    if w.pass_ != "fwd":
        width = backward.width_of(w)
        found.append(_along_queries(w, backward.dkdv_use(w, uses), width, backward.shares_of(w)))
        if backward.is_pair(w):
            found.append(_along_keys(w, backward.dq_use(uses), width, 2))
    return tuple(found)


def _along_keys(w: AttentionWorkload, tile: KernelUse, width: int, own: int) -> Zeros:
    """Of a kernel whose blocks of queries load `own` tensors of their own, and K and V as far as they see."""
    loaded = own * _whole(w.seq_q, tile.block_m) + 2 * tile.block_n * sum(key_blocks(w, tile))
    inside = own * w.seq_q + 2 * keys_read(w, tile)
    heads = w.batch * w.heads
    return _zeros(w, tile.kernel, heads * loaded, heads * inside, width)


def _along_queries(w: AttentionWorkload, tile: KernelUse, width: int, shares: int) -> Zeros:
    """Of a kernel whose blocks of keys load K and V in each of `shares`, and what of Q and dO sees them."""
    kv_heads, heads = w.batch * w.kv_heads * shares, w.batch * w.heads
    visits = sum(len(blocks) for blocks in query_blocks(w, tile))
    loaded = 2 * kv_heads * _whole(w.seq_k, tile.block_n) + 2 * heads * tile.block_m * visits
    inside = 2 * kv_heads * w.seq_k + 2 * heads * queries_read(w, tile)
    return _zeros(w, tile.kernel, loaded, inside, width)


def _whole(rows: int, side: int) -> int:
    """`rows` rounded up to whole tiles."""
    return -(-rows // side) * side


def _zeros(w: AttentionWorkload, kernel: str, loaded: int, inside: int, width: int) -> Zeros:
    """Of boxes that together have `loaded` rows of `width` columns, `inside` of them rows of a tensor."""
    return Zeros(
        kernel=kernel,
        columns=(width - w.head_dim) * inside * w.element_bytes,
        rows=(loaded - inside) * width * w.element_bytes,
    )
