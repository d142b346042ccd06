"""FlashAttention on any GPU and on Hopper, and `flash`, which picks between the two by device.

Which of the two a record is of, its kernels tell and never its device: Gluon may not have been there, and
tiles that are asked for are those of the portable kernels.
"""

from typing import Final

import msgspec

from perfkit.kernels.attention import tiles
from perfkit.model.device import DeviceProfile
from perfkit.ops import attention_cache as cached
from perfkit.ops import attention_hopper as hopper
from perfkit.ops import attention_hopper_cache as hopper_cached
from perfkit.ops import attention_io as io
from perfkit.ops import attention_zeros as filled
from perfkit.ops.attention_hopper_backward import DKDV, DQ, WIDE
from perfkit.ops.attention_peers import HALF, KERNELS
from perfkit.ops.attention_tiles import chosen
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, IOModel, KernelUse, Uses, Zeros

#: The one compute capability that has the instructions of the kernels for Hopper.
CAPABILITY: Final = (9, 0)
_HOPPER: Final = frozenset({io.HOPPER, DKDV, WIDE, DQ})


def flash_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that the portable kernels would run on a device of this compute capability.

    Devices older than the table get its smallest tiles: there the model says what the algorithm would move.
    """
    capability = max(capability, (7, 5))
    dkdv, dq = tiles.backward_tiles(w.head_dim, capability, w.causal)
    named = {
        io.FORWARD: tiles.forward_tile(w.head_dim, capability, w.causal),
        "flash_dkdv": dkdv,
        "flash_dq": dq,
    }
    return tuple(KernelUse(kernel=name, **tile._asdict()) for name, tile in named.items())


def flash_refuses(w: AttentionWorkload) -> str | None:
    """Why the portable kernels cannot serve the workload on any device; None where they can."""
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: flash takes multiples of 8 from 16 to 256"
    return None


def by_hopper(uses: Uses) -> bool:
    """Whether the kernels for Hopper are among those that ran, or would."""
    return any(use.kernel in _HOPPER for use in uses)


def picked_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that `flash` would run on a device of this compute capability."""
    if capability == CAPABILITY and hopper.hopper_refuses(w) is None:
        return hopper.hopper_plan(w, capability)
    return flash_plan(w, capability)


def _rest(w: AttentionWorkload, capability: tuple[int, int], ran: Uses) -> Uses:
    """The tiles of the path that some of its kernels took."""
    return hopper.hopper_plan(w, capability) if by_hopper(ran) else flash_plan(w, capability)


def picked_workspace(w: AttentionWorkload) -> int:
    """The larger one of both paths."""
    return max(io.flash_workspace(w), hopper.hopper_workspace(w))


def _uncounted(uses: Uses) -> str | None:
    if not by_hopper(uses):
        return None
    return f"{hopper.UNCOUNTED} for this device; the portable ones can be counted: --impl flash-triton"


def _zeros(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> tuple[Zeros, ...]:
    """Those of the path whose kernels are among the tiles."""
    return (filled.hopper_zeros if by_hopper(uses) else filled.flash_zeros)(w, uses, device)


def _picked(portable: IOModel, for_hopper: IOModel) -> IOModel:
    """The model of the path whose kernels are among the tiles; the portable one where there are none."""

    def of(uses: Uses) -> IOModel:
        return for_hopper if by_hopper(uses) else portable

    return IOModel(
        level=portable.level,
        ledger=lambda w, uses: of(uses).ledger(w, uses),
        tiled=lambda w, uses: of(uses).tiled(w, uses),
        dram=lambda w, uses, device: of(uses).dram(w, uses, device),
        issued_flops=lambda w, uses: of(uses).issued_flops(w, uses),
        exps=lambda w, uses: of(uses).exps(w, uses),
        extra_flops=lambda w, uses: of(uses).extra_flops(w, uses),
        launches=lambda w, uses: of(uses).launches(w, uses),
        source=portable.source,
        zeros=_zeros,
    )


_SOURCE: Final = "N_q d + T_r 2 N_k d forward (FA2 Algorithm 1)"

_PORTABLE: Final = IOModel(
    level="L2",
    ledger=io.flash_ledger,
    tiled=io.flash_tiled,
    dram=cached.flash_dram,
    issued_flops=io.flash_flops,
    exps=io.flash_exps,
    extra_flops=io.flash_extra_flops,
    launches=io.flash_launches,
    source=_SOURCE,
    zeros=filled.flash_zeros,
)

_FOR_HOPPER: Final = IOModel(
    level="L2",
    ledger=hopper.hopper_ledger,
    tiled=hopper.hopper_tiled,
    dram=hopper_cached.hopper_dram,
    issued_flops=hopper.hopper_flops,
    exps=hopper.hopper_exps,
    extra_flops=hopper.hopper_extra_flops,
    launches=hopper.hopper_launches,
    source=_SOURCE,
    zeros=filled.hopper_zeros,
)

_TRITON: Final = Implementation(
    name="flash-triton",
    target=f"{KERNELS}.flash:attention",
    description="FlashAttention-2 order, own Triton kernels, on any GPU",
    role="shipped",
    named_only=True,
    dtypes=HALF,
    workspace=io.flash_workspace,
    plan=flash_plan,
    retiled=chosen(flash_plan, io.flash_tiled),
    refuses=flash_refuses,
    io=_PORTABLE,
)

FLASH: Final = (
    msgspec.structs.replace(
        _TRITON,
        name="flash",
        target=f"{KERNELS}.picked:attention",
        description="flash-hopper where it can run, else flash-triton",
        named_only=False,
        workspace=picked_workspace,
        plan=picked_plan,
        rest=_rest,
        uncounted=_uncounted,
        io=_picked(_PORTABLE, _FOR_HOPPER),
    ),
    _TRITON,
    Implementation(
        name="flash-hopper",
        target=f"{KERNELS}.hopper:attention",
        description="FlashAttention-3 in Gluon, for compute capability 9.0",
        role="shipped",
        named_only=True,
        dtypes=HALF,
        workspace=hopper.hopper_workspace,
        plan=hopper.hopper_plan,
        refuses=hopper.hopper_refuses,
        uncounted=lambda _: hopper.UNCOUNTED,
        io=_FOR_HOPPER,
    ),
)
