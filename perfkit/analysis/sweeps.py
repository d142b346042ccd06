"""Which workloads and tiles show the IO law: one variable varied, the others fixed.

Executing kernels in an interpreter is slow, so that counted sweeps are shorter; `flash1` is one program a
head there. Lengths are such that the terms of lower order move no exponent by 0.01.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Uses
from perfkit.record import Run

Variable = Literal["N", "d", "M"]
VARIABLES: Final[tuple[Variable, ...]] = ("N", "d", "M")
Source = Literal["modelled", "counted", "measured"]

#: Rows of queries and of keys.
Tile = tuple[int, int]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The points of the sweeps of one implementation.

    `lengths` of N at `head_dim` and a tile of `size`; `head_dims` at `length` with tiles of `elements` / d
    (`size` where that is None); `sizes` at `length` and `head_dim`. `tile` makes a tile of a size; None where
    there is none.
    """

    lengths: tuple[int, ...]
    head_dims: tuple[int, ...]
    sizes: tuple[int, ...]
    length: int
    head_dim: int = 64
    size: int = 64
    elements: int | None = 4096
    tile: Callable[[int], Tile] | None = None


def _rows(size: int) -> Tile:
    return size, 64


def _columns(size: int) -> Tile:
    return 64, size


def _short_columns(size: int) -> Tile:
    return 256, size


def _square(size: int) -> Tile:
    return size, size


_LENGTHS: Final = (8192, 16384, 32768, 65536)

#: Tiles that are chosen are those of the portable kernels, on any device.
_FA2: Final = (
    Plan(lengths=_LENGTHS, head_dims=(32, 64, 128), sizes=(32, 64, 128, 256), length=65536, tile=_rows),
    Plan(
        lengths=(4096, 8192, 16384, 32768),
        head_dims=(32, 64, 128),
        sizes=(32, 64, 128, 256),
        length=32768,
        tile=_rows,
    ),
)

#: Implementation -> (the plan for what is modelled and measured, the plan for what is counted).
PLANS: Final[dict[str, tuple[Plan, Plan]]] = {
    "standard": (
        # Longer rows do not fit an SM, and softmax reads them again.
        Plan(lengths=(8192, 12288, 16384, 24576, 32768), head_dims=(32, 64, 128), sizes=(), length=32768),
        Plan(lengths=(4096, 8192, 16384), head_dims=(32, 64, 128), sizes=(), length=8192),
    ),
    "flash1": (
        # Tiles of 16 keys on a GPU: the compiler has threads read some of them twice, 2 % more bytes.
        Plan(
            lengths=(4096, 8192, 16384, 32768), head_dims=(32, 64, 128), sizes=(32, 64, 128, 256),
            length=16384, tile=_columns,
        ),
        Plan(
            lengths=(1024, 2048, 4096), head_dims=(16, 32, 64), sizes=(16, 32, 64), length=4096,
            size=16, elements=1024, tile=_short_columns,
        ),
    ),
    "flash": _FA2,
    "flash-triton": _FA2,
    # Heads so wide that M < d^2, and that the two passes over S weigh little.
    "square": (
        Plan(
            lengths=(4096, 8192, 16384), head_dims=(256, 512, 1024), sizes=(16, 32, 64, 128),
            length=8192, head_dim=512, size=32, elements=None, tile=_square,
        ),
        Plan(
            lengths=(1024, 2048, 4096), head_dims=(128, 256, 512), sizes=(16, 32, 64, 128),
            length=2048, head_dim=128, size=32, elements=None, tile=_square,
        ),
    ),
}  # fmt: skip


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a sweep: the workload, and the tiles (none where nothing is tiled)."""

    workload: AttentionWorkload
    uses: Uses

    @property
    def tile(self) -> Tile | None:
        """(block_m, block_n), the same for all kernels."""
        return (self.uses[0].block_m, self.uses[0].block_n) if self.uses else None

    def is_of(self, run: Run) -> bool:
        """Whether `run` is this trial, whatever dtype it ran in."""
        if msgspec.structs.replace(run.workload, dtype=self.workload.dtype) != self.workload:
            return False
        ran = {use.kernel: (use.block_m, use.block_n) for use in run.uses}
        return all(ran.get(use.kernel) == (use.block_m, use.block_n) for use in self.uses)


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """One variable varied, the others fixed."""

    impl: str
    variable: Variable
    trials: tuple[Trial, ...]


def sweeps(row: Implementation, source: Source) -> tuple[Sweep, ...]:
    """The sweeps over N, over d at fixed on-chip bytes, and over M; none for what has no plan."""
    plans = PLANS.get(row.name)
    if plans is None:
        return ()
    plan = plans[source == "counted"]
    by_width = [(d, (plan.elements // d) if plan.elements else plan.size) for d in plan.head_dims]
    points: dict[Variable, list[Trial]] = {
        "N": [_trial(row, plan, n, plan.head_dim, plan.size) for n in plan.lengths],
        "d": [_trial(row, plan, plan.length, d, size) for d, size in by_width],
        "M": [_trial(row, plan, plan.length, plan.head_dim, size) for size in plan.sizes],
    }
    return tuple(
        Sweep(impl=row.name, variable=variable, trials=tuple(trials))
        for variable, trials in points.items()
        if trials
    )


def _trial(row: Implementation, plan: Plan, length: int, head_dim: int, size: int) -> Trial:
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=length, seq_k=length, head_dim=head_dim)
    if plan.tile is None or row.io is None:
        return Trial(workload=w, uses=())
    block_m, block_n = plan.tile(size)
    tiled = row.io.tiled(w, ())
    return Trial(
        workload=w,
        uses=tuple(KernelUse(kernel=kernel, block_m=block_m, block_n=block_n) for kernel in tiled),
    )


def trials(row: Implementation, sources: tuple[Source, ...]) -> tuple[Trial, ...]:
    """Every trial of the sweeps for `sources`, each once."""
    found: dict[tuple[AttentionWorkload, Tile | None], Trial] = {}
    for source in sources:
        for sweep in sweeps(row, source):
            for trial in sweep.trials:
                found.setdefault((trial.workload, trial.tile), trial)
    return tuple(found.values())
