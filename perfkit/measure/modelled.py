"""The numbers of a run that need no execution, and the backend that gives nothing else."""

from collections.abc import Sequence
from typing import Final

from perfkit.measure.draft import Draft
from perfkit.model.device import DeviceProfile
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Op, Zeros
from perfkit.ops.plan import planned

#: Counting needs no GPU and is no part of a session.
NOT_COUNTED: Final = "not counted here: perfkit io --count executes kernels"
#: What needs the tiles of kernels between SMs and L2.
_TILED: Final = ("l2_read_modelled", "l2_write_modelled", "l2_zeros_modelled")


def add_model(op: Op, draft: Draft, profile: DeviceProfile) -> None:
    """Add every modelled number of the draft's implementation, with the tiles that it has or would have."""
    w, row = draft.workload, draft.row
    draft.put("flops_convention", op.flops_convention(w), "modelled")
    draft.put("flops_exact", op.flops_exact(w), "modelled")
    least = op.compulsory(w)
    draft.put("dram_read_compulsory", least.read_bytes, "modelled")
    draft.put("dram_write_compulsory", least.write_bytes, "modelled")
    draft.lack(("l2_read_counted", "l2_write_counted"), NOT_COUNTED)
    if row.io is None:
        draft.put("exps", op.exps(w), "modelled")
        tags = ("flops_issued", *_TILED, "dram_read_modelled", "dram_write_modelled")
        draft.lack(tags, "the tiles of this implementation are not known")
        return
    # A kernel that did not get to run (the backward failed) is modelled with the tile that it would have had.
    ran = {use.kernel for use in draft.uses}
    rest = planned(row, w, profile, tuple(draft.uses))
    draft.uses.extend(use for use in rest if use.kernel not in ran)
    uses = tuple(draft.uses)
    draft.put("flops_issued", row.io.issued_flops(w, uses), "modelled")
    draft.put("exps", row.io.exps(w, uses), "modelled")
    if "launches" not in draft.numbers:
        draft.put("launches", row.io.launches(w, uses), "modelled")
    if row.io.level == "L2":
        traffic = row.io.traffic(w, uses)
        draft.put("l2_read_modelled", traffic.read_bytes, "modelled", note=row.io.source)
        draft.put("l2_write_modelled", traffic.write_bytes, "modelled", note=row.io.source)
        _put_zeros(draft, w, row.io.zeros(w, uses, profile) if row.io.zeros else None)
    else:
        draft.lack(_TILED, "the tiles of its matmul library are not known")
    cached = row.io.dram(w, uses, profile)
    draft.put("dram_read_modelled", cached.traffic.read_bytes, "modelled", note=cached.reason)
    draft.put("dram_write_modelled", cached.traffic.write_bytes, "modelled", note=cached.reason)


def _put_zeros(draft: Draft, w: AttentionWorkload, zeros: Sequence[Zeros] | None) -> None:
    """What TMA fills in; None where it is not known."""
    if zeros is None:
        draft.lack(("l2_zeros_modelled",), "it loads by TMA, whose zeros are not modelled")
        return
    total = sum(one.counted for one in zeros)
    draft.put("l2_zeros_modelled", total, "modelled", note=_outside(w, zeros) if total else None)


def _outside(w: AttentionWorkload, zeros: Sequence[Zeros]) -> str:
    """Where the zeros stand for nothing: `beyond head dim 96 and the last row`."""
    places = {
        f"head dim {w.head_dim}": sum(one.columns for one in zeros),
        "the last row": sum(one.rows for one in zeros),
    }
    return f"beyond {' and '.join(place for place, size in places.items() if size)}"
