"""Where the time went: a measured time split into parts that add up to it."""

import msgspec

from perfkit.analysis.placement import Placement


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a measured time, in seconds, and what it means."""

    name: str
    time_s: float
    description: str


def losses(placement: Placement) -> tuple[Loss, ...]:
    """The parts of the measured time, in the order in which they are taken off; they add up exactly.

    ideal: the FLOPs of the convention at the data sheet's peak. clock: what the run's clock adds (negative
    where the chip boosted past the data sheet). extra FLOPs: masked tiles, recomputation, padding. memory:
    what the slowest memory level needs beyond all that. exp: the special function units' time, as far as
    it is not hidden behind the rest. rest: everything else.
    """
    time_s, run = placement.time_s, placement.run
    sheet, roof = placement.datasheet, placement.roof
    flops = run.value("flops_convention")
    if not (time_s and sheet and roof and flops) or placement.invalid:
        return ()
    issued = run.value("flops_tensor") or run.value("flops_issued") or flops
    ideal = flops / sheet.compute
    at_clock = flops / roof.compute
    compute = max(issued, flops) / roof.compute
    slowest = max((row.time_s for row in placement.floors if row.resource in ("DRAM", "L2")), default=0.0)
    memory = min(max(0.0, slowest - compute), max(0.0, time_s - compute))
    left = time_s - compute - memory
    exp_s = (run.value("exps") or 0) / roof.exp_rate if roof.exp_rate else 0.0
    exp = max(0.0, min(exp_s, left))
    mhz = f"{roof.clock_hz / 1e6:.0f} MHz against the data sheet's {sheet.clock_hz / 1e6:.0f}"
    return (
        Loss(name="ideal", time_s=ideal, description="the convention's FLOPs at the data sheet's peak"),
        Loss(name="clock, power", time_s=at_clock - ideal, description=mhz),
        Loss(
            name="extra FLOPs", time_s=compute - at_clock, description="masked tiles, recomputation, padding"
        ),
        Loss(name="memory", time_s=memory, description="the slowest memory level beyond the FLOPs"),
        Loss(name="exp", time_s=exp, description="special function units, if nothing hid them"),
        Loss(name="rest", time_s=left - exp, description="latency, imbalance, everything not modelled"),
    )
