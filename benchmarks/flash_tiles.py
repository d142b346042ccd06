"""Sweep of tile shapes for the flash kernels on one GPU, beside torch's kernels in the same run.

    python benchmarks/flash_tiles.py [--only fwd|bwd] [--dims 64,128,256] [--seq 16384] [--out tiles.json]

bf16, B = 1, heads * d = 2048, N_q = N_k. Candidates are compiled in parallel, each is checked against torch's
SDPA and timed (median of `do_bench`). TFLOP/s by convention: 4 N^2 d h forward, backward x 2.5, causal half.
A single backward kernel's rate counts the matmuls that it runs: 8 N^2 d h for dK/dV, 6 N^2 d h for dQ.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
from torch import Tensor

from perfkit.kernels.attention import flash, flash_backward, sdpa
from perfkit.kernels.attention.tiles import Tile, backward_tiles, forward_tile
from perfkit.kernels.attention.use import KernelUse

WIDTH = 2048
TOLERANCE = 2e-2
"""Largest |a - b| / |b| (Frobenius) against torch's bf16 kernels; right results differ by about 5e-3."""

FORWARD = {
    64: [(128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 4, 2), (128, 64, 4, 3), (128, 128, 4, 2),
         (64, 128, 4, 3), (64, 256, 8, 2), (64, 256, 4, 2), (128, 32, 4, 3),
         (64, 128, 4, 2), (64, 64, 4, 3), (256, 64, 8, 2), (256, 128, 8, 2), (128, 64, 8, 2),
         (128, 64, 8, 3)],
    128: [(128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2),
          (128, 64, 4, 3), (128, 32, 4, 3), (64, 64, 4, 2), (64, 128, 4, 2), (256, 64, 8, 2),
          (256, 32, 8, 3)],
    256: [(128, 64, 8, 2), (128, 32, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2), (64, 32, 4, 2), (64, 64, 8, 2)],
}  # fmt: skip
DKDV = {
    64: [(64, 128, 8, 2), (64, 128, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 128, 8, 2), (128, 64, 8, 2),
         (32, 128, 4, 2), (32, 64, 4, 2), (32, 128, 8, 3)],
    128: [(64, 128, 8, 2), (64, 128, 8, 3), (64, 128, 8, 1), (32, 128, 8, 2), (32, 128, 8, 3), (64, 64, 4, 2),
          (64, 64, 8, 2), (32, 64, 4, 2), (64, 64, 8, 3)],
    256: [(32, 64, 8, 2), (32, 64, 8, 3), (64, 64, 8, 2), (16, 64, 8, 2), (32, 64, 8, 1)],
}  # fmt: skip
DQ = {
    64: [(128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2), (64, 128, 4, 2),
         (256, 64, 8, 2)],
    128: [(128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 2), (128, 32, 8, 2),
          (64, 128, 4, 2), (128, 32, 4, 2)],
    256: [(128, 32, 8, 2), (64, 64, 8, 2), (64, 64, 8, 1), (64, 32, 4, 2), (64, 32, 8, 2), (128, 64, 8, 1)],
}  # fmt: skip
TABLES = {"fwd": FORWARD, "dkdv": DKDV, "dq": DQ}
MATMUL_FLOPS = {"fwd": 4, "dkdv": 8, "dq": 6}


class Candidate(NamedTuple):
    """One kernel with one tile; `descriptors` False reads through plain pointers instead of TMA."""

    kernel: str
    head_dim: int
    causal: bool
    tile: Tile
    descriptors: bool | None


