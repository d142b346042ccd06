"""The byte ledger of attention: what each kernel or step reads and writes of each tensor.

Bytes over batch and heads, at the level where they are exact: DRAM for `standard`, SM<->L2 for
`flash-triton`. How many rows of keys or queries its tiles visit is counted in `attention_io`.
"""

from collections.abc import Mapping
from typing import Final

from perfkit.model.traffic import Traffic
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Ledger, Moved, Uses

#: LSE and D are fp32, whatever the dtype of the rest.
STATISTIC_BYTES: Final = 4


def step(kernel: str, read: Mapping[str, int], written: Mapping[str, int]) -> Ledger:
    """One entry per tensor of `kernel`, in the order of `read` and then `written`."""
    return tuple(
        Moved(
            kernel=kernel,
            tensor=tensor,
            traffic=Traffic(read_bytes=read.get(tensor, 0), write_bytes=written.get(tensor, 0)),
        )
        for tensor in {**read, **written}
    )


# Standard attention, FA1 Algorithms 0 and 3, with torch's kernels. A matrix product that re-reads an operand
# does so from L2: at DRAM it counts once.


def standard_ledger(w: AttentionWorkload, _: Uses = ()) -> Ledger:
    """N^2 matrices in device memory: 4 N^2 + 4 N d forward (FA1 2.2), 10 N^2 + 12 N d backward."""
    forward, backward = _standard_forward(w), _standard_backward(w)
    return {"fwd": forward, "bwd": backward, "fwd-bwd": forward + backward}[w.pass_]


def _standard_forward(w: AttentionWorkload) -> Ledger:
    """S written, S read, P written, P read. A mask is written to where S will be, and read as its addend."""
    square, q, kv = w.scores_bytes, w.query_bytes, w.key_bytes
    mask = {"mask": square} if w.causal else {}
    return (
        *step("mask", {}, mask),
        *step("S = Q K^T", {"Q": q, "K": kv, **mask}, {"S": square}),
        *step("P = softmax(S)", {"S": square}, {"P": square}),
        *step("O = P V", {"P": square, "V": kv}, {"O": q}),
    )


def _standard_backward(w: AttentionWorkload) -> Ledger:
    """The 7 N^2 of FA1 Algorithm 3 (P; dP written; P, dP, dS written; dS; dS), and 3 more of torch.

    torch's softmax backward first multiplies P and dP in a kernel of its own. dQ and dK are read and written
    once more, to be scaled.
    """
    square, q, kv = w.scores_bytes, w.query_bytes, w.key_bytes
    return (
        *step("dV = P^T dO", {"P": square, "dO": q}, {"dV": kv}),
        *step("dP = dO V^T", {"dO": q, "V": kv}, {"dP": square}),
        *step("P o dP", {"P": square, "dP": square}, {"P o dP": square}),
        *step("dS", {"P o dP": square, "P": square}, {"dS": square}),
        *step("dQ = dS K", {"dS": square, "K": kv}, {"dQ": q}),
        *step("scale dQ", {"dQ": q}, {"dQ": q}),
        *step("dK = dS^T Q", {"dS": square, "Q": q}, {"dK": kv}),
        *step("scale dK", {"dK": kv}, {"dK": kv}),
    )


# The portable kernels, by their names. `keys` and `queries` are rows of one head, summed over the blocks
# that visit them. Query heads do not share tiles, so K and V are read again for each of them; but one program
# serves all query heads of a K/V head in flash_dkdv.


def flash_forward_ledger(w: AttentionWorkload, keys: int, kernel: str = "flash_forward") -> Ledger:
    """Q once, K and V for each block of queries that sees them; O and LSE (FA2 Algorithm 1)."""
    q, visited, statistic = w.query_bytes, _visited(w, keys), _statistic(w)
    return step(kernel, {"Q": q, "K": visited, "V": visited}, {"O": q, "LSE": statistic})


def flash_backward_ledger(w: AttentionWorkload, queries: int, keys: int) -> Ledger:
    """Split kernels, no atomics: D = rowsum(dO o O); dK and dV per block of keys; dQ per block of queries."""
    q, kv, statistic = w.query_bytes, w.key_bytes, _statistic(w)
    rows = _visited(w, queries)
    statistics = w.batch * w.heads * queries * STATISTIC_BYTES
    visited = _visited(w, keys)
    return (
        *step("flash_delta", {"O": q, "dO": q}, {"D": statistic}),
        *step(
            "flash_dkdv",
            {"Q": rows, "dO": rows, "LSE": statistics, "D": statistics, "K": kv, "V": kv},
            {"dK": kv, "dV": kv},
        ),
        *step(
            "flash_dq",
            {"Q": q, "dO": q, "LSE": statistic, "D": statistic, "K": visited, "V": visited},
            {"dQ": q},
        ),
    )


def _visited(w: AttentionWorkload, rows: int) -> int:
    """Bytes of `rows` rows of one tensor in each query head."""
    return w.batch * w.heads * rows * w.head_dim * w.element_bytes


def _statistic(w: AttentionWorkload) -> int:
    return STATISTIC_BYTES * w.rows
