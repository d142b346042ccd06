"""What of block-sparse attention's traffic reaches DRAM: the L2 model applied to both loop orders.

Lists and masks are left out: they are small, and stay in L2.
"""

from statistics import mean

import msgspec

from perfkit.model.cache import IN_PART, circled_share, lost_between
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_sparse1 as sparse1
from perfkit.ops.attention_cache import resident, streamed
from perfkit.ops.attention_flash1 import FP32
from perfkit.ops.attention_io import compulsory, tile_of
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_sparse import DKDV, DQ, FORWARD, LISTS, block_sparse_ledger, visible
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Uses, total
from perfkit.ops.patterns import Blocks


def seen_together(rows: Blocks, together: int) -> float:
    """The share of all blocks of keys that `together` neighbouring blocks of queries see, on average."""
    starts = range(0, len(rows), together)
    return mean(len(set().union(*rows[at : at + together])) for at in starts) / len(rows)


def _turned(rows: Blocks) -> Blocks:
    """The blocks of queries that see each block of keys."""
    found: list[list[int]] = [[] for _ in rows]
    for at, columns in enumerate(rows):
        for column in columns:
            found[column].append(at)
    return tuple(map(tuple, found))


def block_sparse_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """As `flash_dram`; a wave reads again the blocks that any of its thread blocks sees, each once."""
    q, kv, statistic = w.query_bytes, w.key_bytes, STATISTIC_BYTES * w.rows
    group, (rows, block) = w.heads // w.kv_heads, visible(w)
    kv_head = 2 * w.seq_k * w.head_dim * w.element_bytes
    least, again, writes, reasons = 0, 0, 0, []

    def repeated(tile: KernelUse, shared: int, head_bytes: int, lists: Blocks, side: int, heads: int) -> int:
        found = streamed(w, tile, head_bytes, heads * -(-w.seq_q // side), device)
        together = seen_together(lists, max(1, min(len(lists), resident(tile, device) * side // block)))
        reasons.append(found.reason)
        if found.case != "fits":
            reasons.append(f"a wave sees {together:.0%} of it")
        return round(shared * max(0.0, found.passes * together - 1.0))

    if w.pass_ != "bwd":
        tile = tile_of(uses, FORWARD)
        least += q + 2 * kv
        again += repeated(tile, 2 * kv, kv_head, rows, tile.block_m, group)
        writes += q + statistic
    if w.pass_ != "fwd":
        dkdv, dq = tile_of(uses, DKDV), tile_of(uses, DQ)
        rows_head = group * w.seq_q * (2 * w.head_dim * w.element_bytes + 2 * STATISTIC_BYTES)
        least += 2 * q  # D
        least += 2 * kv + 2 * (q + statistic)  # dK, dV
        least += 2 * q + 2 * statistic + 2 * kv  # dQ
        again += repeated(dkdv, 2 * (q + statistic), rows_head, _turned(rows), dkdv.block_n, 1)
        again += repeated(dq, 2 * kv, kv_head, rows, dq.block_m, group)
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
