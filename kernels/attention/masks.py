"""Which keys a query sees, and what dropout keeps: dense, for the oracle and the eager path."""

from typing import NamedTuple

import torch
from torch import Tensor

from .spans import Spans


class Mask(NamedTuple):
    """What restricts attention: any of a causal mask, spans, padding and a drawn dropout mask.

    `lengths` int [B] are the keys that are no padding, and a causal mask then ends at the last of them;
    `kept` is bool [B, h, N_q, N_k], what dropout of the share `dropout` left.
    """

    causal: bool = False
    spans: Spans | None = None
    lengths: Tensor | None = None
    kept: Tensor | None = None
    dropout: float = 0.0

    def hidden(self, rows: slice, seq_q: int, seq_k: int, device: torch.device) -> Tensor | None:
        """True where a query of `rows` does not see a key, broadcast to [B, h, rows, N_k]; None: sees all."""
        keys = torch.arange(seq_k, device=device)
        queries = torch.arange(rows.start, rows.stop, device=device)
        found: Tensor | None = None
        if self.spans is not None:
            found = ~_seen(self.spans, queries, keys, seq_k - seq_q)
        if self.lengths is not None:
            lengths = self.lengths[:, None, None, None]
            found = keys > (queries[:, None] + lengths - seq_q) if self.causal else keys >= lengths
        elif self.causal:
            found = keys > (queries + seq_k - seq_q)[:, None]
        return found

    def weight(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        """What dropout multiplies P by, 0 or 1 / (1 - dropout), for `rows`; None without dropout."""
        if self.kept is None:
            return None
        return self.kept[:, :, rows].to(dtype).div_(1.0 - self.dropout)


def _seen(spans: Spans, queries: Tensor, keys: Tensor, shift: int) -> Tensor:
    """True where a query sees a key, [rows, N_k]: a sum over the ends of all spans up to the key."""
    ends = spans.ends[queries // spans.step].long()
    ends = ends.masked_fill((ends[..., :1] >= ends[..., 1:]), 0)
    steps = torch.zeros(len(queries), len(keys) + 1, dtype=torch.int32, device=keys.device)
    ones = torch.ones(ends.shape[:2], dtype=torch.int32, device=keys.device)
    steps.scatter_add_(1, ends[..., 0], ones).scatter_add_(1, ends[..., 1], -ones)
    seen = steps.cumsum(1)[:, :-1] > 0
    if spans.stride > 1:
        seen &= (queries[:, None] + shift - keys[None, :]) % spans.stride == 0
    return seen
