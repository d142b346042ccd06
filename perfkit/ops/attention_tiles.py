"""Tiles that are asked for instead of those of the table: what the kernels then run, or why they cannot."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles
from perfkit.model.device import DeviceProfile
from perfkit.model.units import show
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Retiling, Uses
from perfkit.ops.plan import table_capability

#: Kernel -> the shared memory in bytes that its tile takes by the model, for a head dim.
_SHARED: Final[dict[str, Callable[[tiles.Tile, int], int]]] = {
    "flash_forward": tiles.forward_shared_bytes,
    "flash_dkdv": tiles.dkdv_shared_bytes,
    "flash_dq": tiles.dq_shared_bytes,
    "flash_hopper_forward": tiles.hopper_shared_bytes,
    "flash_hopper_dkdv": tiles.hopper_dkdv_shared_bytes,
    "flash_hopper_dkdv_wide": tiles.hopper_dkdv_shared_bytes,
    "flash_hopper_dq": tiles.hopper_dq_shared_bytes,
    "flash1_forward": tiles.flash1_shared_bytes,
    "flash1_backward": tiles.flash1_backward_shared_bytes,
    "block_sparse_forward": tiles.forward_shared_bytes,
    "block_sparse_dkdv": tiles.dkdv_shared_bytes,
    "block_sparse_dq": tiles.dq_shared_bytes,
    "sparse1_forward": tiles.flash1_shared_bytes,
    "sparse1_backward": tiles.flash1_backward_shared_bytes,
    "square_scores": tiles.square_scores_shared_bytes,
    "square_statistics": tiles.square_statistics_shared_bytes,
    "square_output": tiles.square_output_shared_bytes,
}


def with_tiles(
    row: Implementation, w: AttentionWorkload, device: DeviceProfile, block_m: int | None, block_n: int | None
) -> Implementation:
    """`row` with tiles of `block_m` rows of queries by `block_n` of keys; itself where neither is given.

    UsageError for one whose tiles are not ours to choose, sizes that no kernel has, and what needs more
    shared memory than a thread block of `device` may use.
    """
    if block_m is None and block_n is None:
        return row
    if row.retiled is None:
        raise UsageError(
            f"the tiles of {row.name} cannot be chosen",
            "name one of perfkit's own with --impl, such as flash",
        )
    for option, size in (("--block-m", block_m), ("--block-n", block_n)):
        if size is not None and (not 16 <= size <= 1024 or size & (size - 1)):
            raise UsageError(f"{option} must be a power of two from 16 to 1024, not {size}")
    options, uses = row.retiled(w, device, block_m, block_n)
    return msgspec.structs.replace(row, options={**row.options, **options}, plan=lambda *_: uses, rest=None)


def shared_bytes_of(use: KernelUse, head_dim: int) -> int | None:
    """Shared memory in bytes that a kernel takes by the model; None for a kernel without one."""
    model = _SHARED.get(use.kernel)
    if model is None:
        return None
    return model(tiles.Tile(use.block_m, use.block_n, use.num_warps or 4, use.num_stages or 1), head_dim)


def _warps(rows: int, columns: int) -> int:
    """The warps of a tile that no table has."""
    return 4 if rows * columns <= 64 * 128 and rows <= 64 else 8


def chosen(
    plan: Callable[[AttentionWorkload, tuple[int, int]], Uses],
    needed: Callable[[AttentionWorkload, Uses], tuple[str, ...]],
    warps: Callable[[int, int], int] = _warps,
) -> Retiling:
    """The retiling of an implementation whose `plan` is a table and whose target takes `tiles`, one a kernel.

    `needed` names the kernels of a pass: the tiles of others stay as they are. `warps` are those of a tile by
    its sides.
    """

    def retiled(
        w: AttentionWorkload, device: DeviceProfile, block_m: int | None, block_n: int | None
    ) -> tuple[Mapping[str, Any], Uses]:
        table = plan(w, table_capability(device))
        changed = needed(w, table)
        uses = tuple(
            _fitting(use, w.head_dim, device, block_m, block_n, warps) if use.kernel in changed else use
            for use in table
        )
        sides = ("block_m", "block_n", "num_warps", "num_stages")
        return {"tiles": [[getattr(use, side) for side in sides] for use in uses]}, uses

    return retiled


def _fitting(
    use: KernelUse,
    head_dim: int,
    device: DeviceProfile,
    block_m: int | None,
    block_n: int | None,
    warps_of: Callable[[int, int], int],
) -> KernelUse:
    """The tile with as many stages as fit, up to those of the table; UsageError where not even one does."""
    rows, columns = block_m or use.block_m, block_n or use.block_n
    warps = warps_of(rows, columns)
    limit, need = device.shared_bytes_per_block, 0
    for stages in range(use.num_stages or 1, 0, -1):
        need = _SHARED[use.kernel](tiles.Tile(rows, columns, warps, stages), head_dim)
        if need <= limit:
            return KernelUse(
                kernel=use.kernel, block_m=rows, block_n=columns, num_warps=warps, num_stages=stages
            )
    raise UsageError(
        f"{use.kernel} with a tile of {rows} x {columns} needs {show(need, 'bytes')} of shared memory, and a "
        f"thread block of {device.name} may use {show(limit, 'bytes')}",
        "choose smaller --block-m and --block-n",
    )
