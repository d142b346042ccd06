"""What of attention's traffic reaches DRAM: the L2 model applied to each implementation."""

from typing import Final

import msgspec

from perfkit.model.cache import (
    IN_PART,
    STAYS,
    Prediction,
    lost_between,
    missed_share,
    resident_blocks,
    shared_passes,
)
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.model.units import show
from perfkit.ops.attention_io import (
    FORWARD,
    compulsory,
    flash_traffic,
    key_blocks,
    query_blocks,
    standard_traffic,
    tile_of,
)
from perfkit.ops.attention_ledger import STATISTIC_BYTES
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Uses

#: What the backward of `standard` has in use at a time, in matrices of N^2: P waits while dP is made. Fitted
#: on an H200 (16 and 24 heads of N 1024).
BACKWARD_SET: Final = 1.4
#: torch's softmax reads a row again where it does not fit an SM. On an H200 rows of 64 KiB are read once, and
#: of rows of 128 KiB 0.86 came from DRAM once more.
LONGEST_ROW: Final = 96 << 10
AGAIN: Final = 0.86


def standard_dram(w: AttentionWorkload, _: Uses, device: DeviceProfile) -> Cached:
    """All of Algorithm 0's traffic, less the part of the re-reads of S and P that L2 serves."""
    whole, least = standard_traffic(w), compulsory(w)
    l2 = device.level("l2").capacity_bytes
    size = w.scores_bytes if w.pass_ == "fwd" else round(BACKWARD_SET * w.scores_bytes)
    missed = missed_share(size, l2)
    if w.pass_ != "bwd" and w.seq_k * w.element_bytes > LONGEST_ROW:
        again = Traffic(read_bytes=round(AGAIN * w.scores_bytes), write_bytes=0)
        row = f"softmax reads rows of {show(w.seq_k * w.element_bytes, 'bytes')} again, and S {IN_PART}"
        return Cached(traffic=whole + again, reason=row)
    if missed == 1:
        return Cached(traffic=whole, reason="S and P exceed L2: every pass over them reaches DRAM")
    # P comes from the forward pass: a backward pass alone finds it in DRAM. The mask is overwritten by S.
    kept_read = least.read_bytes + (w.scores_bytes if w.pass_ == "bwd" else 0)
    kept_write = whole.write_bytes - (w.scores_bytes if w.causal and w.pass_ != "bwd" else 0)
    traffic = Traffic(
        read_bytes=kept_read + round(missed * (whole.read_bytes - kept_read)),
        write_bytes=kept_write + round(missed * (whole.write_bytes - kept_write)),
    )
    share = f"S takes {w.scores_bytes / l2:.0%} of L2"
    rest = f"{missed:.0%} of its re-reads miss" if missed else "it is written, and re-read there"
    return Cached(traffic=traffic, reason=f"{share} and {IN_PART if missed else STAYS}: {rest}")


def resident(tile: KernelUse, device: DeviceProfile) -> int:
    return resident_blocks(
        sm_count=device.sm_count,
        shared_bytes_per_sm=device.shared_bytes_per_sm,
        registers_bytes_per_sm=device.registers_bytes_per_sm,
        max_threads_per_sm=device.max_threads_per_sm or 2048,
        num_warps=tile.num_warps,
        shared_bytes=tile.shared_bytes,
        registers=tile.registers,
    )


