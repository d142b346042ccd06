"""What is computed from a record: one row per metric with its tag, label, description, hint and function."""

from collections.abc import Callable
from typing import Final

import msgspec

from perfkit.analysis.io_check import implied_tile_height
from perfkit.analysis.placement import Placement
from perfkit.model.units import UNITS, Hint
from perfkit.ops.base import Level
from perfkit.record import Number, Provenance


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A derived number: its tag, how to show it, and the function of a placement that gives it.

    `levels` names the memory levels whose bytes it is computed from. `modelled` says that it follows from the
    workload by a formula, whatever was measured.
    """

    tag: str
    label: str
    hint: Hint
    description: str
    value: Callable[[Placement], float | None]
    levels: tuple[Level, ...] = ()
    modelled: bool = False


def _intensity(level: Level) -> Callable[[Placement], float | None]:
    return lambda p: point.intensity if (point := p.point(level)) else None


def _rate(level: Level) -> Callable[[Placement], float | None]:
    return lambda p: point.bytes / p.time_s if (point := p.point(level)) and p.time_s else None


def _bytes(level: Level) -> Callable[[Placement], float | None]:
    """Bytes at a level, both ways; none where only compulsory bytes are known, which are not its traffic."""
    return lambda p: point.bytes if (point := p.point(level)) and not point.upper else None


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _kv_cache(p: Placement) -> float | None:
    return p.run.workload.cache_bytes if p.run.status in ("measured", "modelled") else None


def _kv_ratio(p: Placement) -> float | None:
    w = p.run.workload
    return w.heads // w.kv_heads if p.run.status in ("measured", "modelled") else None


def exp_ceiling(p: Placement) -> float | None:
    """FLOP/s if exp and matmul took turns: FLOPs over the sum of their times at the run's clock."""
    flops, exps = p.run.value("flops_convention"), p.run.value("exps")
    if not (flops and exps and p.roof and p.roof.exp_rate):
        return None
    return flops / (flops / p.roof.compute + exps / p.roof.exp_rate)


def _m(
    tag: str,
    label: str,
    hint: Hint,
    description: str,
    value: Callable[[Placement], float | None],
    levels: tuple[Level, ...] = (),
    modelled: bool = False,
) -> Metric:
    return Metric(
        tag=tag,
        label=label,
        hint=hint,
        description=description,
        value=value,
        levels=levels,
        modelled=modelled,
    )


_BOTH: Final[tuple[Level, ...]] = ("DRAM", "L2")

METRICS: Final[tuple[Metric, ...]] = (
    _m("achieved", "achieved", "flop_rate", "FLOPs of the convention over the time", lambda p: p.achieved),
    _m(
        "intensity_dram", "intensity, DRAM", "intensity",
        "FLOPs of the convention per DRAM byte", _intensity("DRAM"), ("DRAM",),
    ),
    _m(
        "intensity_l2", "intensity, SM<->L2", "intensity",
        "FLOPs of the convention per SM<->L2 byte", _intensity("L2"), ("L2",),
    ),
    _m("dram_bytes", "DRAM bytes", "bytes", "DRAM bytes read and written", _bytes("DRAM"), ("DRAM",)),
    _m("l2_bytes", "SM<->L2 bytes", "bytes", "SM<->L2 bytes read and written", _bytes("L2"), ("L2",)),
    _m("dram_rate", "DRAM rate", "byte_rate", "DRAM bytes over the time", _rate("DRAM"), ("DRAM",)),
    _m("l2_rate", "SM<->L2 rate", "byte_rate", "SM<->L2 bytes over the time", _rate("L2"), ("L2",)),
    _m(
        "attainable_datasheet", "attainable, data sheet", "flop_rate",
        "the lowest roof at this intensity, data sheet's clock",
        lambda p: p.attainable(p.datasheet), _BOTH,
    ),
    _m(
        "attainable_clock", "attainable, run clock", "flop_rate",
        "the lowest roof at this intensity, at the clock of the samples",
        lambda p: p.attainable(p.roof), _BOTH,
    ),
    _m(
        "efficiency_datasheet", "of data sheet", "percent",
        "achieved over attainable at the data sheet's clock",
        lambda p: _share(p.achieved, p.attainable(p.datasheet)), _BOTH,
    ),
    _m(
        "efficiency_clock", "of run clock", "percent", "achieved over attainable at the run's clock",
        lambda p: _share(p.achieved, p.attainable(p.roof)), _BOTH,
    ),
    _m(
        "exp_ceiling", "exp ceiling", "flop_rate",
        "if exp and matmul took turns, at the run's clock", exp_ceiling,
    ),
    _m(
        "efficiency_exp", "of exp ceiling", "percent",
        "achieved over the exp ceiling; above 100 % they overlap",
        lambda p: _share(p.achieved, exp_ceiling(p)),
    ),
    _m(
        "flops_overhead", "FLOPs over convention", "ratio",
        "FLOPs executed (issued, where they were not counted) over the convention's",
        lambda p: _share(_executed(p), p.run.value("flops_convention")),
    ),
    _m(
        "tile_height", "implied tile height", "rows",
        "rows of Q per pass over K and V, from the counter",
        lambda p: implied_tile_height(p.run), ("L2",),
    ),
    _m(
        "kv_cache", "K/V cache", "bytes",
        "K and V of all tokens, those of a shared prefix once", _kv_cache, modelled=True,
    ),
    _m(
        "kv_ratio", "query heads a K/V head", "count",
        "h / h_kv: so many times smaller is the K/V cache", _kv_ratio, modelled=True,
    ),
)  # fmt: skip


def _executed(p: Placement) -> float | None:
    return p.run.value("flops_tensor") or p.run.value("flops_issued")


def metric_number(metric: Metric, placement: Placement) -> Number:
    """The value of `metric`, as good as the worst of what it was computed from."""
    value = metric.value(placement)
    unit = UNITS[metric.hint]
    if value is None:
        reason = "no time was measured" if placement.time_s is None else "an input of it is unavailable"
        return Number(value=None, unit=unit, provenance="unavailable", reason=reason)
    used = [point for point in placement.points if point.level in metric.levels]
    modelled = metric.modelled or any(point.provenance != "measured" for point in used)
    provenance: Provenance = "modelled" if placement.time_s is None or modelled else "measured"
    return Number(value=value, unit=unit, provenance=provenance)
