"""Attention of one or a few query tokens over a long K/V cache, in Triton: the keys are split over programs.

Flash-decoding (Dao, Haziza, Massa, Sizov, 2023) in FlashAttention-2's arithmetic: programs walk shares of the
keys and leave partial results with their log-sum-exp, which a second kernel or the last program merges. The
query heads that share a K/V head, times the query tokens, are the rows of one tile, so that K and V are read
once for all. The cache may be in pages (Kwon et al., arXiv 2309.06180), in fp8, and of sequences of different
lengths; new tokens are written to it first.
"""

import torch
import triton
from torch import Tensor

from .cache import Cache, New, checked_cache, checked_new
from .decode_append import decode_append
from .decode_combine import decode_combine
from .decode_split import decode_split
from .shape import Shape, checked_shape, softmax_scale
from .tile_io import (
    LOG2_E,
    capability,
    check_served,
    like_rows,
    note_use,
    on_device,
    outer_strides,
    padded_width,
    rows_contiguous,
    source,
    use_descriptors,
)
from .tiles import (
    DECODE_FUSED,
    DECODE_OVERLAP,
    Tile,
    combine_tile,
    decode_append_tile,
    decode_at_once,
    decode_blocks,
    decode_pages,
    decode_resident,
    decode_splits,
    decode_tile,
    decode_whole,
    without_empty,
)
from .use import KernelUse

