"""torch's flex_attention, compiled: generated Triton kernels, causal by a block mask that skips blocks."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .shape import checked_shape, softmax_scale
from .use import KernelUse


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    uses: list[KernelUse] | None = None,  # noqa: ARG001 - one signature for all implementations
) -> Tensor:
    """O like q, [B, h, N_q, d]. The first call with new sizes compiles; on a CPU no backward."""
    shape = checked_shape(q, k, v)
    mask = _causal_mask(shape.seq_q, shape.seq_k, str(q.device)) if causal else None
    # One compilation per set of sizes; past the limit dynamo raises (fullgraph) and does not run eager.
    with torch._dynamo.config.patch(recompile_limit=1024, accumulated_recompile_limit=4096):
        out: Tensor = _compiled()(
            q, k, v, block_mask=mask, scale=softmax_scale(scale, shape.head_dim), enable_gqa=shape.group > 1
        )
    return out


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@lru_cache(maxsize=32)
def _causal_mask(seq_q: int, seq_k: int, device: str) -> BlockMask:
    """Bottom-right aligned: query i sees the keys j <= i + N_k - N_q."""
    shift = seq_k - seq_q

    def seen(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return key <= row + shift

    return create_block_mask(seen, None, None, seq_q, seq_k, device=device)