def streamed(
    w: AttentionWorkload,
    tile: KernelUse,
    head_bytes: int,
    blocks: int,
    device: DeviceProfile,
    together: int = 1,
) -> Prediction:
    """Passes over what the blocks of one K/V head share, `blocks` of them for each of its query heads.

    The blocks of `together` heads are started side by side: all of these heads are in flight as one.
    """
    heads = w.batch * w.kv_heads
    together = min(together, heads)
    found = shared_passes(
        blocks_per_head=blocks * together,
        heads=-(-heads // together),
        head_bytes=head_bytes * together,
        resident_blocks=resident(tile, device),
        l2_bytes=device.level("l2").capacity_bytes,
    )
    if together == 1:
        return found
    reason = found.reason.replace("head(s)", f"group(s) of {together} heads", 1)
    return msgspec.structs.replace(found, reason=reason)


def keys_again(
    w: AttentionWorkload, tile: KernelUse, device: DeviceProfile, together: int = 1
) -> tuple[float, str]:
    """How often the blocks of queries read K and V from DRAM beyond once, and why.

    The blocks of `together` K/V heads are started side by side. A mask leaves of a pass what is visible.
    """
    seen = key_blocks(w, tile)
    kv_head = 2 * w.seq_k * w.head_dim * w.element_bytes
    found = streamed(w, tile, kv_head, w.heads // w.kv_heads * len(seen), device, together)
    whole = len(seen) * -(-w.seq_k // tile.block_n)
    return max(0.0, found.passes * sum(seen) / whole - 1.0), found.reason


def queries_again(
    w: AttentionWorkload, tile: KernelUse, shared_bytes: int, device: DeviceProfile, shares: int = 1
) -> tuple[float, str]:
    """How often the blocks of keys read what they share of the query heads from DRAM beyond once, and why.

    `shared_bytes` are those of all heads. Where the query heads of a K/V head are dealt out in `shares`,
    blocks of different shares have nothing in common.
    """
    dealt = msgspec.structs.replace(w, kv_heads=w.kv_heads * shares)
    visible = query_blocks(w, tile)
    found = streamed(dealt, tile, shared_bytes // (dealt.batch * dealt.kv_heads), len(visible), device)
    whole = len(visible) * -(-w.seq_q // tile.block_m)
    return max(0.0, found.passes * sum(map(len, visible)) / whole - 1.0), found.reason


def flash_dram(
    w: AttentionWorkload, uses: Uses, device: DeviceProfile, forward: str = FORWARD, together: int = 1
) -> Cached:
    """What each kernel reads at least, plus what waves read again, less what L2 keeps between kernels.

    Forward and dQ blocks share K and V, dK/dV blocks share Q, dO, LSE and D. An op whose inputs are small
    finds them in L2 in its later kernels. `forward` is the kernel that runs forward, and starts the blocks of
    `together` K/V heads side by side.
    """
    q, kv, statistic = w.query_bytes, w.key_bytes, STATISTIC_BYTES * w.rows
    least, again, writes, reasons = 0, 0, 0, []

    def repeated(shared: int, found: tuple[float, str]) -> int:
        reasons.append(found[1])
        return round(shared * found[0])

    if w.pass_ != "bwd":
        least += q + 2 * kv
        again += repeated(2 * kv, keys_again(w, tile_of(uses, forward), device, together))
        writes += q + statistic
    if w.pass_ != "fwd":
        dkdv, dq = tile_of(uses, "flash_dkdv"), tile_of(uses, "flash_dq")
        shared = 2 * (q + statistic)
        least += 2 * q  # D
        least += 2 * kv + shared  # dK, dV
        least += 2 * q + 2 * statistic + 2 * kv  # dQ
        again += repeated(shared, queries_again(w, dkdv, shared, device))
        again += repeated(2 * kv, keys_again(w, dq, device))
        writes += statistic + 2 * kv + q
    once = min(least, compulsory(w).read_bytes)
    inputs = compulsory(msgspec.structs.replace(w, pass_="bwd" if w.pass_ != "fwd" else "fwd")).read_bytes
    lost = lost_between(inputs, device.level("l2").capacity_bytes)
    if lost < 1 and least > once:
        reasons.append(f"{1 - lost:.0%} of its inputs stay in L2 between its kernels")
    # No more can come from DRAM than is asked for: a mask may leave blocks that nobody reads.
    reads = min(once + round(lost * (least - once)) + again, flash_traffic(w, uses, forward).read_bytes)
    traffic = Traffic(read_bytes=reads, write_bytes=writes)
    return Cached(traffic=traffic, reason="; ".join(dict.fromkeys(reasons)))
