"""The Hopper backward kernels on one GPU: are they right, and how fast are they beside the others?

    python benchmarks/hopper_backward.py [--only check|time] [--names NAME,...] [--cells 64x2048f,...]

Each variant is checked against float32 gradients in a process of its own, all at once, with a time limit.
Those that were right are then timed together, interleaved with cuDNN and the portable Triton kernels, cold
L2. bf16, heads * d = 2048, batch * N = 16384, TFLOP/s by convention: 10 N^2 d h B, causal half. All include
D, conversions and clearing.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CHECK_S, TIME_S = 60.0, 60.0
"""The longest that a child process may take, in seconds: imports, compilation and work."""

# Name -> head dim, deterministic, (block_m, stages, block_n, stages_n, early).
VARIANTS: dict[str, tuple[int, bool, tuple[int, int, int, int, bool]]] = {
    "64": (64, False, (128, 2, 128, 2, False)),
    "64-s3": (64, False, (128, 3, 128, 2, False)),
    "64-det": (64, True, (128, 2, 128, 2, False)),
    "128": (128, False, (64, 2, 128, 2, True)),
    "128-s3": (128, False, (64, 3, 128, 2, True)),
    "128-late": (128, False, (64, 2, 128, 2, False)),
    "128-det": (128, True, (64, 2, 128, 2, True)),
}


class Problem(NamedTuple):
    """Sizes of one check; `less_dim` columns fewer than the tile holds; scores near -away^2 sqrt(d)."""

    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    causal: bool
    dtype: str = "bfloat16"
    less_dim: int = 0
    away: float = 0.0


CHECKS = [
    Problem(1, 1, 1, 64, 128, False),
    Problem(1, 2, 2, 128, 128, True),
    Problem(1, 2, 1, 113, 203, False),
    Problem(2, 4, 2, 203, 113, True),
    Problem(1, 3, 3, 1, 777, True),
    Problem(1, 4, 4, 500, 17, True),
    Problem(1, 2, 2, 200, 130, False, away=5.0),  # a weight of a key beyond N_k would be inf
    Problem(2, 4, 1, 384, 1500, True, "float16"),
    Problem(1, 4, 2, 777, 1024, False, "float16"),
    Problem(2, 6, 3, 511, 1500, True, "bfloat16", 8),
    Problem(1, 4, 4, 1024, 1024, False),
    Problem(1, 8, 2, 4096, 4096, True),
]
CELLS = [(d, n, causal) for d in (64, 128) for n in (2048, 16384) for causal in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["check", "time"])
    parser.add_argument("--names", default=",".join(VARIANTS))
    parser.add_argument("--cells", default=",".join(cell_name(*cell) for cell in CELLS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--child", choices=["check", "warm", "time"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [name for name in arguments.names.split(",") if name]
    if arguments.child == "check":
        check(names[0])
    elif arguments.child == "warm":
        warm(arguments.cells)
    elif arguments.child == "time":
        time_cells(names, arguments.cells.split(","), arguments.rounds)
    else:
        began = time.perf_counter()
        if arguments.only != "time":
            names = check_all(names)
            print(f"right: {' '.join(names) or 'none'}  ({time.perf_counter() - began:.0f} s)", flush=True)
        if arguments.only != "check":
            _, output = child(TIME_S, "--child", "time", "--names", ",".join(names),
                              "--cells", arguments.cells, "--rounds", str(arguments.rounds))  # fmt: skip
            print(output)
        print(f"{time.perf_counter() - began:.0f} s in all", flush=True)


def cell_name(head_dim: int, seq: int, causal: bool) -> str:
    return f"{head_dim}x{seq}{'c' if causal else 'f'}"


def child(limit_s: float, *options: str) -> tuple[bool, str]:
    """(whether it ended by itself and well, its output) of this script in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-u", __file__, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode == 0, output.rstrip()
    except subprocess.TimeoutExpired:
        process.kill()
        return False, process.communicate()[0] + f"killed after {limit_s:.0f} s"


