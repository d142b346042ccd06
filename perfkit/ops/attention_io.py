"""The IO model of attention: exact bytes and FLOPs of each implementation, per pass.

Sources: FA1 = Dao et al., arXiv 2205.14135; FA2 = Dao, arXiv 2307.08691. Results are totals over batch and
heads. Which bytes are of which kernel and tensor is in `attention_ledger`.
"""

from typing import Final

from perfkit.errors import UsageError
from perfkit.model.traffic import Traffic
from perfkit.ops.attention_ledger import (
    STATISTIC_BYTES,
    flash_backward_ledger,
    flash_forward_ledger,
    standard_ledger,
)
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger, Uses, total

#: The forward kernels that have FA2's loops: of `flash-triton`, and of `flash-hopper`.
FORWARD: Final = "flash_forward"
HOPPER: Final = "flash_hopper_forward"
#: Kernel -> blocks of keys that a block of queries visits at least.
FEWEST_BLOCKS: Final = {HOPPER: 1}


def compulsory(w: AttentionWorkload) -> Traffic:
    """Each input read once and each output written once: what no implementation can go below.

    Forward: Q, K, V read, O written. Backward: Q, K, V, O, dO and LSE read, dQ, dK, dV written
    (8 N d and N statistics a head, FA1 Algorithm 4). Forward with backward: both, O and LSE in between.
    Of a K/V cache what it holds, a shared prefix once; what is appended is read as given, and written.
    """
    q, kv, lse = w.query_bytes, w.key_bytes, STATISTIC_BYTES * w.rows
    appended = w.appended_bytes // w.element_bytes * w.cache_element_bytes
    forward = Traffic(read_bytes=q + w.cache_bytes - appended + w.appended_bytes, write_bytes=q + appended)
    backward = Traffic(read_bytes=3 * q + 2 * kv + lse, write_bytes=q + 2 * kv)
    if w.pass_ == "fwd":
        return forward
    return backward if w.pass_ == "bwd" else forward + Traffic(read_bytes=0, write_bytes=lse) + backward


# Standard attention, FA1 Algorithms 0 and 3.


def standard_traffic(w: AttentionWorkload, uses: Uses = ()) -> Traffic:
    """DRAM traffic of `standard` for the pass, where every pass over S and P reaches DRAM."""
    return total(standard_ledger(w, uses))


def standard_flops(w: AttentionWorkload, _: Uses = ()) -> int:
    """Two products forward, four backward, over all pairs: a mask saves standard attention no work."""
    product = 2 * w.rows * w.seq_k * w.head_dim
    return {"fwd": 2, "bwd": 4, "fwd-bwd": 6}[w.pass_] * product


def standard_exps(w: AttentionWorkload, _: Uses = ()) -> int:
    """One exp per score in the forward pass; the backward reads P instead."""
    return 0 if w.pass_ == "bwd" else w.rows * w.seq_k


