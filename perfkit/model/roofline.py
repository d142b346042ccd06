"""The roofline: attainable rate as the minimum of a compute roof and bandwidth roofs.

Source: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009; the hierarchical form draws one
bandwidth roof per memory level, with one intensity per level.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

Bound = Literal["compute", "exp", "DRAM", "L2", "overhead"]

#: Least time of one kernel, from start to drain, on a GPU of the last ten years: an op of k launches
#: cannot take less than k times this, whatever it computes.
LAUNCH_S: Final = 2.5e-6


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """The least time in seconds that one resource needs for the work: work / rate of the resource."""

    resource: Bound
    time_s: float


def attainable(intensity: float, compute: float, bandwidth: float) -> float:
    """Attainable FLOP/s at `intensity` (FLOP/byte) under `compute` (FLOP/s) and `bandwidth` (byte/s)."""
    return min(compute, intensity * bandwidth)


def floors(work: Mapping[Bound, tuple[float, float | None]], *, launches: int) -> tuple[Floor, ...]:
    """The floor of every resource, longest first; the first one is the bound.

    `work` gives per resource the amount and the rate per second (FLOP, exp, bytes); a resource whose rate
    is unknown (None) has no floor. Launching is a resource too: `launches` kernels at LAUNCH_S.
    """
    rows = [Floor(resource=name, time_s=amount / rate) for name, (amount, rate) in work.items() if rate]
    rows.append(Floor(resource="overhead", time_s=launches * LAUNCH_S))
    return tuple(sorted(rows, key=lambda row: -row.time_s))