def check_all(names: list[str]) -> list[str]:
    """The names that were right in all checks. Meanwhile compiles the portable kernels for the timing."""
    results: dict[str, tuple[bool, str]] = {}

    def run(key: str, *options: str) -> None:
        results[key] = child(CHECK_S, *options)

    jobs = {name: ("--child", "check", "--names", name) for name in names}
    for cell in (cell_name(d, 512, causal) for d in (64, 128) for causal in (False, True)):
        jobs[cell] = ("--child", "warm", "--cells", cell)
    threads = [threading.Thread(target=run, args=(key, *options)) for key, options in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [name for name in names if results[name][0]]
    for key, (ended, output) in results.items():
        lines = output.splitlines()
        shown = [line for line in lines if line.startswith("worst")] if key in good else lines[-25:]
        if key in names or not ended:
            print(f"== {key}: {'right' if ended else 'WRONG'}", *shown, sep="\n")
    return good


# In a child process, where torch and the GPU are.


def ours(name: str, causal: bool, uses: list[Any] | None = None) -> Callable[..., Any]:
    """The variant as a function of (q, k, v, out, lse, dout)."""
    from perfkit.kernels.attention import flash_hopper_backward as module

    _, deterministic, tile = VARIANTS[name]
    made = module.HopperBackwardTile(*tile)
    return lambda q, k, v, out, lse, dout: module.backward(
        q, k, v, out, lse, dout, causal, deterministic=deterministic, tile=made, uses=uses
    )


def check(name: str) -> None:
    """A line per problem: the errors of dQ, dK, dV beside what is allowed. Then repeats. Exits 1 if wrong."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    head_dim, deterministic, _ = VARIANTS[name]
    worst, wrong = 0.0, False
    uses: list[Any] = []
    for problem in CHECKS:
        q, k, v, dout = inputs(problem, head_dim)
        exact = gradients(q.float(), k.float(), v.float(), dout.float(), problem.causal)
        eager = gradients(q, k, v, dout, problem.causal)
        out, lse = exact[3].to(q.dtype), exact[4]
        found = ours(name, problem.causal, uses)(q, k, v, out, lse, dout)
        torch.cuda.synchronize()
        parts = []
        for label, mine, theirs, truth in zip(("dQ", "dK", "dV"), found, eager[:3], exact[:3], strict=True):
            error, allowed = ((t.float() - truth).abs().max().item() for t in (mine, theirs))
            allowed = 2 * allowed + 1e-3 * truth.abs().max().item() + 1e-6
            right = error <= allowed  # not if NaN
            wrong = wrong or not right
            worst = max(worst, error / allowed)
            parts.append(f"{label} {error:.1e} of {allowed:.1e}{'' if right else ' WRONG'}")
        print(f"{tuple(problem)}: {'; '.join(parts)}")
    call = ours(name, problem.causal)
    fixed = slice(0 if deterministic else 1, 3)  # else dQ may differ in its last bits
    first = call(q, k, v, out, lse, dout)[fixed]
    for _ in range(10):
        again = call(q, k, v, out, lse, dout)[fixed]
        if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            print("WRONG: two runs differ")
            wrong = True
    used = {(u.kernel, u.registers, u.spills, u.shared_bytes) for u in uses}
    print(
        f"worst error / allowed {worst:.2f}; "
        + " ".join(f"{k}:{r}r/{s}s/{b}B" for k, r, s, b in sorted(used))
    )
    sys.exit(wrong)


def inputs(problem: Problem, head_dim: int) -> list[Any]:
    """q, k, v, dout."""
    import torch

    torch.manual_seed(problem.seq_q + problem.seq_k)
    dim, dtype = head_dim - problem.less_dim, getattr(torch, problem.dtype)
    query, key = (problem.heads, problem.seq_q), (problem.kv_heads, problem.seq_k)
    moved = [(query, problem.away), (key, -problem.away), (key, 0.0), (query, 0.0)]
    return [(torch.randn(problem.batch, h, n, dim, device="cuda") + away).to(dtype) for (h, n), away in moved]


def gradients(q: Any, k: Any, v: Any, dout: Any, causal: bool) -> tuple[Any, ...]:
    """(dQ, dK, dV, O, LSE) in the inputs' precision, bottom-right causal; rows without a key give zeros."""
    import torch

    group, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    keys, values = (t.repeat_interleave(group, 1) for t in (k, v))
    scores = (q @ keys.mT * scale).float()
    if causal:
        rows = torch.arange(q.shape[2], device=q.device)[:, None] + k.shape[2] - q.shape[2]
        scores = scores.masked_fill(torch.arange(k.shape[2], device=q.device) > rows, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp().to(q.dtype)
    out = weights @ values
    row_delta = (dout.float() * out.float()).sum(-1, keepdim=True)
    d_scores = (weights.float() * ((dout @ values.mT).float() - row_delta)).to(q.dtype)
    dk, dv = d_scores.mT @ q * scale, weights.mT @ dout
    dk, dv = (t.float().unflatten(1, (-1, group)).sum(2).to(q.dtype) for t in (dk, dv))
    return d_scores @ keys * scale, dk, dv, out, lse


def tensors_of(head_dim: int, seq: int, batch: int) -> list[Any]:
    """q, k, v, dout of a cell."""
    import torch

    return [torch.randn(batch, 2048 // head_dim, seq, head_dim, device="cuda").bfloat16() for _ in range(4)]


def parsed(cell: str) -> tuple[int, int, bool]:
    head_dim, rest = cell.split("x")
    return int(head_dim), int(rest[:-1]), rest[-1] == "c"


def warm(cell: str) -> None:
    """Fills Triton's cache with the portable kernels that the timing of such cells needs."""
    import torch

    head_dim, seq, causal = parsed(cell)
    q, k, v, dout = tensors_of(head_dim, seq, 2)
    calls([], q, k, v, dout, causal)["triton"]()
    torch.cuda.synchronize()


def calls(
    names: list[str], q: Any, k: Any, v: Any, dout: Any, causal: bool
) -> dict[str, Callable[[], object]]:
    """Name -> backward of one cell, with the forward done."""
    import torch

    from perfkit.kernels.attention import flash, flash_backward, sdpa

    out, lse = flash.forward(q, k, v, causal)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    graph = sdpa.cudnn(*leaves, causal=causal)
    found: dict[str, Callable[[], object]] = {
        "cudnn": lambda: torch.autograd.grad(graph, leaves, dout, retain_graph=True),
        "triton": lambda: flash_backward.backward(q, k, v, out, lse, dout, causal),
    }
    for name in names:
        call = ours(name, causal)
        found[name] = lambda call=call: call(q, k, v, out, lse, dout)
    return found


def time_cells(names: list[str], cells: list[str], rounds: int) -> None:
    """One line per cell: the median TFLOP/s of each kernel."""
    import torch

    flush = torch.empty(2**30, dtype=torch.int8, device="cuda")
    for cell in cells:
        head_dim, seq, causal = parsed(cell)
        mine = [name for name in names if VARIANTS[name][0] == head_dim]
        q, k, v, dout = tensors_of(head_dim, seq, 16384 // seq)
        kernels = calls(mine, q, k, v, dout, causal)
        samples: dict[str, list[float]] = {name: [] for name in kernels}
        for turn in range(rounds + 2):
            events = {name: timed(call, flush) for name, call in kernels.items()}
            torch.cuda.synchronize()
            for name, (start, end) in events.items():
                if turn >= 2:
                    samples[name].append(start.elapsed_time(end))
        flops = 10 * seq * 16384 * 2048 * (0.5 if causal else 1)
        rates = {name: flops / statistics.median(ms) / 1e9 for name, ms in samples.items()}
        print(f"{cell:10}" + "  ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))


def timed(call: Callable[[], object], flush: Any) -> tuple[Any, Any]:
    """Events around the call, after writes that clear the L2 and let the launches get ahead of the GPU."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(4):
        flush.zero_()
    start.record()
    call()
    end.record()
    return start, end


if __name__ == "__main__":
    main()
