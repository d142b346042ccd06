"""The Hopper forward kernel on one GPU: is it right, and how fast is it beside the other kernels?

    python benchmarks/hopper.py [--only check|time] [--tiles NAME,...] [--cells 64x2048f,...] [--rounds 15]

First the tile shapes are checked against float32 attention, one process for each compiled kernel and all at
once, the smallest problem first. Those that were right are then timed together, interleaved with cuDNN,
torch's FlashAttention-2 and the portable Triton kernel, cold L2. bf16, heads * d = 2048, batch * N = 16384,
TFLOP/s by convention: 4 N^2 d h B, causal half. A kernel that hangs costs 40 seconds, its process and its
place in the table.
"""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PATIENCE_S = 40.0
STARTUP_S = 150.0
"""Until the first line: imports and, on a machine of few cores, compilation."""

# Name -> head dim, (groups, block_n, stages, pingpong, persistent). Plain ones first: the safe defaults.
TILES: dict[str, tuple[int, tuple[int, int, int, bool, bool]]] = {
    "64-3": (64, (3, 128, 2, False, False)),
    "64-3p": (64, (3, 128, 2, False, True)),
    "64-3t": (64, (3, 128, 2, True, False)),
    "64-3tp": (64, (3, 128, 2, True, True)),
    "64-2tp": (64, (2, 128, 3, True, True)),
    "64-2p": (64, (2, 128, 3, False, True)),
    "128-2": (128, (2, 128, 2, False, False)),
    "128-2p": (128, (2, 128, 2, False, True)),
    "128-2t": (128, (2, 128, 2, True, False)),
    "128-2tp": (128, (2, 128, 2, True, True)),
    "256-2tp": (256, (2, 64, 2, True, True)),
}


class Problem(NamedTuple):
    """Sizes of one check; `less_dim` columns fewer than the tile shape holds."""

    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    causal: bool
    dtype: str = "bfloat16"
    less_dim: int = 0


