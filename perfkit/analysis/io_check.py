"""The IO check: measured traffic and FLOPs held against the model, at the level where each is exact."""

import msgspec

from perfkit.analysis.placement import Placement
from perfkit.analysis.verdict import Verdict, judge, unchecked
from perfkit.model.cache import IN_PART, STAYS
from perfkit.model.units import show
from perfkit.ops import find_op
from perfkit.ops.base import Implementation, IOModel, Level
from perfkit.record import Run

#: Relative tolerances. The closed forms are exact; what is left is counter noise. DRAM writes and reads also
#: carry what the cache model cannot know (replacement policy, other traffic).
L2_TOLERANCE = 0.01
DRAM_ALGORITHM_TOLERANCE = 0.03
DRAM_MODEL_TOLERANCE = 0.15
FLOPS_TOLERANCE = 0.001
#: DRAM moves whole lines and the driver's own traffic; smaller differences are noise.
SLACK_BYTES = 1 << 20
#: Forward kernels whose blocks of queries each pass over K and V once.
FORWARDS = frozenset({"flash_forward", "flash_hopper_forward"})
#: The counter of SM<->L2 reads that is the SM's, as the remark on `l2_read` names it: it counts the zeros
#: that TMA fills into tiles. What another one counted is held against the ledger alone.
AT_SM = "l1_fill_bytes"


def check(op_name: str, placement: Placement) -> tuple[Verdict, ...]:
    """All verdicts on one run, none for a run that has no numbers."""
    run = placement.run
    if run.status not in ("measured", "modelled"):
        return ()
    row = find_op(op_name).implementation(run.impl)
    io = row.io if row else None
    level = io.level if io else None
    found = [
        *(_side(run, level, side) for side in ("read", "write")),
        _tile_height(run) if row and shares_passes(row, run) else None,
        *(_compulsory(run, side) for side in ("read", "write")),
        *([] if level == "DRAM" else [_dram_model(run)]),
        None if row is None or io is None else _tensor_flops(row, io, run),
    ]
    return tuple(verdict for verdict in found if verdict is not None)


def shares_passes(row: Implementation, run: Run) -> bool:
    """Whether blocks of queries each read K and V once, so that the counter shows their height.

    Not where matrices are stored, nor where the loop over keys is the outer one.
    """
    return not row.materialises and (
        row.io is None or not FORWARDS.isdisjoint(row.io.tiled(run.workload, run.uses))
    )


def zeros_counted(run: Run) -> float:
    """Bytes of zeros by TMA that the model expects in the SM<->L2 reads of a run; none but at the SM."""
    return (run.value("l2_zeros_modelled") or 0) if _at_sm(run) else 0


def _at_sm(run: Run) -> bool:
    """Whether reads were counted, and by the SM."""
    number = run.numbers.get("l2_read")
    return number is not None and number.value is not None and AT_SM in (number.reason or "")


def _doubted(run: Run, found: Verdict) -> Verdict:
    """`found`, and that its record does not know the zeros that may be what it has read too much."""
    reads, modelled = run.value("l2_read"), run.value("l2_read_modelled")
    known = not _at_sm(run) or "l2_zeros_modelled" in run.numbers
    if found.status != "violated" or known or reads is None or modelled is None or reads <= modelled:
        return found
    reason = f"{found.reason}; zeros of TMA were not modelled in this record"
    return msgspec.structs.replace(found, reason=reason)


def _absent(run: Run, tag: str) -> str:
    number = run.numbers.get(tag)
    return (number.reason if number is not None else None) or "not measured"


def _side(run: Run, level: Level | None, side: str) -> Verdict | None:
    """The implementation's own traffic formula, at the level where it is exact."""
    if level is None:
        return None
    prefix = "l2" if level == "L2" else "dram"
    expected, measured = run.value(f"{prefix}_{side}_modelled"), run.value(f"{prefix}_{side}")
    name = f"{'SM<->L2' if level == 'L2' else 'DRAM'} {side} = IO model"
    if expected is None:
        return unchecked(name, _absent(run, f"{prefix}_{side}_modelled"))
    if measured is None:
        return unchecked(name, _absent(run, f"{prefix}_{side}"), expected)
    tolerance, slack = (L2_TOLERANCE, 0) if level == "L2" else (DRAM_ALGORITHM_TOLERANCE, SLACK_BYTES)
    note = run.numbers[f"{prefix}_{side}_modelled"].reason or ""
    reason = f"closed form, tolerance {tolerance:.0%}"
    if level == "L2" and side == "read" and (zeros := zeros_counted(run)):
        expected += zeros
        where = run.numbers["l2_zeros_modelled"].reason
        reason += f"; expected has {show(zeros, 'bytes')} of zeros that TMA fills in {where}"
    if level == "DRAM" and STAYS in note:  # what stays in L2 is a model too, and in between it is a rough one
        tolerance = DRAM_MODEL_TOLERANCE
        reason = f"{note}; tolerance {tolerance:.0%}"
        if IN_PART in note and abs(measured / expected - 1) > tolerance:
            return Verdict(
                check=name, status="undecided", reason=reason, expected=expected, measured=measured
            )
    spilling = [use.kernel for use in run.uses if use.spills] if level == "L2" else []
    if spilling:
        reason += f"; {', '.join(spilling)} spills registers, and spills are traffic too"
    found = judge(name, expected, measured, tolerance, reason, slack)
    return _doubted(run, found) if level == "L2" and side == "read" else found


