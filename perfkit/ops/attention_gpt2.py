"""The IO model of `gpt2`: GPT-2's attention with its steps apart, as published and as it runs.

Z is what dropout kept, one byte an element; P o Z is P after dropout. Bytes over batch and heads, at DRAM,
where each step reads its matrices once and writes them once. A pass is one N_q x N_k matrix of the working
dtype, u one N x d tensor. As published 8.5 passes forward and 9.5 backward in 16 bits, 18 in all, and 12 u.
"""

from functools import cache
from typing import Final

from perfkit.model.cache import IN_PART, STAYS, missed_share
from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.ops.attention_cache import BACKWARD_SET
from perfkit.ops.attention_io import compulsory
from perfkit.ops.attention_ledger import step
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, Ledger, Uses, total

#: Bytes that one kernel of torch's elementwise operations spans at most: it computes offsets in 32 bits.
ELEMENTWISE_SPAN: Final = 1 << 31


def kept_bytes(w: AttentionWorkload) -> int:
    """Bytes of Z: one an element, whatever the dtype."""
    return w.rows * w.seq_k


def mask_bytes(w: AttentionWorkload) -> int:
    """Bytes of the additive padding mask [B, 1, 1, N_k], in the working dtype."""
    return w.batch * w.seq_k * w.element_bytes


def gpt2_ledger(w: AttentionWorkload, _: Uses = ()) -> Ledger:
    """What the steps that really run move, with torch's kernels on a GPU.

    Forward 8.5 passes, backward 12.5 in 16 bits: torch's softmax backward first multiplies P and dP in a
    kernel of its own, 3 passes more than published. Without padding 2 passes less, without dropout 5 less.
    The vectors that the mask is made from (N_k indices, B lengths) are left out.
    """
    padding, dropout = w.padding > 0, w.dropout > 0
    made = {"mask": mask_bytes(w)} if padding else {}
    forward = step("padding mask", {}, made) + _forward(w, padding, dropout, made)
    return _of_pass(w, forward, _backward(w, dropout, product_apart=True))


def published_ledger(w: AttentionWorkload) -> Ledger:
    """The same of the pipeline as published: FA1 section 3.2, Figure 2 left, and the steps of GPT-2.

    It has padding and dropout always, and a softmax backward in one kernel. Forward: S 1, mask 2, softmax 2,
    dropout 2.5, product 1 passes and 4 u (Q, K, V, O). Backward: dV 1, dP 1, dropout 2.5, softmax 3, dQ 1, dK
    1 passes and 8 u (dO and V, dO and dV, K and dQ, Q and dK). The additive mask itself is too small to be
    counted.
    """
    return _of_pass(w, _forward(w, True, True, {}), _backward(w, True, product_apart=False))


def _of_pass(w: AttentionWorkload, forward: Ledger, backward: Ledger) -> Ledger:
    return {"fwd": forward, "bwd": backward, "fwd-bwd": forward + backward}[w.pass_]


def _forward(w: AttentionWorkload, padding: bool, dropout: bool, mask: dict[str, int]) -> Ledger:
    square, q, kv = w.scores_bytes, w.query_bytes, w.key_bytes
    moved = step("S = Q K^T", {"Q": q, "K": kv}, {"S": square})
    if padding:
        moved += step("S + mask", {"S": square, **mask}, {"S": square})
    moved += step("P = softmax(S)", {"S": square}, {"P": square})
    if not dropout:
        return moved + step("O = P V", {"P": square, "V": kv}, {"O": q})
    moved += step("P o Z", {"P": square}, {"P o Z": square, "Z": kept_bytes(w)})
    return moved + step("O = (P o Z) V", {"P o Z": square, "V": kv}, {"O": q})


def _backward(w: AttentionWorkload, dropout: bool, product_apart: bool) -> Ledger:
    square, q, kv = w.scores_bytes, w.query_bytes, w.key_bytes
    used, name = ("P o Z", "dV = (P o Z)^T dO") if dropout else ("P", "dV = P^T dO")
    moved = step(name, {used: square, "dO": q}, {"dV": kv})
    moved += step("dP = dO V^T", {"dO": q, "V": kv}, {"dP": square})
    gradient = "dP"
    if dropout:
        gradient = "dP o Z"
        moved += step("dP o Z", {"dP": square, "Z": kept_bytes(w)}, {"dP o Z": square})
    if product_apart:
        moved += step("P o dP", {"P": square, gradient: square}, {"P o dP": square})
        gradient = "P o dP"
    moved += step("dS", {gradient: square, "P": square}, {"dS": square})
    moved += step("dQ = dS K", {"dS": square, "K": kv}, {"dQ": q})
    return moved + step("dK = dS^T Q", {"dS": square, "Q": q}, {"dK": kv})


