"""What of block-sparse attention's traffic reaches DRAM: the L2 model applied to both loop orders.

Lists and masks are left out: they are small, and stay in L2.
"""

import itertools
from statistics import mean
from typing import TYPE_CHECKING

import msgspec

from perfkit.model.cache import IN_PART, circled_share, lost_between
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_sparse1 as sparse1
from perfkit.ops.attention_cache import resident, streamed
from perfkit.ops.attention_flash1 import FP32
from perfkit.ops.attention_io import compulsory, tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_sparse import DKDV, DQ, FORWARD, LISTS, block_sparse_ledger, lists_of, unstrided
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Uses, total

if TYPE_CHECKING:
    from perfkit.kernels.attention.spans import TileList


def seen_together(found: "TileList", count: int, together: int) -> float:
    """The share of `count` tiles that `together` neighbouring lists hold, on average."""
    starts = range(0, len(found.partial), together)
    ends = [*found.offsets[starts], len(found.members)]
    return mean(len(set(found.members[at:end].tolist())) for at, end in itertools.pairwise(ends)) / count


def block_sparse_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """As `flash_dram`, for what is seen at all; a wave reads what any of its thread blocks sees, each once.

    What a wave sees is also what has to stay in L2.
    """
    w = unstrided(w)
    q, kv, statistic = w.query_bytes, w.key_bytes, STATISTIC_BYTES * w.rows
    group = w.heads // w.kv_heads
    kv_head = 2 * w.seq_k * w.head_dim * w.element_bytes
    least, again, writes, reasons = 0, 0, 0, []

    def read(tile: KernelUse, shared: int, head_bytes: int, by_keys: bool) -> tuple[int, int]:
        """(bytes read once, bytes read again) of the `shared` ones."""
        found, turned = lists_of(w, tile)[by_keys], lists_of(w, tile)[not by_keys]
        lists, count = len(found.partial), len(turned.partial)
        together = seen_together(found, count, max(1, min(lists, resident(tile, device))))
        blocks = lists if by_keys else group * lists
        passes = streamed(w, tile, max(1, round(head_bytes * together)), blocks, device)
        reasons.append(passes.reason)
        if passes.case != "fits":
            reasons.append(f"a wave sees {together:.0%} of it")
        once = seen_together(found, count, lists)
        return round(shared * once), round(shared * max(0.0, passes.passes * together - once))

    if w.pass_ != "bwd":
        once, more = read(tile_of(uses, FORWARD), 2 * kv, kv_head, False)
        least, again = least + q + once, again + more
        writes += q + statistic
    if w.pass_ != "fwd":
        rows_head = group * w.seq_q * (2 * w.head_dim * w.element_bytes + 2 * STATISTIC_BYTES)
        least += 2 * q  # D
        once, more = read(tile_of(uses, DKDV), 2 * (q + statistic), rows_head, True)
        least, again = least + 2 * kv + once, again + more  # dK, dV
        once, more = read(tile_of(uses, DQ), 2 * kv, kv_head, False)
        least, again = least + 2 * q + 2 * statistic + once, again + more  # dQ
        writes += statistic + 2 * kv + q
    once = min(least, compulsory(w).read_bytes)
    inputs = compulsory(msgspec.structs.replace(w, pass_="bwd" if w.pass_ != "fwd" else "fwd")).read_bytes
    lost = lost_between(inputs, device.level("l2").capacity_bytes)
    if lost < 1 and least > once:
        reasons.append(f"{1 - lost:.0%} of its inputs stay in L2 between its kernels")
    asked = total(entry for entry in block_sparse_ledger(w, uses) if entry.tensor not in LISTS)
    reads = min(once + round(lost * (least - once)) + again, asked.read_bytes)
    traffic = Traffic(read_bytes=reads, write_bytes=writes)
    return Cached(traffic=traffic, reason="; ".join(dict.fromkeys(reasons)))


def sparse1_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """Each tensor once, while what the heads in flight go round in stays in L2; else all of the ledger.

    As for `flash1`: a turn leaves rows out, but not the same ones each time, and they have to stay longer.
    """
    found = [_kernel_dram(w, tile_of(uses, name), device) for name in sparse1.sparse1_tiled(w)]
    traffic = sum((one.traffic for one in found), Traffic(read_bytes=0, write_bytes=0))
    return Cached(traffic=traffic, reason="; ".join(one.reason for one in found))


def _kernel_dram(w: AttentionWorkload, tile: KernelUse, device: DeviceProfile) -> Cached:
    forward = tile.kernel == sparse1.FORWARD
    programs = w.batch * (w.heads if forward else w.kv_heads)
    in_flight = min(programs, resident(tile, device))
    inputs = (1 if forward else 3) * w.head_dim * w.element_bytes  # Q, or Q, O and dO
    size = in_flight * (w.rows // programs) * (inputs + (w.head_dim + 2) * FP32)
    l2 = device.level("l2").capacity_bytes
    share = circled_share(size, l2)
    once, asked = _once(w, forward, inputs), total(sparse1.kernel_ledger(w, tile))
    # The query heads of a group run side by side, and what one reads of K and V the others find in L2.
    shared = 2 * (w.heads // w.kv_heads - 1) * w.key_bytes if forward else 0
    traffic = Traffic(
        read_bytes=once.read_bytes + round(share * (asked.read_bytes - shared - once.read_bytes)),
        write_bytes=once.write_bytes + round(share * (asked.write_bytes - once.write_bytes)),
    )
    end = f"{IN_PART}, {share:.0%} of re-reads miss" if share < 1 else "every visit moves them again"
    moved = "Q, O, l and m" if forward else "Q, O, dO, dQ, l and m"
    return Cached(
        traffic=traffic,
        reason=f"{moved} of {in_flight} head(s) in flight take {size / l2:.0%} of L2: "
        f"{end if share else 'they stay'}",
    )


def _once(w: AttentionWorkload, forward: bool, input_bytes: int) -> Traffic:
    """Every byte that a kernel touches, once: what is read back of what it wrote comes from L2."""
    partial, statistics = w.rows * w.head_dim * FP32, w.rows * 2 * FP32
    reads, writes = w.rows * input_bytes + 2 * w.key_bytes, partial + w.query_bytes
    if forward:
        return Traffic(read_bytes=reads, write_bytes=writes + statistics)
    return Traffic(read_bytes=reads + statistics, write_bytes=writes + 2 * w.key_bytes)
