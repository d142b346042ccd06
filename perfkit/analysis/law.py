"""The IO law O(N^2 d^2 / M): how the traffic of an implementation grows with N, d and on-chip memory M.

FA1 = Dao et al., arXiv 2205.14135; FA2 = Dao, arXiv 2307.08691. One head, full mask, forward. M counts the
elements that stay on chip while the loop passes over everything else: for the order of FA2 the tiles of Q and
O, for that of FA1 the tiles of K and V and as much again for Q and O (its B_c = M / 4d). The law is of the
matrices: statistics (LSE, l and m: some bytes a row, whatever d is) are left out.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from perfkit.analysis.verdict import Verdict
from perfkit.model.fit import PowerLaw, fit_power
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Ledger, Uses, total

Variable = Literal["N", "d", "M"]
VARIABLES: Final[tuple[Variable, ...]] = ("N", "d", "M")

#: How far a fitted exponent may lie from the law: counted and modelled bytes are exact, counters are not.
EXACT_TOLERANCE: Final = 0.01
MEASURED_TOLERANCE: Final = 0.05

#: Tensors with one number a row.
STATISTICS: Final = frozenset({"LSE", "D", "l", "m"})

LENGTHS: Final = (8192, 16384, 32768, 65536)
HEAD_DIMS: Final = (32, 64, 128)
SIZES: Final = (32, 64, 128, 256)
#: Where the other two variables stand: N of the sweeps over d and M, and B d of the sweep over d.
LENGTH: Final = 65536
HEAD_DIM: Final = 64
SIZE: Final = 64
TILE_ELEMENTS: Final = 4096
OTHER_SIZE: Final = 64


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """What theory says of one implementation: exponents, the constant in front (elements of 16 bit), and M.

    `tile` names the side of the tile that M is spent on (None: nothing stays on chip), `resident` how many
    elements a row of that tile and column of d costs: M = resident * tile * d. Traffic in elements tends to
    constant * N^2 d^2 / M, or constant * N^2 where there is no tile.
    """

    tile: Literal["block_m", "block_n"] | None
    resident: int
    constant: float
    exponents: dict[Variable, float]
    source: str


LAWS: Final[dict[str, Law]] = {
    "standard": Law(
        tile=None, resident=0, constant=4.0, exponents={"N": 2.0, "d": 0.0, "M": 0.0},
        source="FA1 section 2.2: 4 N^2 + 4 N d",
    ),
    "flash1": Law(
        tile="block_n", resident=4, constant=20.0, exponents={"N": 2.0, "d": 2.0, "M": -1.0},
        source="FA1 Algorithm 1 with B_c = M / 4d: 12 N^2 d^2 / M, and 20 where O is fp32 between blocks",
    ),
    "flash": Law(
        tile="block_m", resident=2, constant=4.0, exponents={"N": 2.0, "d": 2.0, "M": -1.0},
        source="FA2 Algorithm 1 with tiles of Q and O in M: 4 N^2 d^2 / M",
    ),
}  # fmt: skip


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a sweep: the variable's value, the workload, the tiles, and M in elements (0: none)."""

    x: float
    workload: AttentionWorkload
    uses: Uses
    memory: float


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """One variable varied, the others fixed."""

    impl: str
    variable: Variable
    trials: tuple[Trial, ...]


class FittedLaw(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep with its bytes, the fit, the law's exponent, and the verdict on it.

    `constant` is the factor in front at the last point: its elements over N^2 d^2 / M (over N^2 without M).
    """

    sweep: Sweep
    traffic: tuple[float, ...]
    fit: PowerLaw
    law: float
    constant: float
    verdict: Verdict


def sweeps(row: Implementation) -> tuple[Sweep, ...]:
    """The sweeps over N, over d at fixed on-chip bytes, and over M; none for what has no law."""
    law = LAWS.get(row.name)
    if law is None:
        return ()
    by_length = [(float(n), n, HEAD_DIM, SIZE) for n in LENGTHS]
    by_width = [(float(d), LENGTH, d, TILE_ELEMENTS // d) for d in HEAD_DIMS]
    by_size = [(float(max(law.resident, 1) * b * HEAD_DIM), LENGTH, HEAD_DIM, b) for b in SIZES]
    points = {"N": by_length, "d": by_width, "M": by_size}
    return tuple(
        Sweep(
            impl=row.name,
            variable=variable,
            trials=tuple(_trial(row, law, *point) for point in points[variable]),
        )
        for variable in VARIABLES
    )


def _trial(row: Implementation, law: Law, x: float, length: int, head_dim: int, size: int) -> Trial:
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=length, seq_k=length, head_dim=head_dim)
    assert row.io is not None
    sides = {"block_m": OTHER_SIZE, "block_n": OTHER_SIZE}
    if law.tile is not None:
        sides[law.tile] = size
    uses = tuple(KernelUse(kernel=kernel, **sides) for kernel in row.io.tiled(w)) if law.tile else ()
    return Trial(x=x, workload=w, uses=uses, memory=float(law.resident * size * head_dim))


def matrix_bytes(ledger: Ledger) -> float:
    """Bytes of the matrices in a ledger, read and written."""
    moved = total(entry for entry in ledger if entry.tensor not in STATISTICS)
    return float(moved.read_bytes + moved.write_bytes)


def modelled(row: Implementation, trial: Trial) -> float:
    """Bytes of one trial by the closed form."""
    assert row.io is not None
    return matrix_bytes(row.io.ledger(trial.workload, trial.uses))


def fitted(
    sweep: Sweep, traffic_of: Callable[[Trial], float], source: Literal["modelled", "counted", "measured"]
) -> FittedLaw:
    """The law through the bytes of every trial, and whether the exponent is that of theory."""
    law = LAWS[sweep.impl]
    found = tuple(traffic_of(trial) for trial in sweep.trials)
    fit = fit_power([trial.x for trial in sweep.trials], found)
    expected = law.exponents[sweep.variable]
    tolerance = MEASURED_TOLERANCE if source == "measured" else EXACT_TOLERANCE
    near = abs(fit.exponent - expected) <= tolerance
    off = f"{fit.exponent - expected:+.4f} from the law, within {tolerance} is as it says"
    return FittedLaw(
        sweep=sweep,
        traffic=found,
        fit=fit,
        law=expected,
        constant=_constant(law, sweep.trials[-1], found[-1]),
        verdict=Verdict(
            check=f"{source} bytes ~ {sweep.variable}^{expected:g}",
            status="holds" if near else "violated",
            reason=f"{off}; {law.source}",
            expected=expected,
            measured=fit.exponent,
            tolerance=tolerance,
        ),
    )


def _constant(law: Law, trial: Trial, traffic_bytes: float) -> float:
    """Elements over the law's leading term without its constant."""
    w = trial.workload
    leading = float(w.seq_q) * w.seq_k
    if law.tile is not None:
        leading *= w.head_dim**2 / trial.memory
    return traffic_bytes / w.element_bytes / leading


def fit_all(row: Implementation) -> tuple[FittedLaw, ...]:
    """Every sweep of an implementation by its closed form."""
    return tuple(fitted(sweep, lambda trial: modelled(row, trial), "modelled") for sweep in sweeps(row))
