"""Which keys a query sees, and what dropout keeps: dense, for the oracle and the eager path."""

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """What restricts attention: any of a causal mask, a block mask, padding and a drawn dropout mask.

    `blocks` is bool [T, T] over blocks of `block` rows and columns; `lengths` int [B] are the keys that are
    no padding; `kept` is bool [B, h, N_q, N_k], what dropout of the share `dropout` left.
    """

    causal: bool = False
    blocks: Tensor | None = None
    block: int = 0
    lengths: Tensor | None = None
    kept: Tensor | None = None
    dropout: float = 0.0

    def hidden(self, rows: slice, seq_q: int, seq_k: int, device: torch.device) -> Tensor | None:
        """True where a query of `rows` does not see a key, broadcast to [B, h, rows, N_k]; None: sees all."""
        keys = torch.arange(seq_k, device=device)
        queries = torch.arange(rows.start, rows.stop, device=device)
        found: Tensor | None = None
        if self.causal:
            found = keys > (queries + seq_k - seq_q)[:, None]
        if self.blocks is not None:
            found = ~self.blocks[(queries // self.block)[:, None], (keys // self.block)[None, :]]
        if self.lengths is not None:
            found = keys >= self.lengths[:, None, None, None]
        return found

    def weight(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        """What dropout multiplies P by, 0 or 1 / (1 - dropout), for `rows`; None without dropout."""
        if self.kept is None:
            return None
        return self.kept[:, :, rows].to(dtype).div_(1.0 - self.dropout)
