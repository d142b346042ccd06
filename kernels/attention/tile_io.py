"""Tiles of rows between device memory and a Triton program, each byte in range once and none out of range.

A tensor [B, H, N, d] reaches a kernel either as a pointer with its strides or as a tensor descriptor (TMA,
compute capability 9 to 11) with blocks [1, 1, rows, width]. Both fill what lies outside with zeros
without reading it. `width` is d rounded up to a power of two.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .tiles import Tile
from .use import KernelUse

DTYPES = (torch.float16, torch.bfloat16)
LOG2_E = 1.4426950408889634


@triton.jit  # type: ignore[untyped-decorator]
def load_rows(  # type: ignore[no-untyped-def]
    source,
    batch,
    head,
    start,
    length,
    stride_b,
    stride_h,
    stride_n,
    DESCRIPTORS: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Rows [start, start + ROWS) of one head as [ROWS, WIDTH], zero beyond `length` rows and HEAD_DIM
    columns.

    CHECK_ROWS False promises that all rows are in range. Offsets inside a tile are 32 bit, all others 64 bit.
    """
    if DESCRIPTORS:
        tile = source.load([batch, head, start, 0]).reshape(ROWS, WIDTH)
    else:
        first = (
            source
            + tl.cast(batch, tl.int64) * stride_b
            + tl.cast(head, tl.int64) * stride_h
            + tl.cast(start, tl.int64) * stride_n
        )
        rows = tl.arange(0, ROWS)[:, None]
        columns = tl.arange(0, WIDTH)[None, :]
        pointers = first + rows * stride_n + columns
        if CHECK_ROWS:
            tile = tl.load(pointers, mask=(rows < length - start) & (columns < HEAD_DIM), other=0.0)
        elif WIDTH != HEAD_DIM:
            tile = tl.load(pointers, mask=columns < HEAD_DIM, other=0.0)
        else:
            tile = tl.load(pointers)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def store_rows(  # type: ignore[no-untyped-def]
    target,
    tile,
    batch,
    head,
    start,
    length,
    stride_b,
    stride_h,
    stride_n,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes tile [ROWS, WIDTH] to rows [start, start + ROWS) of one head, in-range elements only."""
    first = (
        target
        + tl.cast(batch, tl.int64) * stride_b
        + tl.cast(head, tl.int64) * stride_h
        + tl.cast(start, tl.int64) * stride_n
    )
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    mask = (rows < length - start) & (columns < HEAD_DIM)
    tl.store(first + rows * stride_n + columns, tile.to(target.dtype.element_ty), mask=mask)


def check_served(q: Tensor) -> None:
    """ValueError, with the reason, for tensors that the Triton kernels of this folder cannot serve."""
    head_dim = q.shape[-1]
    if q.dtype not in DTYPES:
        raise ValueError(f"flash serves float16 and bfloat16, got {q.dtype}")
    if not 16 <= head_dim <= 256 or head_dim % 8:
        raise ValueError(f"flash serves head dims 16 to 256 in steps of 8, got {head_dim}")
    if q.device.type != "cuda" and not interpreted():
        raise ValueError(f"flash needs a CUDA device (or TRITON_INTERPRET=1), got {q.device}")
    if capability(q) < (8, 0):
        raise ValueError(f"flash needs compute capability 8.0 (matrix instructions), got {capability(q)}")
    if interpreted() and q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter multiplies bfloat16 bits as integers: take float16")


def capability(tensor: Tensor) -> tuple[int, int]:
    """Compute capability of the tensor's device; the interpreter poses as 9.0."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.device.type == "cuda" else (9, 0)


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def like_rows(tensor: Tensor) -> Tensor:
    """Uninitialised, the same sizes and, where dense, the same strides; the last dimension contiguous."""
    made = torch.empty_like(tensor)
    return (
        made if made.stride(-1) == 1 else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    )


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes it the tensor's (nothing to do on a CPU)."""
    return torch.cuda.device(tensor.get_device())


def padded_width(head_dim: int) -> int:
    """The head dim rounded up to a power of two: the columns of a tile."""
    return 1 << (head_dim - 1).bit_length()


def can_describe(tensor: Tensor) -> bool:
    """Whether a tensor descriptor can address it: 16-byte aligned base and strides, none of them 0."""
    outer = [s for s, n in zip(tensor.stride()[:3], tensor.shape[:3], strict=True) if n > 1]
    aligned = all(s > 0 and s * tensor.element_size() % 16 == 0 for s in outer)
    return aligned and tensor.data_ptr() % 16 == 0


def use_descriptors(*tensors: Tensor) -> bool:
    """Whether all tensors of a call go through TMA: they must allow it, and the device must gain from it.

    Compute capability 12 has TMA but matrix instructions on registers: there it only costs registers
    (spills).
    """
    gains = tensors[0].device.type == "cuda" and (9, 0) <= capability(tensors[0]) < (12, 0)
    return gains and all(can_describe(t) for t in tensors)


def source(tensor: Tensor, rows: int, descriptors: bool) -> Any:
    """What a kernel takes to read the tensor in tiles of `rows`: a descriptor, or its pointer."""
    if not descriptors:
        return tensor
    row = tensor.shape[3]
    # The stride of a dimension of one element is arbitrary, and a descriptor wants a legal one.
    strides = [s if n > 1 else row for s, n in zip(tensor.stride()[:3], tensor.shape[:3], strict=True)]
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], [1, 1, rows, padded_width(row)])


def outer_strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, head and row, in elements."""
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


def note_use(uses: list[KernelUse] | None, kernel: str, tile: Tile, compiled: Any) -> None:
    """Appends what the launched kernel used; the interpreter compiles nothing and appends nothing."""
    if uses is None or compiled is None:
        return
    shared, registers, spills = compiled.metadata.shared, compiled.n_regs, compiled.n_spills
    uses.append(KernelUse(kernel, *tile, shared, registers, spills))


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return not isinstance(load_rows, triton.JITFunction)