class Problem(NamedTuple):
    """Inputs, and what a right kernel gives: out and grads by torch's kernels, LSE and D by these."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    out: Tensor
    grads: tuple[Tensor, Tensor, Tensor]
    lse: Tensor
    delta: Tensor


def candidates(dims: list[int], only: str | None) -> list[Candidate]:
    """All candidates of the sweep, and for each table entry the same tile without TMA."""
    kernels = {"fwd": ["fwd"], "bwd": ["dkdv", "dq"], None: ["fwd", "dkdv", "dq"]}[only]
    found = []
    for head_dim in dims:
        for causal in (False, True):
            for kernel in kernels:
                tabled = table_tile(kernel, head_dim, causal)
                tiles = dict.fromkeys([tabled, *(Tile(*t) for t in TABLES[kernel][head_dim])])
                found += [Candidate(kernel, head_dim, causal, tile, None) for tile in tiles]
                found.append(Candidate(kernel, head_dim, causal, tabled, False))
    return found


def table_tile(kernel: str, head_dim: int, causal: bool) -> Tile:
    """What `tiles.py` holds for compute capability 9.0."""
    if kernel == "fwd":
        return forward_tile(head_dim, (9, 0), causal)
    return backward_tiles(head_dim, (9, 0), causal)[kernel == "dq"]


def run(candidate: Candidate, p: Problem, uses: list[KernelUse] | None = None) -> tuple[Tensor, ...]:
    """The candidate's outputs: (out,), (dk, dv) or (dq,)."""
    options: dict[str, Any] = {"tile": candidate.tile, "descriptors": candidate.descriptors, "uses": uses}
    if candidate.kernel == "fwd":
        return flash.forward(p.q, p.k, p.v, candidate.causal, **options)[:1]
    arguments = (p.q, p.k, p.v, p.dout, p.lse, p.delta, candidate.causal)
    if candidate.kernel == "dkdv":
        return flash_backward.dkdv(*arguments, **options)
    return (flash_backward.dq(*arguments, **options),)


def expected(candidate: Candidate, p: Problem) -> tuple[Tensor, ...]:
    dq, dk, dv = p.grads
    return {"fwd": (p.out,), "dkdv": (dk, dv), "dq": (dq,)}[candidate.kernel]


def problem(head_dim: int, seq: int, causal: bool) -> Problem:
    torch.manual_seed(seq + head_dim)
    shape = (1, WIDTH // head_dim, seq, head_dim)
    q, k, v, dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = sdpa.flash(leaves[0], leaves[1], leaves[2], causal=causal)
    dq, dk, dv = torch.autograd.grad(out, leaves, dout)
    lse = flash.forward(q, k, v, causal)[1]
    return Problem(q, k, v, dout, out.detach(), (dq, dk, dv), lse, flash_backward.delta(out.detach(), dout))


def compile_one(candidate: Candidate) -> str:
    """Compiles the candidate into Triton's cache by running it on a small problem; '' or what went wrong."""
    try:
        small = torch.randn(1, 2, 512, candidate.head_dim, device="cuda", dtype=torch.bfloat16)
        row = torch.zeros(1, 2, 512, device="cuda")
        run(candidate, Problem(small, small, small, small, small, (small, small, small), row, row))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:120]
    return ""


def compile_all(sweep: list[Candidate], workers: int) -> dict[Candidate, str]:
    """Candidate -> '' or why it cannot run. Each worker is a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return dict(zip(sweep, pool.map(compile_one, sweep), strict=True))


def milliseconds(call: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(call, warmup=20, rep=60, return_mode="median"))


def measure(candidate: Candidate, p: Problem, seq: int) -> dict[str, Any]:
    """One row of the result: time, rate, registers, or the error that kept it from running."""
    row: dict[str, Any] = {**candidate._asdict(), "tile": list(candidate.tile)}
    row["tabled"] = candidate.tile == table_tile(candidate.kernel, candidate.head_dim, candidate.causal)
    try:
        uses: list[KernelUse] = []
        outputs = run(candidate, p, uses)
        pairs = zip(outputs, expected(candidate, p), strict=True)
        row["error"] = max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs)
        row |= {"registers": uses[0].registers, "spills": uses[0].spills, "shared": uses[0].shared_bytes}
        if not row["error"] < TOLERANCE:
            return row | {"failed": f"wrong: relative error {row['error']:.1e}"}
        row["ms"] = milliseconds(lambda: run(candidate, p))
    except Exception as error:
        return row | {"failed": f"{type(error).__name__}: {error}".replace("\n", " ")[:120]}
    flops = MATMUL_FLOPS[candidate.kernel] * seq**2 * WIDTH * (0.5 if candidate.causal else 1)
    return row | {"tflops": flops / row["ms"] / 1e9}


def measure_peers(p: Problem, head_dim: int, causal: bool, seq: int) -> list[dict[str, Any]]:
    """torch's kernels, forward and backward, by convention."""
    rows = []
    for name, attention in (("cudnn", sdpa.cudnn), ("fa2", sdpa.flash)):
        row: dict[str, Any] = {"peer": name, "head_dim": head_dim, "causal": causal}
        flops = 4 * seq**2 * WIDTH * (0.5 if causal else 1)
        try:
            leaves = [t.detach().requires_grad_() for t in (p.q, p.k, p.v)]
            row["fwd"] = flops / milliseconds(partial(attention, p.q, p.k, p.v, causal=causal)) / 1e9
            out = attention(leaves[0], leaves[1], leaves[2], causal=causal)
            backward = milliseconds(partial(torch.autograd.grad, out, leaves, p.dout, retain_graph=True))
            row["bwd"] = 2.5 * flops / backward / 1e9
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}".replace("\n", " ")[:120]
        rows.append(row)
    return rows


