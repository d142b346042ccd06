"""The IO model of `flash-hopper`: FlashAttention-2's loops with the tiles of a kernel for Hopper.

Source: Dao, arXiv 2307.08691, Algorithm 1. FlashAttention-3 (Shah et al., arXiv 2407.08608) overlaps the same
loops in another way, and moves the same bytes for the same tiles. What differs from `flash`: a block of
queries that sees no key visits one block of keys, tiles have 64 columns or more, and causal blocks of several
heads go out together. The backward kernels are those of `flash`.
"""

from perfkit.kernels.attention import tiles
from perfkit.model.device import DeviceProfile
from perfkit.ops.attention_cache import flash_dram
from perfkit.ops.attention_io import HOPPER
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Cached, KernelUse, Uses

UNCOUNTED = "Triton's interpreter cannot execute Gluon, in which its forward kernel is written"


def hopper_plan(w: AttentionWorkload, capability: tuple[int, int]) -> Uses:
    """The tiles that `flash-hopper` would run.

    Its forward kernel has one table: of devices on which it cannot run the model says what it would move.
    """
    dkdv, dq = tiles.backward_tiles(w.head_dim, max(capability, (7, 5)), w.causal)
    held = tiles.hopper_tile(w.head_dim, w.causal).held
    named = {HOPPER: held, "flash_dkdv": dkdv, "flash_dq": dq}
    return tuple(KernelUse(kernel=name, **tile._asdict()) for name, tile in named.items())


def hopper_refuses(w: AttentionWorkload) -> str | None:
    """Why the kernels cannot serve the workload on any device; None where they can."""
    if not 16 <= w.head_dim <= 256 or w.head_dim % 8:
        return f"head dim {w.head_dim}: flash-hopper takes multiples of 8 from 16 to 256"
    return None


def hopper_dram(w: AttentionWorkload, uses: Uses, device: DeviceProfile) -> Cached:
    """As `flash_dram`. Causal blocks go out the longest first, over all heads that share L2 by the kernel."""
    kv_head = 2 * w.seq_k * w.head_dim * w.element_bytes
    return flash_dram(w, uses, device, HOPPER, tiles.hopper_together(kv_head) if w.causal else 1)