def gpt2_kernels(w: AttentionWorkload) -> tuple[tuple[str, int], ...]:
    """(step of the ledger, kernels that it is on a GPU) in launch order.

    The mask is made by two; torch splits an elementwise operation on more than 2^31 bytes.
    """
    whole = _pieces(w.rows * w.seq_k, 1, w.element_bytes)
    several = {
        "padding mask": 2,
        "S + mask": _pieces(w.batch, w.heads * w.seq_q, w.seq_k * w.element_bytes),
        "dP o Z": whole,
        "P o dP": whole,
    }
    names = dict.fromkeys(entry.kernel for entry in gpt2_ledger(w))
    return tuple((name, several.get(name, 1)) for name in names)


@cache
def _pieces(outer: int, inner: int, size: int) -> int:
    """Kernels for `outer` x `inner` items of `size` bytes: the outer side is halved until each spans 2^31."""
    if outer * inner * size <= ELEMENTWISE_SPAN:
        return 1
    if outer == 1:
        return _pieces(inner, 1, size)
    return _pieces(outer // 2, inner, size) + _pieces(outer - outer // 2, inner, size)


def gpt2_launches(w: AttentionWorkload, _: Uses = ()) -> int:
    """Kernels of torch on a GPU: 7 forward and 7 backward with padding and dropout, more past 2^31 bytes."""
    return sum(kernels for _, kernels in gpt2_kernels(w))


def gpt2_extra_flops(w: AttentionWorkload, _: Uses = ()) -> tuple[str, ...]:
    """Why it executes other FLOPs than the convention counts."""
    causes = ["padded keys computed"] if w.padding else []
    if w.pass_ != "fwd":
        causes.append("no recomputation (4 products for 5)")
    return tuple(causes)


def gpt2_workspace(w: AttentionWorkload) -> int:
    """The most that exists at a time: S and P, or P, P o Z and Z; backward these, dP o Z, P o dP and dS.

    The mask is gone when P is made, and dP when P o dP is.
    """
    dropped = w.scores_bytes + kept_bytes(w) if w.dropout else 0
    return w.scores_bytes + max(w.scores_bytes, dropped) if w.pass_ == "fwd" else 4 * w.scores_bytes + dropped


def gpt2_refuses(w: AttentionWorkload) -> str | None:
    """Why it cannot serve a workload."""
    if w.causal:
        return "gpt2 has a padding mask and no causal one"
    if w.kv_heads != w.heads:
        return f"gpt2 has no grouped heads, and {w.heads} heads share {w.kv_heads} K/V heads"
    return None


def gpt2_dram(w: AttentionWorkload, _: Uses, device: DeviceProfile) -> Cached:
    """All passes, less the part of the re-reads that L2 serves: as for `standard`, whose bounds it takes."""
    whole, least = total(gpt2_ledger(w)), compulsory(w)
    l2 = device.level("l2").capacity_bytes
    missed = missed_share(w.scores_bytes if w.pass_ == "fwd" else round(BACKWARD_SET * w.scores_bytes), l2)
    if missed == 1:
        return Cached(traffic=whole, reason="S and P exceed L2: every pass over them reaches DRAM")
    # A backward pass alone finds what the forward pass kept in DRAM. S without the mask is written over.
    before = w.scores_bytes + (w.scores_bytes + kept_bytes(w) if w.dropout else 0)
    certain = least.read_bytes + (before if w.pass_ == "bwd" else 0)
    over = w.scores_bytes if w.padding and w.pass_ != "bwd" else 0
    traffic = Traffic(
        read_bytes=certain + round(missed * (whole.read_bytes - certain)),
        write_bytes=whole.write_bytes - over + round(missed * over),
    )
    share = f"S takes {w.scores_bytes / l2:.0%} of L2"
    rest = f"{missed:.0%} of its re-reads miss" if missed else "it is written, and re-read there"
    return Cached(traffic=traffic, reason=f"{share} and {IN_PART if missed else STAYS}: {rest}")
