"""The IO law O(N^2 d^2 / M): how the traffic of an implementation grows with N, d and on-chip memory M.

FA1 = Dao et al., arXiv 2205.14135; FA2 = Dao, arXiv 2307.08691; SY = Saha and Ye, arXiv 2402.07443. One
head, full mask, forward. M counts the elements that stay on chip while the loop passes over everything else:
for the order of FA2 the tiles of Q and O, for that of FA1 the tiles of K and V and as much again for Q and O
(its B_c = M / 4d). The law is of the leading term: tensors of lower order are set aside.
"""

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from perfkit.analysis.sweeps import VARIABLES, Source, Sweep, Trial, Variable, sweeps
from perfkit.analysis.verdict import Verdict
from perfkit.model.fit import PowerLaw, fit_power
from perfkit.ops import find_op
from perfkit.ops.base import Implementation, KernelUse, Ledger, Level, total
from perfkit.record import Record, Run

#: How far a fitted exponent may lie from the law: counted and modelled bytes are exact, counters are not.
EXACT_TOLERANCE: Final = 0.01
MEASURED_TOLERANCE: Final = 0.05

#: Tensors with one number a row.
STATISTICS: Final = frozenset({"LSE", "D", "l", "m"})
#: Points that a fit needs.
LEAST_POINTS: Final = 3


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """What theory says of one implementation: exponents, and the constant in front in elements of 16 bit.

    `memory` is M in elements for a tile and a head dim (None: nothing stays on chip). Traffic in elements
    tends to constant * N_q N_k d^exponent M^exponent. `aside` names the tensors of lower order.
    """

    memory: Callable[[KernelUse, int], int] | None
    constant: float
    exponents: dict[Variable, float]
    source: str
    aside: frozenset[str] = STATISTICS


_FA2: Final = Law(
    memory=lambda tile, d: 2 * d * tile.block_m,
    constant=4.0,
    exponents={"N": 2.0, "d": 2.0, "M": -1.0},
    source="FA2 Algorithm 1 with tiles of Q and O in M: 4 N^2 d^2 / M",
)

LAWS: Final[dict[str, Law]] = {
    "standard": Law(
        memory=None, constant=4.0, exponents={"N": 2.0, "d": 0.0, "M": 0.0},
        source="FA1 section 2.2: 4 N^2 + 4 N d",
    ),
    "flash1": Law(
        memory=lambda tile, d: 4 * d * tile.block_n,
        constant=20.0, exponents={"N": 2.0, "d": 2.0, "M": -1.0},
        source="FA1 Algorithm 1 with B_c = M / 4d: 12 N^2 d^2 / M, and 20 where O is fp32 between blocks",
    ),
    "flash": _FA2,
    "flash-triton": _FA2,
    "flash-hopper": _FA2,
    "square": Law(
        memory=lambda tile, _: tile.block_m * tile.block_n,
        constant=4.0, exponents={"N": 2.0, "d": 1.0, "M": -0.5},
        source="SY Theorem 3.1: 4 N^2 d / sqrt(M), and 2 N^2 to write S and to read it once",
        aside=STATISTICS | {"S"},
    ),
}  # fmt: skip