CHECKS = [
    Problem(1, 1, 1, 64, 128, False),
    Problem(1, 2, 2, 128, 128, True),
    Problem(1, 2, 1, 113, 203, False),
    Problem(2, 4, 2, 203, 113, True),
    Problem(1, 3, 3, 1, 777, True),
    Problem(1, 4, 4, 500, 17, True),
    Problem(2, 4, 1, 384, 1500, True, "float16"),
    Problem(1, 4, 2, 777, 1024, False, "float16"),
    Problem(1, 4, 4, 1024, 1024, False),
    Problem(2, 6, 3, 511, 1500, True, "bfloat16", 8),
    Problem(1, 8, 8, 2048, 2048, True),
    Problem(1, 16, 4, 4096, 4096, True),
]
CELLS = [(d, n, causal) for d in (64, 128) for n in (2048, 16384) for causal in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["check", "time"])
    parser.add_argument("--tiles", default=",".join(TILES))
    parser.add_argument("--cells", default=",".join(cell_name(*cell) for cell in CELLS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--child", choices=["check", "time"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [name for name in arguments.tiles.split(",") if name]
    if arguments.child == "check":
        for name in names:
            check(name)
        return
    if arguments.child == "time":
        time_cells(names, arguments.cells.split(","), arguments.rounds)
        return
    began = time.perf_counter()
    if arguments.only != "time":
        names = check_all(names)
        print(f"right: {' '.join(names) or 'none'}  ({time.perf_counter() - began:.0f} s)", flush=True)
    if arguments.only != "check":
        time_all(names, arguments.cells.split(","), arguments.rounds)
    print(f"{time.perf_counter() - began:.0f} s in all", flush=True)


def cell_name(head_dim: int, seq: int, causal: bool) -> str:
    return f"{head_dim}x{seq}{'c' if causal else 'f'}"


class Child:
    """This script in a process of its own; `lines` ends with it, or with its silence."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-u", __file__, *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )
        self.hung = False
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip())
        self._queue.put(None)

    def lines(self) -> Iterator[str]:
        patience = STARTUP_S
        while True:
            try:
                line = self._queue.get(timeout=patience)
            except queue.Empty:
                self.hung = True
                self.process.kill()
                return
            if line is None:
                self.process.wait()
                return
            patience = PATIENCE_S
            yield line


def check_all(names: list[str]) -> list[str]:
    """The names that were right in all checks. Names that differ only in `persistent` share a process."""
    shared: dict[Any, list[str]] = {}
    for name in names:
        shared.setdefault((TILES[name][0], TILES[name][1][:4]), []).append(name)
    results: list[tuple[Child, list[str], list[str]]] = []
    threads = []
    for together in shared.values():
        lines: list[str] = []
        child = Child("--child", "check", "--tiles", ",".join(together))
        threads.append(threading.Thread(target=lambda to=lines, c=child: to.extend(c.lines())))
        threads[-1].start()
        results.append((child, together, lines))
    good: list[str] = []
    for thread, (child, together, lines) in zip(threads, results, strict=True):
        thread.join()
        right = [name for name in together if f"done {name}" in lines]
        good += right
        if len(right) < len(together):
            print(f"== {' '.join(together)}: {'HUNG' if child.hung else 'FAILED'}", *lines[-30:], sep="\n")
        else:
            shown = lines if not good[len(right) :] else [line for line in lines if "worst" in line]
            print(f"== {' '.join(together)}: right", *shown, sep="\n")
        sys.stdout.flush()
    return good


def time_all(names: list[str], cells: list[str], rounds: int) -> None:
    """Times all cells in one process; after a hang or a crash goes on without the tile that it was at."""
    left = list(cells)
    while left:
        child = Child("--child", "time", "--tiles", ",".join(names), "--cells", ",".join(left),
                      "--rounds", str(rounds))  # fmt: skip
        at = ""
        tail: list[str] = []
        for line in child.lines():
            if line.startswith("@"):
                at = line[1:].strip()
            elif line.startswith("cell "):
                print(line, flush=True)
                left.remove(line.split()[1])
                at = ""
            else:
                tail.append(line)
        if not left:
            return
        print(f"{'hung' if child.hung else 'stopped'} at {at or 'an unknown place'}", *tail[-8:], sep="\n  ")
        sys.stdout.flush()
        if at not in names:
            return
        names.remove(at)


# In a child process, where torch and the GPU are.


def tile_of(name: str) -> Any:
    from perfkit.kernels.attention.flash_hopper import HopperTile

    return HopperTile(*TILES[name][1])


def check(name: str) -> None:
    """A line per problem: the largest errors of O, ours and torch flash's, and of LSE. Then repeats."""
    import torch

    from perfkit.kernels.attention import flash_hopper, sdpa

    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    tile, worst, wrong = tile_of(name), 0.0, 0
    uses: list[Any] = []
    for problem in CHECKS:
        q, k, v = inputs(problem, TILES[name][0])
        out, lse = flash_hopper.forward(q, k, v, problem.causal, tile=tile, uses=uses)
        torch.cuda.synchronize()
        exact, exact_lse = reference(q, k, v, problem.causal)
        error = (out.float() - exact).abs().max().item()
        finite = exact_lse.isfinite()
        lse_error = (lse - exact_lse)[finite].abs().max().item() if finite.any() else 0.0
        same_empty = torch.equal(lse.isneginf(), ~finite)
        try:
            theirs = (sdpa.flash(q, k, v, causal=problem.causal).float() - exact).abs().max().item()
        except ValueError:
            theirs = 1e-2  # no such kernel
        right = error <= 2 * theirs + 1e-3 and lse_error <= 2e-3 and same_empty
        wrong += not right
        worst = max(worst, error / theirs)
        empty = "" if same_empty else ", other empty rows"
        print(f"{'ok   ' if right else 'WRONG'} {name} {tuple(problem)}: "
              f"O {error:.1e} (torch {theirs:.1e}) LSE {lse_error:.1e}{empty}")  # fmt: skip
    q, k, v = inputs(CHECKS[-1], TILES[name][0])
    first = flash_hopper.forward(q, k, v, True, tile=tile)[0]
    same = all(torch.equal(first, flash_hopper.forward(q, k, v, True, tile=tile)[0]) for _ in range(20))
    use = uses[-1]
    print(f"{'ok   ' if same else 'WRONG'} {name} 20 repeats bitwise; worst error / torch's {worst:.2f}; "
          f"registers {use.registers} spills {use.spills} shared {use.shared_bytes}")  # fmt: skip
    compile_for_timing(name)
    print(f"done {name}" if same and not wrong else f"wrong {name}")


def compile_for_timing(name: str) -> None:
    """Fills Triton's cache with the kernels that the timing needs."""
    import torch

    from perfkit.kernels.attention import flash_hopper

    head_dim = TILES[name][0]
    q = torch.randn(1, 2, 512, head_dim, device="cuda", dtype=torch.bfloat16)
    for causal in (False, True):
        flash_hopper.forward(q, q, q, causal, tile=tile_of(name))
    torch.cuda.synchronize()


def inputs(problem: Problem, head_dim: int) -> list[Any]:
    import torch

    torch.manual_seed(problem.seq_q + problem.seq_k)
    dim, dtype = head_dim - problem.less_dim, getattr(torch, problem.dtype)
    shapes = [(problem.heads, problem.seq_q), *[(problem.kv_heads, problem.seq_k)] * 2]
    return [torch.randn(problem.batch, h, n, dim, device="cuda").to(dtype) for h, n in shapes]


def reference(q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Any]:
    """(O, LSE) in float32, bottom-right causal; a row without a key has O = 0 and LSE = -inf."""
    import torch

    group = q.shape[1] // k.shape[1]
    k, v = (t.float().repeat_interleave(group, 1) for t in (k, v))
    scores = q.float() @ k.mT / q.shape[-1] ** 0.5
    if causal:
        rows = torch.arange(q.shape[2], device=q.device)[:, None] + k.shape[2] - q.shape[2]
        scores = scores.masked_fill(torch.arange(k.shape[2], device=q.device) > rows, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp()
    return weights @ v, lse


def time_cells(names: list[str], cells: list[str], rounds: int) -> None:
    """One line per cell: the median TFLOP/s of each kernel."""
    import torch

    flush = torch.empty(2**30, dtype=torch.int8, device="cuda")
    for cell in cells:
        head_dim, rest = cell.split("x")
        d, n, causal = int(head_dim), int(rest[:-1]), rest[-1] == "c"
        mine = [name for name in names if TILES[name][0] == d]
        q, k, v = (torch.randn(16384 // n, 2048 // d, n, d, device="cuda").bfloat16() for _ in range(3))
        calls = kernels(mine, q, k, v, causal)
        for name, call in list(calls.items()):
            print(f"@ {name}")
            try:
                call()
                torch.cuda.synchronize()
            except Exception as error:
                if name in TILES:
                    raise
                print(f"{name}: {error}"[:200])
                del calls[name]
        print("@ timing")
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 2):
            events = {name: timed(call, flush) for name, call in calls.items()}
            torch.cuda.synchronize()
            for name, (start, end) in events.items():
                if turn >= 2:
                    samples[name].append(start.elapsed_time(end))
        flops = 4 * n * 16384 * 2048 * (0.5 if causal else 1)
        rates = {name: flops / statistics.median(ms) / 1e9 for name, ms in samples.items()}
        print(f"cell {cell} " + "  ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    print("@ end " + json.dumps(torch.cuda.get_device_name()))


def kernels(names: list[str], q: Any, k: Any, v: Any, causal: bool) -> dict[str, Callable[[], object]]:
    from perfkit.kernels.attention import flash, flash_hopper, sdpa

    calls: dict[str, Callable[[], object]] = {
        "cudnn": lambda: sdpa.cudnn(q, k, v, causal=causal),
        "fa2": lambda: sdpa.flash(q, k, v, causal=causal),
        "triton": lambda: flash.forward(q, k, v, causal),
    }
    for name in names:
        tile = tile_of(name)
        calls[name] = lambda tile=tile: flash_hopper.forward(q, k, v, causal, tile=tile)
    return calls


def timed(call: Callable[[], object], flush: Any) -> tuple[Any, Any]:
    """Two events around the call, after writes that clear the L2 and let the launch get ahead of the GPU."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    call()
    end.record()
    return start, end


if __name__ == "__main__":
    main()