def standard_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why standard attention executes other FLOPs than the convention counts."""
    causes = ["masked half computed"] if w.causal else []
    if w.pass_ != "fwd":
        causes.append("no recomputation (4 products for 5)")
    return tuple(causes)


def standard_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """Kernels of torch: two products and a softmax forward, three more to make a mask; eight backward.

    Elementwise kernels over more than 2^31 bytes are split by torch into several, which is not counted.
    """
    forward = 6 if w.causal else 3
    return {"fwd": forward, "bwd": 8, "fwd-bwd": forward + 8}[w.pass_]


def standard_workspace(w: AttentionWorkload) -> int:
    """S and P together in the forward pass; P, dP, their product and dS in the backward."""
    return {"fwd": 2, "bwd": 4, "fwd-bwd": 4}[w.pass_] * w.scores_bytes


# FlashAttention in FA2 order: one program per block of queries, a loop over blocks of keys.


def tile_of(uses: Uses, kernel: str) -> KernelUse:
    """The tile of `kernel` among those that ran; UsageError where it is missing."""
    found = next((use for use in uses if use.kernel == kernel), None)
    if found is None:
        raise UsageError(f"the tile of kernel '{kernel}' is not in the record", "measure again")
    return found


def key_blocks(w: AttentionWorkload, tile: KernelUse) -> list[int]:
    """Per block of queries, how many blocks of keys are visited (causal: to the last row's diagonal)."""
    m, n = tile.block_m, tile.block_n
    whole = -(-w.seq_k // n)
    starts = range(0, w.seq_q, m)
    if not w.causal:
        return [whole for _ in starts]
    visible = (min(w.seq_k, min(start + m, w.seq_q) + w.seq_k - w.seq_q) for start in starts)
    return [max(FEWEST_BLOCKS.get(tile.kernel, 0), -(-keys // n)) for keys in visible]


def query_blocks(w: AttentionWorkload, tile: KernelUse) -> list[range]:
    """Per block of keys, which blocks of queries see any of it (causal: from the first row's diagonal on)."""
    m, n = tile.block_m, tile.block_n
    whole = -(-w.seq_q // m)
    starts = range(0, w.seq_k, n)
    if not w.causal:
        return [range(whole) for _ in starts]
    first = (max(0, start - (w.seq_k - w.seq_q)) // m for start in starts)
    return [range(min(block, whole), whole) for block in first]


def keys_read(w: AttentionWorkload, tile: KernelUse) -> int:
    """Rows of K that the blocks of queries of one head read together; loads stop at N_k."""
    return sum(min(w.seq_k, count * tile.block_n) for count in key_blocks(w, tile))


def queries_read(w: AttentionWorkload, tile: KernelUse) -> int:
    """Rows of Q that the blocks of keys read together, for one query head; loads stop at N_q."""
    # The last row that a block reads is the last there is; none is read where no block is visited.
    return sum(max(0, w.seq_q - blocks.start * tile.block_m) for blocks in query_blocks(w, tile))


def flash_tiled(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """The kernels of the pass that loop over tiles."""
    backward = ("flash_dkdv", "flash_dq")
    return {"fwd": (FORWARD,), "bwd": backward, "fwd-bwd": (FORWARD, *backward)}[w.pass_]


def flash_ledger(w: AttentionWorkload, uses: Uses, forward: str = FORWARD) -> Ledger:
    """What the portable kernels move between SMs and L2 for the pass, with the tiles that ran.

    `forward`, as in what follows, is the forward kernel.
    """
    moved: Ledger = ()
    if w.pass_ != "bwd":
        moved += flash_forward_ledger(w, keys_read(w, tile_of(uses, forward)), forward)
    if w.pass_ != "fwd":
        queries = queries_read(w, tile_of(uses, "flash_dkdv"))
        moved += flash_backward_ledger(w, queries, keys_read(w, tile_of(uses, "flash_dq")))
    return moved


def flash_traffic(w: AttentionWorkload, uses: Uses, forward: str = FORWARD) -> Traffic:
    """SM<->L2 traffic of `flash-triton` for the pass, with the tiles that ran."""
    return total(flash_ledger(w, uses, forward))


def flash_flops(w: AttentionWorkload, uses: Uses) -> int:
    """What the tensor units execute: whole tiles, head dim padded to a power of two.

    Forward 2 products a tile; dK/dV kernel 4 (S, dP, dV, dK); dQ kernel 3 (S, dP, dQ): 7 where one fused
    kernel needs 5.
    """
    depth = max(16, 1 << (w.head_dim - 1).bit_length())

    def product(tile: KernelUse, visits: int) -> int:
        return 2 * tile.block_m * tile.block_n * depth * visits * w.batch * w.heads

    flops = 0
    if w.pass_ != "bwd":
        tile = tile_of(uses, FORWARD)
        flops += 2 * product(tile, sum(key_blocks(w, tile)))
    if w.pass_ != "fwd":
        dkdv, dq = tile_of(uses, "flash_dkdv"), tile_of(uses, "flash_dq")
        flops += 4 * product(dkdv, sum(len(blocks) for blocks in query_blocks(w, dkdv)))
        flops += 3 * product(dq, sum(key_blocks(w, dq)))
    return flops


def flash_exps(w: AttentionWorkload, _: Uses) -> int:
    """One exp per visible score forward, and one in each of the two backward kernels."""
    return {"fwd": 1, "bwd": 2, "fwd-bwd": 3}[w.pass_] * w.pairs


def flash_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why the portable kernels execute more FLOPs than the convention counts."""
    causes = ["masked part of diagonal tiles"] if w.causal else []
    if w.pass_ != "fwd":
        causes.append("S and dP recomputed twice (7 products for 5)")
    if w.head_dim & (w.head_dim - 1):
        causes.append(f"head dim {w.head_dim} padded to a power of two")
    return tuple(causes)


def flash_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """One kernel forward; D, dK and dV, dQ backward."""
    return {"fwd": 1, "bwd": 3, "fwd-bwd": 4}[w.pass_]


def flash_workspace(w: AttentionWorkload) -> int:
    """LSE forward; D as well backward."""
    return (1 if w.pass_ == "fwd" else 2) * STATISTIC_BYTES * w.rows
