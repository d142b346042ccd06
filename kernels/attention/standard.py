"""Standard attention with S and P in device memory (FlashAttention, arXiv 2205.14135, Algorithm 0).

Traffic per head, elements: forward 4 N_q N_k + 2 N_q d + 2 N_k d (S written; S read, P written by the
softmax; P read), causal 6 N_q N_k + ... (see `_scores`). Backward, by autograd and without recomputation: 7
N_q N_k, the same with and without a mask (P read and dP written; P, dP read and dS written by the softmax;
dS read twice; P read), and on a GPU 3 more, because torch's softmax backward multiplies P and dP first. The
counts are of passes: a matrix multiplication re-reads operands from L2 tile by tile.
"""

import torch
from torch import Tensor

from .shape import Shape, checked_shape, softmax_scale
from .use import KernelUse

MASKED_SCORE = -60000.0
"""Added to a masked score. Finite (0 * -inf is NaN), in float16's range, and exp of it is 0 in every
dtype."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    uses: list[KernelUse] | None = None,  # noqa: ARG001 - one signature for all implementations
) -> Tensor:
    """O like q, [B, h, N_q, d]; S and P are materialised in q's dtype. Rows that see no key are 0.

    Grouped heads: the rows of a group's query heads stand under each other in one matmul, so that K and V
    are not expanded. q, k, v are read in place where [B, h] and a group's rows collapse (contiguous tensors
    do), else copied.
    """
    shape = checked_shape(q, k, v)
    factor = softmax_scale(scale, shape.head_dim)
    blind = min(max(0, -shape.shift), shape.seq_q) if causal else 0  # rows that see no key, the first ones
    if blind:
        seen = attention(q[:, :, blind:], k, v, causal=True, scale=scale)
        return torch.cat([torch.zeros_like(q[:, :, :blind]), seen], dim=2)
    batches = shape.batch * shape.kv_heads
    q_rows = q.reshape(batches, shape.group * shape.seq_q, shape.head_dim)
    keys = k.reshape(batches, shape.seq_k, shape.head_dim)
    values = v.reshape(batches, shape.seq_k, shape.head_dim)
    weights = torch.softmax(_scores(q_rows, keys, causal, factor, shape), dim=-1)
    return torch.bmm(weights, values).view(shape.batch, shape.heads, shape.seq_q, shape.head_dim)


def _scores(q: Tensor, k: Tensor, causal: bool, factor: float, shape: Shape) -> Tensor:
    """S = scale Q K^T (+ mask), [B h_kv, g N_q, N_k]; the matmul applies the scale and adds the mask.

    Without a mask S is written once. Causal costs two more passes, the fewest that library kernels allow:
    the 0/1 mask is written to S itself, made from two index vectors, and the matmul reads it back as its
    addend. Softmax and matmuls still run over the masked half. Gradients never see the mask.
    """
    if not causal:
        return torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=factor)
    scores = q.new_empty(q.shape[0], q.shape[1], shape.seq_k)
    keys = torch.arange(shape.seq_k, device=q.device, dtype=torch.int32)
    last = torch.arange(shape.shift, shape.seq_k, device=q.device, dtype=torch.int32)
    heads = scores.view(-1, shape.seq_q, shape.seq_k)
    torch.gt(keys.expand(heads.shape[0], 1, -1), last[:, None], out=heads)
    return scores.baddbmm_(q, k.transpose(1, 2), beta=MASKED_SCORE, alpha=factor)