#: Query tokens that the kernels are meant for; beyond them the tiles of `flash` are better.
MOST_TOKENS = 64
#: What the interpreter poses as: an H200.
SM_COUNT = 132
#: Device and stream -> counters of the programs that are ready, all 0 between two calls. Those of the CPU are
#: there before any call, so that making them is nothing that a call does.
_ARRIVALS: dict[tuple[int, int], Tensor] = {(-1, 0): torch.zeros(1 << 14, dtype=torch.int32)}


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    splits: int | None = None,
    lengths: Tensor | None = None,
    cache: Cache | None = None,
    new: New | None = None,
    tile: Tile | None = None,
    fused: bool | None = None,
    overlap: bool | None = None,
    descriptors: bool | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q. No autograd.

    `splits` asks for so many shares of the keys (fewer where some would be empty; default: what fills the
    device) and `tile` for a tile; `fused` has the last share of a tile to be ready merge them all, and
    `overlap` has the kernel that merges start before the shares are ready (9.0 and newer); `descriptors`
    forces TMA on or off. ValueError for what the kernels cannot serve.
    """
    shape = checked_shape(q, k, v)
    _check_served(q, splits)
    if cache is None:
        if new is not None:
            raise ValueError("new keys and values need a cache to be appended to")
        cache = Cache(rows_contiguous(k), rows_contiguous(v))
    page = checked_cache(cache, lengths, shape, q, capability(q))
    q = rows_contiguous(q)
    rows, fp8 = shape.group * shape.seq_q, cache.k_scale is not None
    tile = tile or decode_tile(shape.head_dim, rows, capability(q), page, fp8)
    key_blocks = decode_blocks(shape.seq_k, page, tile.block_n)
    tiles_m = triton.cdiv(rows, tile.block_m)
    blocks = tiles_m * shape.kv_heads * shape.batch
    shares = (
        without_empty(splits, key_blocks)
        if splits is not None
        else decode_splits(blocks, key_blocks, _sm_count(q), decode_resident(tile, fp8))
    )
    out, partial, lse, arrivals = like_rows(q), None, None, None
    fused = shares > 1 and (DECODE_FUSED if fused is None else fused)
    # What is launched early waits by an instruction of 9.0, which the interpreter has not.
    early = DECODE_OVERLAP and q.is_cuda and capability(q) >= (9, 0) if overlap is None else overlap
    overlap = shares > 1 and not fused and early
    if shares > 1:
        partial = torch.empty((shares, *q.shape), dtype=torch.float32, device=q.device)
        lse = torch.empty((shares, *q.shape[:3]), dtype=torch.float32, device=q.device)
    masked = causal and shape.seq_q > 1  # a single query at the end sees all keys
    partly = masked or lengths is not None or not decode_whole(shape.seq_k, page, tile.block_n)
    # Beyond a length, or in rows of a page that no token has, there may be NaN, which TMA would load.
    possible = not partly or not (page or lengths is not None)
    possible = possible and decode_pages(page, tile.block_n) == 1
    described = possible and (use_descriptors(cache.k, cache.v) if descriptors is None else descriptors)
    height, at_once = decode_at_once(tile, rows, padded_width(shape.head_dim), shares) if fused else (1, 1)
    with on_device(q):
        if new is not None:
            _append(cache, checked_new(new, shape, q), lengths, shape, page, uses)
        if fused:
            arrivals = _arrivals(q, blocks)
        compiled = decode_split[(blocks, shares)](
            q,
            source(cache.k, tile.block_n, described),
            source(cache.v, tile.block_n, described),
            out if shares == 1 or fused else None,
            partial,
            lse,
            arrivals,
            cache.table,
            lengths,
            cache.k_scale,
            cache.v_scale,
            *outer_strides(q),
            *outer_strides(cache.k),
            *outer_strides(cache.v),
            *outer_strides(out),
            0 if cache.table is None else cache.table.stride(0),
            shape.batch * shape.heads * shape.seq_q,
            shape.kv_heads,
            shape.group,
            tiles_m,
            triton.cdiv(key_blocks, shares),
            shape.seq_q,
            shape.seq_k,
            softmax_scale(scale, shape.head_dim) * LOG2_E,
            CAUSAL=masked,
            MASKED=partly,
            DESCRIPTORS=described,
            OVERLAP=overlap,
            PAGE=page,
            PAGES=decode_pages(page, tile.block_n),
            HEAD_DIM=shape.head_dim,
            WIDTH=padded_width(shape.head_dim),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            ROWS=height,
            AT_ONCE=at_once,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        note_use(uses, "decode_split", tile, compiled)
        if partial is not None and lse is not None and not fused:
            share = triton.cdiv(key_blocks, shares)
            _combine(partial, lse, out, lengths, shape, page, tile.block_n, share, overlap, uses)
        elif uses is not None and compiled is not None:
            # Not launched: said all the same, lest a model of another device's shares is taken for this run.
            uses.append(
                KernelUse("decode_merge" if fused else "decode_combine", *combine_tile(shares), 0, 0, 0)
            )
    return out


def _append(
    cache: Cache,
    new: New,
    lengths: Tensor | None,
    shape: Shape,
    page: int,
    uses: list[KernelUse] | None,
) -> None:
    """Write the new keys and values to their slots."""
    count = new.k.shape[2]
    tile = decode_append_tile(count)
    compiled = decode_append[(shape.batch * shape.kv_heads, triton.cdiv(count, tile.block_m))](
        new.k,
        new.v,
        cache.k,
        cache.v,
        cache.table,
        lengths,
        cache.k_scale,
        cache.v_scale,
        *outer_strides(new.k),
        *outer_strides(new.v),
        *outer_strides(cache.k),
        *outer_strides(cache.v),
        0 if cache.table is None else cache.table.stride(0),
        shape.kv_heads,
        count,
        shape.seq_k,
        PAGE=page,
        HEAD_DIM=shape.head_dim,
        WIDTH=padded_width(shape.head_dim),
        BLOCK_M=tile.block_m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    note_use(uses, "decode_append", tile, compiled)


def _combine(
    partial: Tensor,
    lse: Tensor,
    out: Tensor,
    lengths: Tensor | None,
    shape: Shape,
    page: int,
    block_n: int,
    share: int,
    overlap: bool,
    uses: list[KernelUse] | None,
) -> None:
    """Merge the partial results of shares of `share` blocks of keys."""
    tile = combine_tile(partial.shape[0])
    rows = shape.batch * shape.heads * shape.seq_q
    compiled = decode_combine[(rows,)](
        partial,
        lse,
        out,
        lengths,
        *outer_strides(out),
        rows,
        shape.heads,
        share,
        shape.seq_q,
        shape.seq_k,
        OVERLAP=overlap,
        PAGE=page,
        PAGES=decode_pages(page, block_n),
        KEYS=block_n,
        HEAD_DIM=shape.head_dim,
        WIDTH=padded_width(shape.head_dim),
        BLOCK_M=tile.block_m,
        AT_ONCE=min(16, padded_width(tile.block_m)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **({"launch_pdl": True} if overlap else {}),
    )
    note_use(uses, "decode_combine", tile, compiled)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    splits: int | None = None,
    lengths: Tensor | None = None,
    cache: Cache | None = None,
    new: New | None = None,
    uses: list[KernelUse] | None = None,
) -> Tensor:
    """O like q, [B, h, N_q, d], float16 or bfloat16, N_q up to 64; without gradients.

    `lengths`, int32 [B], are the keys of each sequence, N_k at most. With `cache` keys and values come from
    there, and k and v only give their sizes; `new` ones are first written to it, at the end of each sequence.
    A causal mask is aligned to the end of each sequence; rows that see no key are 0. `splits` asks for so
    many shares of the keys, up to 1024. `uses` receives what the kernels used; block_m of "decode_combine" or
    "decode_merge" is the number of shares. ValueError for other dtypes, head dims outside 16..256 or no
    multiple of 8, no CUDA device, and an fp8 cache below compute capability 8.9.
    """
    with torch.no_grad():
        return forward(
            q, k, v, causal, scale, splits=splits, lengths=lengths, cache=cache, new=new, uses=uses
        )


def _arrivals(q: Tensor, blocks: int) -> Tensor:
    """Zeros for `blocks` row tiles, which the kernel leaves as zeros: of one stream, lest two calls meet."""
    size = max(1024, padded_width(blocks))
    if q.is_cuda and torch.cuda.is_current_stream_capturing():  # memory of a graph belongs to it
        return torch.zeros(size, dtype=torch.int32, device=q.device)
    key = (q.get_device(), torch.cuda.current_stream().cuda_stream if q.is_cuda else 0)
    if key not in _ARRIVALS or len(_ARRIVALS[key]) < blocks:
        _ARRIVALS[key] = torch.zeros(size, dtype=torch.int32, device=q.device)
    return _ARRIVALS[key]


def _sm_count(q: Tensor) -> int:
    """Multiprocessors of the tensor's device."""
    return torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else SM_COUNT


def _check_served(q: Tensor, splits: int | None) -> None:
    """ValueError, with the reason, for what the kernels cannot serve."""
    check_served(q)
    if q.shape[2] > MOST_TOKENS:
        raise ValueError(f"flash-decode serves up to {MOST_TOKENS} query tokens, got {q.shape[2]}")
    if splits is not None and not 1 <= splits <= 1024:
        raise ValueError(f"splits must be from 1 to 1024, got {splits}")