def text(rows: list[dict[str, Any]], peers: list[dict[str, Any]], delta_ms: float, seq: int) -> str:
    """The table of one (head dim, mask): the fastest first, peers and the best whole backward below."""
    lines = []
    for kernel in MATMUL_FLOPS:
        mine = sorted((r for r in rows if r["kernel"] == kernel), key=lambda r: r.get("ms", 1e9))
        for row in mine:
            tile = "x".join(map(str, row["tile"][:2])) + " w{} s{}".format(*row["tile"][2:])
            mark = ("*" if row["tabled"] else " ") + ("ptr" if row["descriptors"] is False else "   ")
            if "failed" in row:
                lines.append(f"  {kernel:4} {tile:15} {mark} {row['failed']}")
                continue
            facts = (
                f"r{row['registers']:<3} sp{row['spills']:<3} {row['shared'] // 1024:4}K e{row['error']:.0e}"
            )
            lines.append(f"  {kernel:4} {tile:15} {mark} {row['ms']:8.3f} ms {row['tflops']:6.0f}  {facts}")
    best = {
        kernel: min((r["ms"] for r in rows if r["kernel"] == kernel and "ms" in r), default=None)
        for kernel in TABLES
    }
    if best["dkdv"] and best["dq"]:
        total = delta_ms + best["dkdv"] + best["dq"]
        causal = rows[0]["causal"]
        rate = 10 * seq**2 * WIDTH * (0.5 if causal else 1) / total / 1e9
        lines.append(
            f"  bwd  best of each: D {delta_ms:.3f} + {best['dkdv']:.3f} + {best['dq']:.3f} ms = {rate:.0f}"
        )
    for peer in peers:
        rates = peer.get("failed") or f"fwd {peer['fwd']:.0f}  bwd {peer['bwd']:.0f}"
        lines.append(f"  peer {peer['peer']:6} {rates}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["fwd", "bwd"])
    parser.add_argument("--dims", default="64,128,256")
    parser.add_argument("--seq", type=int, default=16384)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dims = [int(d) for d in arguments.dims.split(",")]
    sweep = candidates(dims, arguments.only)
    failures = compile_all(sweep, arguments.workers)
    versions = f"torch {torch.__version__}  triton {triton.__version__}"
    print(f"{torch.cuda.get_device_name()}  {versions}  TFLOP/s, * = table")
    everything: list[dict[str, Any]] = []
    for head_dim in dims:
        for causal in (False, True):
            p = problem(head_dim, arguments.seq, causal)
            rows = []
            for candidate in sweep:
                if candidate.head_dim == head_dim and candidate.causal == causal:
                    row = {**candidate._asdict(), "tabled": False, "failed": failures[candidate]}
                    rows.append(row if failures[candidate] else measure(candidate, p, arguments.seq))
            peers = measure_peers(p, head_dim, causal, arguments.seq)
            delta_ms = milliseconds(partial(flash_backward.delta, p.out, p.dout))
            print(f"d {head_dim} {'causal' if causal else 'full'} N {arguments.seq}")
            print(text(rows, peers, delta_ms, arguments.seq), flush=True)
            everything += [*rows, *peers, {"kernel": "delta", "head_dim": head_dim, "ms": delta_ms}]
            if arguments.out:
                arguments.out.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
