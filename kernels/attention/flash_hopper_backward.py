"""FlashAttention-3 backward in Gluon, for compute capability 9.0 only.

Shah, Bikshandi, Zhang, Thakkar, Ramani, Dao, "FlashAttention-3", arXiv 2407.08608, appendix B.1. One warp
loads by TMA; two warpgroups compute, each for 64 keys (dK, dV) or 64 rows of Q (dQ) of its own. By default
one kernel gives dK, dV and, with atomic additions in float32, dQ: five matrix products, and a sum whose order
and last bits differ from run to run. Up to 64 columns a third warpgroup computes dQ, above the two that have
dK and dV. `deterministic`, and all head dims above 128, take two kernels and seven products instead; above
128 the two warpgroups have the same 64 keys, and divide the products of dK and dV.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .flash_hopper import descriptor, served_shape
from .flash_hopper_dkdv import flash_hopper_dkdv
from .flash_hopper_dq import flash_hopper_dq
from .flash_hopper_sums import flash_hopper_dq_from_sum, flash_hopper_statistics, flash_hopper_sum_of_parts
from .flash_hopper_wide import flash_hopper_dkdv_wide
from .shape import Shape, softmax_scale
from .tile_io import (
    LOG2_E,
    can_describe,
    like_rows,
    note_use,
    on_device,
    outer_strides,
    padded_width,
    rows_contiguous,
)
from .tiles import (
    HOPPER_FIXED_ROWS,
    HOPPER_STATISTICS_ROWS,
    HOPPER_SUM_TILE,
    HopperBackwardTile,
    Tile,
    hopper_backward_tile,
    hopper_backward_width,
    hopper_shares,
    padded_rows,
)
from .use import KernelUse


class _Call(NamedTuple):
    """One call, checked: its tensors, sizes and what both kernels share."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    log_sums: Tensor
    delta: Tensor
    shape: Shape
    causal: bool
    factor: float
    tile: HopperBackwardTile
    width: int
    uses: list[KernelUse] | None


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    deterministic: bool = False,
    tile: HopperBackwardTile | None = None,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV) like q, k and v, from what `flash_hopper.forward` or `flash.forward` gave.

    Where query heads are dealt out in shares, dK and dV are dense, and sums of parts in the working dtype.
    They are summed over the query heads of each group, in a fixed order; the order in which dQ is summed is
    fixed only if `deterministic`, or the head dim above 128. ValueError for what the kernels cannot serve: as
    `flash_hopper.forward`.
    """
    shape = served_shape(q, k, v)
    width = hopper_backward_width(shape.head_dim)
    tile = tile or hopper_backward_tile(shape.head_dim, causal, deterministic)
    _check_tile(tile, width, deterministic)
    dout = _addressable(dout)
    factor = softmax_scale(scale, shape.head_dim)
    dq_sum = None
    if not (deterministic or tile.wide):
        total = shape.batch * shape.heads * triton.cdiv(shape.seq_q, HOPPER_SUM_TILE // width)
        dq_sum = torch.empty((total, HOPPER_SUM_TILE), dtype=torch.float32, device=q.device)
    log_sums, delta = statistics(out, dout, lse, dq_sum, uses=uses)
    call = _Call(q, k, v, dout, log_sums, delta, shape, causal, factor, tile, width, uses)
    dk, dv = _dkdv(call, dq_sum)
    return _dq(call) if dq_sum is None else _dq_from_sum(call, dq_sum), dk, dv


def _check_tile(tile: HopperBackwardTile, width: int, deterministic: bool) -> None:
    """ValueError for what the kernels cannot compute with."""
    wrong = None
    if tile.wide != (width > 128) or (tile.wide and tile.block_m != 64):
        wrong = "above 128 columns, and only there, a tile is wide, of 64 rows"
    elif deterministic:
        if tile.apart or tile.ahead:
            wrong = "only a call that is not deterministic has dQ apart or a block ahead"
    elif tile.block_m != 64 or tile.apart != (width == 64):
        wrong = "dQ is added 64 rows at a time, apart up to 64 columns and not above"
    elif tile.ahead and (tile.apart or tile.wide or tile.stages < 2):
        wrong = "a block ahead takes two stages, and dQ not apart"
    if wrong:
        raise ValueError(f"{wrong}: got {tile} for {width} columns")


def _addressable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a dense copy where TMA cannot address it: the gradient of a sum has strides of 0.

    A copy even of a dense tensor, which `contiguous` would return, if its base is not aligned.
    """
    if tensor.stride(-1) == 1 and can_describe(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def statistics(
    out: Tensor,
    dout: Tensor,
    lse: Tensor,
    dq_sum: Tensor | None = None,
    *,
    uses: list[KernelUse] | None = None,
) -> tuple[Tensor, Tensor]:
    """(LSE in base 2, D), float32 [B h, N_q rounded up to 128], and zeros in dq_sum."""
    out = rows_contiguous(out)
    batch, heads, seq_q, head_dim = out.shape
    padded = padded_rows(seq_q)
    log_sums, delta = (
        torch.empty((batch * heads, padded), dtype=torch.float32, device=out.device) for _ in range(2)
    )
    tiles_m = padded // HOPPER_STATISTICS_ROWS
    width = hopper_backward_width(head_dim)
    with on_device(out):
        compiled = flash_hopper_statistics[(tiles_m * batch * heads,)](
            out,
            dout,
            lse.contiguous(),
            log_sums,
            delta,
            delta if dq_sum is None else dq_sum,
            *outer_strides(out),
            *outer_strides(dout),
            heads,
            tiles_m,
            padded,
            seq_q,
            0 if dq_sum is None else dq_sum.numel() // (batch * heads),
            HEAD_DIM=head_dim,
            WIDTH=padded_width(head_dim),
            BLOCK_M=HOPPER_STATISTICS_ROWS,
            ZEROED=0 if dq_sum is None else HOPPER_STATISTICS_ROWS * width,
            num_warps=4,
        )
    note_use(uses, "flash_hopper_statistics", Tile(HOPPER_STATISTICS_ROWS, 0, 4, 1), compiled)
    return log_sums, delta


def _dkdv(call: _Call, dq_sum: Tensor | None) -> tuple[Tensor, Tensor]:
    """(dK, dV); adds dQ / scale to dq_sum unless None."""
    shape, tile, width = call.shape, call.tile, call.width
    tiles_n = triton.cdiv(shape.seq_k, tile.keys)
    shares = hopper_shares(tiles_n * shape.kv_heads * shape.batch, shape.group)
    parts = None
    if shares == 1:
        dk, dv = like_rows(call.k), like_rows(call.v)
    else:
        sizes = (2, shape.batch, shape.kv_heads * shares, shape.seq_k, shape.head_dim)
        parts = torch.empty(sizes, dtype=call.k.dtype, device=call.k.device)
        dk, dv = parts
    columns = 64 if tile.wide else width
    kernel: Any = flash_hopper_dkdv_wide if tile.wide else flash_hopper_dkdv
    sums: tuple[Tensor, ...] = ()
    how: dict[str, Any] = {"PANELS": width // columns}
    if not tile.wide:
        sums = (call.delta if dq_sum is None else dq_sum,)
        kind = "none" if dq_sum is None else "apart" if tile.apart else "shared"
        how = {"DQ": kind, "AHEAD": tile.ahead, "WIDTH": width, "BLOCK_M": tile.block_m}
    with on_device(call.q):
        compiled = kernel[(tiles_n * shape.kv_heads * shares * shape.batch,)](
            descriptor(call.q, tile.block_m, columns),
            descriptor(call.dout, tile.block_m, columns),
            *(descriptor(tensor, 64, columns) for tensor in (call.k, call.v)),
            *(_numbers(tensor, tile.block_m) for tensor in (call.log_sums, call.delta)),
            *(descriptor(tensor, 64, columns) for tensor in (dk, dv)),
            *sums,
            shape.kv_heads * shares,
            shape.group // shares,
            shares,
            tiles_n,
            triton.cdiv(shape.seq_q, tile.block_m),
            call.delta.shape[1],
            shape.seq_q,
            shape.seq_k,
            call.factor,
            call.factor * LOG2_E,
            CAUSAL=call.causal,
            EVEN_N=shape.seq_k % tile.keys == 0,
            STAGES=tile.stages,
            num_warps=4,
            **how,
        )
    note_use(call.uses, tile.kernel, tile.held, compiled)
    return (dk, dv) if parts is None else _sum_of_parts(call, parts, shares)


def _sum_of_parts(call: _Call, parts: Tensor, shares: int) -> tuple[Tensor, Tensor]:
    """(dK, dV), dense, from [2, B, h_kv shares, N_k, d]."""
    sums = parts.new_empty((2, *call.k.shape))
    size, block = call.shape.seq_k * call.shape.head_dim, 1024
    with on_device(parts):
        compiled = flash_hopper_sum_of_parts[(triton.cdiv(size, block), sums[..., 0, 0].numel())](
            parts, sums, shares, size,
            AT_ONCE=min(8, triton.next_power_of_2(shares)), BLOCK=block, num_warps=4,
        )  # fmt: skip
    note_use(call.uses, "flash_hopper_sum_of_parts", Tile(0, 0, 4, 1), compiled)
    dk, dv = sums
    return dk, dv


def _dq(call: _Call) -> Tensor:
    """dQ by a kernel of its own."""
    shape, tile, width = call.shape, call.tile, call.width
    columns = 64 if tile.wide else width
    dq = like_rows(call.q)
    tiles_m = triton.cdiv(shape.seq_q, HOPPER_FIXED_ROWS)
    with on_device(dq):
        compiled = flash_hopper_dq[(tiles_m * shape.heads * shape.batch,)](
            *(descriptor(tensor, 64, columns) for tensor in (call.q, call.dout)),
            *(descriptor(tensor, tile.block_n, columns) for tensor in (call.k, call.v)),
            descriptor(dq, 64, columns),
            call.log_sums,
            call.delta,
            shape.heads,
            shape.group,
            tiles_m,
            call.delta.shape[1],
            shape.seq_q,
            shape.seq_k,
            call.factor,
            call.factor * LOG2_E,
            CAUSAL=call.causal,
            EVEN_N=shape.seq_k % tile.block_n == 0,
            COLUMNS=columns,
            PANELS=width // columns,
            BLOCK_N=tile.block_n,
            STAGES=tile.stages_n,
            num_warps=4,
        )
    note_use(call.uses, "flash_hopper_dq", tile.held_dq, compiled)
    return dq


def _dq_from_sum(call: _Call, dq_sum: Tensor) -> Tensor:
    """dQ from its sum in float32."""
    shape, block_m = call.shape, HOPPER_SUM_TILE // call.width
    dq = like_rows(call.q)
    with on_device(dq):
        compiled = flash_hopper_dq_from_sum[(dq_sum.shape[0],)](
            dq_sum,
            dq,
            *outer_strides(dq),
            shape.heads,
            triton.cdiv(shape.seq_q, block_m),
            shape.seq_q,
            call.factor,
            HEAD_DIM=shape.head_dim,
            BLOCK_M=block_m,
            num_warps=4,
        )
    note_use(call.uses, "flash_hopper_dq_from_sum", Tile(block_m, 0, 4, 1), compiled)
    return dq


def _numbers(tensor: Tensor, count: int) -> Any:
    """TMA descriptor of all numbers of a float32 tensor in a row, in blocks of `count`."""
    layout = gl.NVMMASharedLayout(0, 32, rank=1)
    return TensorDescriptor(tensor, [tensor.numel()], [1], [count], layout)