def implied_tile_height(run: Run) -> float | None:
    """Rows of queries that share one pass over K and V, from the counter: N_q over the passes it shows.

    Full-mask forward only: SM<-L2 bytes = Q + passes (K + V) for each query head (FA2 Algorithm 1), and the
    zeros of TMA, where they are known.
    """
    w, reads = run.workload, run.value("l2_read")
    if reads is None or w.causal or w.pass_ != "fwd":
        return None
    per_pass = 2 * w.key_bytes * (w.heads // w.kv_heads)
    passes = (reads - zeros_counted(run) - w.query_bytes) / per_pass
    return w.seq_q / passes if passes > 0 else None


def _tile_height(run: Run) -> Verdict | None:
    height = implied_tile_height(run)
    if height is None:
        return None
    used = next((use.block_m for use in run.uses if use.kernel in FORWARDS), None)
    name = "tile height from counter"
    if used is None:
        reason = "rows of Q per pass over K and V"
        if _at_sm(run) and run.value("l2_zeros_modelled") is None and run.workload.head_dim.bit_count() > 1:
            reason += "; zeros of TMA, if it pads, make it look lower"
        return Verdict(check=name, status="found", reason=reason, measured=height)
    whole = run.workload.seq_q / -(-run.workload.seq_q // used)  # the last block of an odd N_q is not full
    found = judge(name, whole, height, L2_TOLERANCE, f"N_q / passes over K and V, B_r = {used}")
    return _doubted(run, found)


def _compulsory(run: Run, side: str) -> Verdict | None:
    """No cold run can move less than compulsory; more is the implementation's or the cache's doing."""
    floor, measured = run.value(f"dram_{side}_compulsory"), run.value(f"dram_{side}")
    name = f"DRAM {side} >= compulsory"
    if floor is None:
        return None
    if measured is None:
        return unchecked(name, _absent(run, f"dram_{side}"), floor)
    if run.timing is not None and not run.timing.cold:
        reason = "L2 was warm on purpose: tensors may be there already"
        return Verdict(check=name, status="undecided", reason=reason, expected=floor, measured=measured)
    if side == "write" and not _settled(run):
        return Verdict(
            check=name,
            status="undecided",
            reason="dirty lines that are still in L2 were not counted",
            expected=floor,
            measured=measured,
        )
    if measured >= floor > SLACK_BYTES:
        reason = "each tensor crosses at least once"
        return Verdict(check=name, status="holds", reason=reason, expected=floor, measured=measured)
    reason = "less than the tensors hold: warm cache or lost counts"
    return judge(name, floor, measured, L2_TOLERANCE, reason, SLACK_BYTES)


def _settled(run: Run) -> bool:
    """Whether the counted DRAM writes include the lines that were still dirty in L2 at the end."""
    number = run.numbers.get("dram_write")
    return number is not None and number.provenance == "measured" and "settled" in (number.reason or "")


def _dram_model(run: Run) -> Verdict | None:
    """DRAM reads as the L2 model predicts them."""
    expected, measured = run.value("dram_read_modelled"), run.value("dram_read")
    if expected is None:
        return None
    note = (run.numbers["dram_read_modelled"].reason or "L2 model").rstrip(".")
    if measured is None:
        return unchecked("DRAM read = L2 model", _absent(run, "dram_read"), expected)
    found = judge("DRAM read = L2 model", expected, measured, DRAM_MODEL_TOLERANCE, note, SLACK_BYTES)
    unsure = found.status == "violated" and IN_PART in note
    return msgspec.structs.replace(found, status="undecided") if unsure else found


def _tensor_flops(row: Implementation, io: IOModel, run: Run) -> Verdict | None:
    """FLOPs of the tensor units against what the tiles say, and why they differ from the convention."""
    issued, convention, counted = (run.value(t) for t in ("flops_issued", "flops_convention", "flops_tensor"))
    if issued is None or convention is None or run.workload.dtype == "fp32":
        return None  # fp32 products run on the vector units
    cause = flops_cause(io, run, issued / convention)
    if counted is None:
        return unchecked("tensor FLOPs = tiles", _absent(run, "flops_tensor"), issued)
    name, ratio = "tensor FLOPs = tiles", counted / issued
    if row.materialises and ratio > 1 + FLOPS_TOLERANCE:
        cause = f"{ratio:.3f}x the products: a matmul library pads its tiles, which are not known"
        return Verdict(check=name, status="undecided", reason=cause, expected=issued, measured=counted)
    if abs(ratio - 1) > FLOPS_TOLERANCE:
        cause = f"{ratio:.3f}x what the tiles execute: the model or the counter is wrong"
    return judge(name, issued, counted, FLOPS_TOLERANCE, cause)


def flops_cause(io: IOModel, run: Run, ratio: float) -> str:
    """Why the units execute `ratio` times the FLOPs of the convention."""
    if abs(ratio - 1) < FLOPS_TOLERANCE:
        return "equals the convention"
    causes = io.extra_flops(run.workload, run.uses) or ("tiles padded at the edges",)
    return f"{ratio:.3f}x the convention: {', '.join(causes)}"
