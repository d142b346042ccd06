"""FlashAttention by the kernels for the device: those for Hopper where they serve the call, else the portable
ones."""

from collections.abc import Sequence

from torch import Tensor

from . import flash, hopper
from .use import KernelUse


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    deterministic: bool = False,
    tiles: Sequence[Sequence[int]] | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N_q, d]: of `hopper.attention` where `hopper.refusal` is None, else `flash.attention`.

    `tiles` are those of the portable kernels, which then run on any device; `deterministic` is what their
    backward always is. `uses` tells which kernels ran. ValueError for what neither can serve.
    """
    if tiles is None and hopper.refusal(q, k, v) is None:
        return hopper.attention(q, k, v, causal=causal, scale=scale, deterministic=deterministic, uses=uses)
    return flash.attention(q, k, v, causal=causal, scale=scale, tiles=tiles, uses=uses)
