"""What of the traffic of `flash-hopper` reaches DRAM: the L2 model applied to its kernels."""

from perfkit.kernels.attention import tiles
from perfkit.model.cache import lost_between
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_hopper_backward as backward
from perfkit.ops.attention_cache import flash_dram, keys_again, queries_again
from perfkit.ops.attention_hopper import backward_of, forward_of
from perfkit.ops.attention_io import HOPPER, compulsory
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, Uses, total


def hopper_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """As `flash_dram`. Causal blocks go out the longest first, over all heads that share L2 by the kernel.

    The fused backward is taken to read and write the sum of dQ as often as it reads Q and dO: L2 adds, and
    what it has lost in between it reads and writes once more. That is an assumption.
    """
    kv_head = 2 * w.seq_k * w.head_dim * w.element_bytes
    together = tiles.hopper_together(kv_head) if w.causal else 1
    before, after = forward_of(w), backward_of(w)
    found = [flash_dram(before, uses, device, HOPPER, together)] if before else []
    found += [_backward_dram(after, uses, device)] if after else []
    traffic = sum((one.traffic for one in found), Traffic(read_bytes=0, write_bytes=0))
    return Cached(traffic=traffic, reason="; ".join(dict.fromkeys(one.reason for one in found)))


def _backward_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """The backward alone, of which `w` is: the fused kernel, or the pair."""
    tile, pair = backward.dkdv_use(w, uses), backward.is_pair(w)
    q, kv, parts = w.query_bytes, w.key_bytes, backward.parts_bytes(w)
    padded, whole = backward.padded_bytes(w), backward.sum_bytes(w)
    shared = 2 * q + 2 * padded + whole
    # Shares of query heads stream through L2 as heads of their own.
    again, reason = queries_again(w, tile, shared, device, backward.shares_of(w) if pair else 1)
    reasons, repeated = [reason], round(again * shared)
    # O, dO and LSE; K, V, Q, dO and statistics; the sum to add to, and to convert; parts of dK and dV.
    least = 2 * q + STATISTIC_BYTES * w.rows + 2 * kv + shared + whole + parts
    if pair:
        more, reason = keys_again(w, backward.dq_use(uses), device)
        least += 2 * q + 2 * padded + 2 * kv  # dQ
        reasons, repeated = [*reasons, reason], repeated + round(more * 2 * kv)
    else:
        reasons.append("the sum of dQ is read and written as often as Q and dO are read (assumed)")
    once = compulsory(w).read_bytes
    lost = lost_between(once + whole, device.level("l2").capacity_bytes)
    if lost < 1:
        reasons.append(f"{1 - lost:.0%} of its inputs stay in L2 between its kernels")
    reads = once + round(lost * (least - once)) + repeated
    # Zeros reach DRAM, and what is added to them later, unless it all stays in L2.
    writes = 2 * kv + parts + q + 2 * padded + whole + round((lost + again) * whole)
    asked, added = total(backward.backward_ledger(w, uses)), backward.added_bytes(w, tile)
    traffic = Traffic(
        read_bytes=min(reads, asked.read_bytes + added), write_bytes=min(writes, asked.write_bytes + added)
    )
    return Cached(traffic=traffic, reason="; ".join(dict.fromkeys(reasons)))
