"""M, the fast memory of the IO law: what the law counts, beside what a compiled kernel holds on chip."""

from collections.abc import Callable
from typing import Final

import msgspec

from perfkit.analysis.law import LAWS, matrix_bytes, memory_of
from perfkit.ops import find_op
from perfkit.ops.attention_tiles import shared_bytes_of
from perfkit.ops.base import KernelUse
from perfkit.record import Provenance, Record, Run

THREADS_A_WARP: Final = 32
REGISTER_BYTES: Final = 4
FP32: Final = 4

#: Forward kernel -> bytes of what its products accumulate in (fp32, in registers), for a tile and a head dim.
_ACCUMULATORS: Final[dict[str, Callable[[KernelUse, int], int]]] = {
    "flash_forward": lambda tile, d: FP32 * tile.block_m * (d + tile.block_n),  # O and S
    "flash_hopper_forward": lambda tile, d: FP32 * tile.block_m * (d + tile.block_n),
    "flash1_forward": lambda tile, d: FP32 * tile.block_m * (d + tile.block_n),
    "block_sparse_forward": lambda tile, d: FP32 * tile.block_m * (d + tile.block_n),
    "square_scores": lambda tile, _: FP32 * tile.block_m * tile.block_n,
    "square_output": lambda tile, _: FP32 * tile.block_m * tile.block_n,
}


class OnChip(msgspec.Struct, frozen=True, kw_only=True):
    """One thread block of a forward kernel: bytes that it holds on chip.

    `law_bytes` is M as the law counts it, in elements of 16 bit; `shared_bytes` the shared memory, measured
    where the kernel was compiled, else modelled; `accumulator_bytes` the part of the registers that products
    accumulate in; `register_bytes` all registers, None where it was not compiled. `constant` is the factor in
    front of the law if M is shared memory and accumulators, None without a law.
    """

    impl: str
    kernel: str
    block_m: int
    block_n: int
    head_dim: int
    law_bytes: int | None
    shared_bytes: int
    shared_source: Provenance
    accumulator_bytes: int
    register_bytes: int | None
    constant: float | None


def on_chip(record: Record) -> tuple[OnChip, ...]:
    """What each forward kernel of the record holds on chip, each tile and head dim once."""
    found: dict[tuple[str, int, int, int], OnChip] = {}
    for run in record.runs:
        for use in run.uses if run.workload.pass_ != "bwd" else ():
            one = _of(record.op, run, use)
            if one is not None:
                found.setdefault((use.kernel, use.block_m, use.block_n, run.workload.head_dim), one)
    return tuple(found[key] for key in sorted(found))


def _of(op: str, run: Run, use: KernelUse) -> OnChip | None:
    d, accumulates = run.workload.head_dim, _ACCUMULATORS.get(use.kernel)
    shared = use.shared_bytes if use.shared_bytes is not None else shared_bytes_of(use, d)
    if accumulates is None or shared is None:
        return None
    memory, accumulators = memory_of(run.impl, use, d), accumulates(use, d)
    threads = THREADS_A_WARP * (use.num_warps or 0)
    return OnChip(
        impl=run.impl,
        kernel=use.kernel,
        block_m=use.block_m,
        block_n=use.block_n,
        head_dim=d,
        law_bytes=None if memory is None else memory * run.workload.element_bytes,
        shared_bytes=shared,
        shared_source="measured" if use.shared_bytes is not None else "modelled",
        accumulator_bytes=accumulators,
        register_bytes=None if use.registers is None else use.registers * REGISTER_BYTES * threads,
        constant=_constant(op, run, (shared + accumulators) / run.workload.element_bytes),
    )


def _constant(op: str, run: Run, memory: float) -> float | None:
    """Elements moved a head over N_q N_k d^b M^c with this M; None where the law is of no such run."""
    w, law, row = run.workload, LAWS.get(run.impl), find_op(op).implementation(run.impl)
    if law is None or row is None or row.io is None or w.causal or w.features or w.pass_ != "fwd":
        return None
    moved = matrix_bytes(row.io.ledger(w, run.uses), law.aside) / w.element_bytes / (w.batch * w.heads)
    leading = float(w.seq_q) * w.seq_k * w.head_dim ** law.exponents["d"] * memory ** law.exponents["M"]
    return float(moved / leading)