class FittedLaw(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep with the bytes of its trials at one level, the fit, and the verdict on its exponent.

    `xs` are the values of the variable, for M in elements; `law` is theory's exponent, None at a level that
    it says nothing about; `constant` the factor in front at the last point, None there too.
    """

    sweep: Sweep
    source: Source
    level: Level
    xs: tuple[float, ...]
    traffic: tuple[float, ...]
    fit: PowerLaw
    law: float | None
    constant: float | None
    verdict: Verdict


def memory_of(impl: str, tile: KernelUse, head_dim: int) -> int | None:
    """M in elements as the law of `impl` counts it; None without a law or without a tile."""
    law = LAWS.get(impl)
    return None if law is None or law.memory is None else law.memory(tile, head_dim)


def matrix_bytes(ledger: Ledger, aside: frozenset[str] = STATISTICS) -> float:
    """Bytes in a ledger, read and written, without the tensors that are set aside."""
    moved = total(entry for entry in ledger if entry.tensor not in aside)
    return float(moved.read_bytes + moved.write_bytes)


def laws(record: Record) -> tuple[FittedLaw, ...]:
    """Every sweep of which the record has enough runs, fitted to modelled, counted and measured bytes."""
    return tuple(_laws(record))


def _laws(record: Record) -> Iterator[FittedLaw]:
    op = find_op(record.op)
    for impl in LAWS:
        row = op.implementation(impl)
        if row is None or row.io is None:
            continue
        runs = [run for run in record.runs if run.impl == impl]
        for source, level in _told(row.io.level):
            for sweep in sweeps(row, source):
                found = [_point(row, trial, runs, source, level) for trial in sweep.trials]
                known = [point for point in found if point is not None]
                if len(known) >= LEAST_POINTS:
                    kept = msgspec.structs.replace(sweep, trials=tuple(trial for trial, _ in known))
                    yield fitted(kept, tuple(value for _, value in known), source, level, row.io.level)


def _told(own: Level) -> tuple[tuple[Source, Level], ...]:
    return ("modelled", own), ("counted", own), ("measured", "L2"), ("measured", "DRAM")


def _point(
    row: Implementation, trial: Trial, runs: list[Run], source: Source, level: Level
) -> tuple[Trial, float] | None:
    """The trial with the workload that ran, and its bytes; None where there is no such run or no bytes."""
    run = next((run for run in runs if trial.is_of(run)), None)
    if run is None or row.io is None:
        return None
    aside = LAWS[row.name].aside
    if source == "modelled":
        value: float | None = matrix_bytes(row.io.ledger(run.workload, run.uses), aside)
    elif source == "counted":
        value = matrix_bytes(run.counted, aside)
    else:
        value = run.moved(level)
    return (msgspec.structs.replace(trial, workload=run.workload), value) if value else None


def fitted(sweep: Sweep, traffic: tuple[float, ...], source: Source, level: Level, own: Level) -> FittedLaw:
    """The law through the bytes of every trial, and whether the exponent is that of theory.

    `own` is the level at which the law of the implementation holds.
    """
    law = LAWS[sweep.impl]
    xs = tuple(_x(law, sweep.variable, trial) for trial in sweep.trials)
    fit = fit_power(xs, traffic)
    expected = law.exponents[sweep.variable] if level == own else None
    return FittedLaw(
        sweep=sweep,
        source=source,
        level=level,
        xs=xs,
        traffic=traffic,
        fit=fit,
        law=expected,
        constant=None if expected is None else _constant(law, sweep.trials[-1], traffic[-1]),
        verdict=_verdict(sweep, law, fit, source, expected),
    )


def _x(law: Law, variable: Variable, trial: Trial) -> float:
    w = trial.workload
    if variable == "M":
        assert law.memory is not None
        return float(law.memory(trial.uses[0], w.head_dim))
    return float(w.seq_q if variable == "N" else w.head_dim)


def _verdict(sweep: Sweep, law: Law, fit: PowerLaw, source: Source, expected: float | None) -> Verdict:
    check = f"{source} bytes of {sweep.impl} against {sweep.variable}"
    if expected is None:
        reason = "the law is of another level of the memory hierarchy"
        return Verdict(check=check, status="found", reason=reason, measured=fit.exponent)
    tolerance = MEASURED_TOLERANCE if source == "measured" else EXACT_TOLERANCE
    near = abs(fit.exponent - expected) <= tolerance
    off = f"{fit.exponent - expected:+.4f} from the law, within {tolerance} is as it says"
    return Verdict(
        check=check,
        status="holds" if near else "violated",
        reason=f"{off}; {law.source}",
        expected=expected,
        measured=fit.exponent,
        tolerance=tolerance,
    )


def _constant(law: Law, trial: Trial, traffic_bytes: float) -> float:
    """Elements over the law's leading term without its constant."""
    w = trial.workload
    leading = float(w.seq_q) * w.seq_k * w.head_dim ** law.exponents["d"]
    if law.memory is not None:
        leading *= law.memory(trial.uses[0], w.head_dim) ** law.exponents["M"]
    return float(traffic_bytes / w.element_bytes / leading)


__all__ = ["LAWS", "VARIABLES", "FittedLaw", "Law", "laws", "matrix_bytes", "memory_of"]
