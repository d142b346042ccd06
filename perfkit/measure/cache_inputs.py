"""The K/V cache of a workload: its pages, its fp8 elements, and what is still to be appended."""

from typing import TYPE_CHECKING, Any, Final

from perfkit.ops.attention_workload import AttentionWorkload

if TYPE_CHECKING:
    from torch import Tensor

    from perfkit.kernels.attention.cache import Cache

#: The largest number of float8_e4m3fn.
LARGEST: Final = 448.0


def cached(w: AttentionWorkload, k: "Tensor", v: "Tensor") -> "tuple[Tensor, Tensor, dict[str, Any]]":
    """(K, V, keyword arguments): `cache` holds what K and V are, and `new` what has to be appended to it.

    K and V are changed to what the cache can represent: scales are powers of two, so that an element of fp8
    times its scale is a number of the working dtype. Slots without a token are NaN.
    """
    from perfkit.kernels.attention.cache import New

    if not (w.page or w.cache_dtype or w.append):
        return k, v, {}
    for tensor in (k, v):
        tensor[:, :, : w.prefix] = tensor[:1, :, : w.prefix]
    given: dict[str, Any] = {}
    if w.append:
        given["new"] = New(*(_last(w, tensor).clone() for tensor in (k, v)))
    if w.cache_dtype:
        (k, k_scale), (v, v_scale) = _representable(w, k), _representable(w, v)
        given["cache"] = _stored(w, k, v, k_scale, v_scale)
    else:
        given["cache"] = _stored(w, k, v, None, None)
    return k, v, given


def _last(w: AttentionWorkload, tensor: "Tensor") -> "Tensor":
    """The last N_q tokens of each sequence, [B, h_kv, N_q, d]."""
    import torch

    return torch.stack([tensor[at, :, n - w.seq_q : n] for at, n in enumerate(w.lengths)])


def _representable(w: AttentionWorkload, tensor: "Tensor") -> "tuple[Tensor, Tensor]":
    """(what fp8 with scales makes of `tensor`, the scales [B, h_kv, pages] of its pages, or of its heads)."""
    import torch

    page = w.page or w.seq_k
    count = -(-w.seq_k // page)
    padded = torch.zeros(*tensor.shape[:2], count * page, w.head_dim, device=tensor.device)
    padded[:, :, : w.seq_k] = tensor.float()
    pages = padded.view(*tensor.shape[:2], count, page, w.head_dim)
    largest = pages.abs().amax((-1, -2))
    if not w.page:
        largest = largest.amax(0, keepdim=True).expand_as(largest)
    scale = torch.exp2(torch.ceil(torch.log2(largest / LARGEST)))
    steps = (pages / scale[..., None, None]).to(torch.float8_e4m3fn).float()
    found = (steps * scale[..., None, None]).view_as(padded)[:, :, : w.seq_k]
    return found.to(tensor.dtype), scale


def _stored(
    w: AttentionWorkload, k: "Tensor", v: "Tensor", k_scale: "Tensor | None", v_scale: "Tensor | None"
) -> "Cache":
    """The cache that holds K and V, with NaN where no token is, or none yet."""
    from perfkit.kernels.attention.cache import Cache

    table = page_table(w, k.device.type)
    keys, values = _pool(w, k, k_scale, table), _pool(w, v, v_scale, table)
    return Cache(keys[0], values[0], table if w.page else None, keys[1], values[1])


def _pool(
    w: AttentionWorkload, tensor: "Tensor", scale: "Tensor | None", table: "Tensor"
) -> "tuple[Tensor, Tensor | None]":
    """(pages [P, h_kv, page, d], their scales), each page where the table has it."""
    import torch

    page, count = w.page or w.seq_k, table.shape[1]
    filled = torch.tensor(w.lengths, device=tensor.device) - (w.seq_q if w.append else 0)
    there = torch.arange(count * page, device=tensor.device) < filled[:, None]
    rows = torch.full((*tensor.shape[:2], count * page, w.head_dim), float("nan"), device=tensor.device)
    rows[:, :, : w.seq_k] = tensor.float()
    rows.masked_fill_(~there[:, None, :, None], float("nan"))
    pages = rows.view(*tensor.shape[:2], count, page, w.head_dim).transpose(1, 2)
    used = (
        torch.arange(count, device=table.device) * page
        < torch.tensor(w.lengths, device=table.device)[:, None]
    )
    to = table[used].long()
    if scale is None:
        pool = torch.empty(int(to.max()) + 1, *pages.shape[2:], dtype=tensor.dtype, device=tensor.device)
        pool[to] = pages[used].to(tensor.dtype)
        return pool, None
    of_page = scale.transpose(1, 2)[used]
    stored = (pages[used] / of_page[..., None, None]).to(torch.float8_e4m3fn)
    pool = torch.empty(int(to.max()) + 1, *pages.shape[2:], dtype=stored.dtype, device=tensor.device)
    # torch has no assignment by index for fp8; its bytes are as good.
    pool.view(torch.uint8)[to] = stored.view(torch.uint8)
    scales = torch.empty(len(pool), w.kv_heads, device=tensor.device)
    scales[to] = of_page
    return pool, scales if w.page else scales[0].contiguous()


def page_table(w: AttentionWorkload, device: str) -> "Tensor":
    """int32 [B, ceil(N_k / page)]: pages in no order, those of the prefix shared; unused slots name page 0.

    Without pages each sequence is one.
    """
    import torch

    page = w.page or w.seq_k
    count, shared = -(-w.seq_k // page), w.prefix // page
    table = torch.zeros(w.batch, count, dtype=torch.int32)
    needed = shared + sum(-(-length // page) - shared for length in w.lengths)
    order = torch.arange(needed)
    if w.page:
        order = torch.randperm(needed, generator=torch.Generator().manual_seed(0))
    table[:, :shared] = order[:shared].int()
    at = shared
    for sequence, length in enumerate(w.lengths):
        own = -(-length // page) - shared
        table[sequence, shared : shared + own] = order[at : at + own].int()
        at += own
    return table.to(device)
