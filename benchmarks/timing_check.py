"""Check perfkit's timing on a real GPU against what is known otherwise; under 40 s without --ncu.

    python benchmarks/timing_check.py [--ncu] [--quick]

Prints times with their intervals, clocks, energy, what each kind of L2 flush does, and Triton's do_bench
beside it; with --ncu also Nsight Compute's gpu__time_duration. A part that fails is printed, and the rest
goes on.
"""

import argparse
import csv
import itertools
import math
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from perfkit.measure.clock import ClockProbe, open_clock, stamp_kernel
from perfkit.measure.energy import energy_per_op
from perfkit.measure.environment import environment
from perfkit.measure.flush import L2Flush
from perfkit.measure.ncu import find_ncu
from perfkit.measure.nvml import GpuMonitor, monitor_of_torch
from perfkit.measure.sampling import sampling
from perfkit.measure.stopping import StoppingRule
from perfkit.measure.timing import Timing, time_cuda
from perfkit.measure.torch_cuda import cuda

GIB = 2**30
FLOP = 2 * 4096**3
STREAM_BYTES = 2 * 2 * GIB
Work = Callable[[], object]


def works() -> dict[str, Work]:
    """The pieces of work, on random inputs."""
    import torch

    left, right = (torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randint(0, 127, (2 * GIB,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "matmul": lambda: torch.matmul(left, right, out=product),
        "copy": lambda: target.copy_(source),
        "stream": lambda: torch.bitwise_not(source, out=target),  # a copy by a kernel, for ncu
    }


def line(name: str, timing: Timing, took_s: float, amount: float = 0.0, unit: str = "") -> None:
    """One timing on two lines."""
    low, high = timing.ci_low_s or math.nan, timing.ci_high_s or math.nan
    rate = f"  {amount / timing.median_s / 1e12:8.3f} {unit}" if amount else ""
    clocks = sorted(hz for hz in timing.clock_hz if hz is not None)
    unknown = len(timing.clock_hz) - len(clocks)
    clock = (
        f"{clocks[0] / 1e6:.0f}/{statistics.median(clocks) / 1e6:.0f}/{clocks[-1] / 1e6:.0f} MHz"
        if clocks
        else "-"
    )
    print(f"  {name:<22} {timing.median_s * 1e6:10.3f} us [{low * 1e6:.3f}, {high * 1e6:.3f}]{rate}")
    print(
        f"  {'':<22} n={len(timing.samples_s)} dropped={timing.dropped} hidden={timing.launch_hidden} "
        f"clock min/med/max {clock} ({unknown} unknown) warm-up {timing.warmup_s:.2f} s, "
        f"took {took_s:.2f} s; {timing.stop_reason}"
    )


class Check:
    """Runs the parts one after another."""

    def __init__(self, quick: bool) -> None:
        self.rule = StoppingRule(min_time_s=0.1 if quick else 0.3, limit_s=0.5 if quick else 1.5)
        self.works = works()
        self.monitor: GpuMonitor | None = None
        self.clock: ClockProbe | None = None
        self.medians: dict[str, float] = {}

    def timed(
        self,
        name: str,
        fn: Work,
        flush: L2Flush | None,
        *,
        graph: bool = False,
        amount: float = 0.0,
        unit: str = "",
    ) -> Timing:
        """Time, print, remember."""
        began = time.perf_counter()
        (timing,) = time_cuda([fn], flush=flush, rule=self.rule, clock=self.clock, use_graph=graph)
        line(name, timing, time.perf_counter() - began, amount, unit)
        self.medians[name] = timing.median_s
        return timing

    def start(self) -> None:
        """Environment, NVML and the clock probe."""
        print(" ", environment())
        self.monitor = monitor_of_torch()
        print(" ", self.monitor.state())
        self.clock = open_clock(self.monitor)
        print(f"  clock source: {self.clock.source if self.clock else 'none'}")

    def stamps(self) -> None:
        """How coarse %globaltimer is, and whether single blocks land on the same SM."""
        import torch

        stamps = torch.zeros(2000, 3, dtype=torch.int64, device="cuda")
        kernel = stamp_kernel()
        for slot in range(2000):
            kernel[(1,)](stamps, slot, num_warps=1)
        rows = stamps.tolist()
        steps = [after[0] - before[0] for before, after in itertools.pairwise(rows)]
        step = math.gcd(*steps)
        print(
            f"  %globaltimer advances in steps of {step} ns; stamps {statistics.median(steps)} ns apart; "
            f"SMs used: {len({row[2] for row in rows})}"
        )

    def large(self) -> None:
        """Matmul and copies, cold, warm and as a graph."""
        flush = L2Flush()
        for name, amount, unit in (
            ("matmul", FLOP, "TFLOP/s"),
            ("copy", STREAM_BYTES, "TB/s"),
            ("stream", STREAM_BYTES, "TB/s"),
        ):
            self.timed(f"{name} cold", self.works[name], flush, amount=amount, unit=unit)
            self.timed(f"{name} warm", self.works[name], None, amount=amount, unit=unit)
        self.timed("matmul warm graph", self.works["matmul"], None, graph=True, amount=FLOP, unit="TFLOP/s")

    def small(self) -> None:
        """A kernel of a few microseconds, work that synchronises, and a host slower than the GPU."""
        import torch

        one = torch.zeros(1024, device="cuda")
        self.timed("tiny warm", lambda: one.add_(1.0), None)
        self.timed("tiny cold", lambda: one.add_(1.0), L2Flush())
        self.timed("tiny warm graph", lambda: one.add_(1.0), None, graph=True)

        def ten() -> None:
            for _ in range(10):
                one.add_(1.0)

        self.timed("ten tiny warm", ten, None)
        self.timed("ten tiny warm graph", ten, None, graph=True)

        def synchronising() -> None:
            ten()
            torch.cuda.synchronize()

        self.timed("ten tiny, synchronised", synchronising, None)

    def known(self) -> None:
        """A spin of known length: cycles at the clock that was read."""
        gpu = cuda()
        timing = self.timed("spin of 2M cycles", lambda: gpu._sleep(2_000_000), None)
        clocks = [hz for hz in timing.clock_hz if hz is not None]
        cycles = timing.median_s * statistics.median(clocks)
        print(f"  -> {cycles / 2e6:.4f} of its cycles (expected 1.00 +- 0.03)")

    def flushes(self) -> None:
        """What each way of flushing does to work that fits L2: reading 32 MiB, and copying 16 to 16 MiB."""
        import torch

        read = torch.randn(8 << 20, device="cuda")
        out = torch.empty((), device="cuda")
        source = torch.randn(4 << 20, device="cuda")
        target = torch.empty_like(source)
        cases: list[tuple[str, Work, int]] = [
            ("read 32 MiB", lambda: torch.sum(read, dim=0, out=out), 32 << 20),
            ("copy 16 MiB", lambda: torch.mul(source, 1.5, out=target), 32 << 20),
        ]
        flushes: list[tuple[str, L2Flush | None]] = [
            ("warm", None),
            ("read x1", L2Flush(sweeps=1)),
            ("read x2", L2Flush(sweeps=2)),
            ("read x4", L2Flush(sweeps=4)),
            ("write x2", L2Flush("write", sweeps=2)),
        ]
        for label, fn, amount in cases:
            for how, flush in flushes:
                self.timed(f"{label} {how}", fn, flush, amount=amount, unit="TB/s")

    def energies(self) -> None:
        """Energy back to back, and NVML's view of the same stretch."""
        assert self.monitor
        for name, amount, unit in (("matmul", FLOP, "pJ/FLOP"), ("copy", STREAM_BYTES, "pJ/byte")):
            with sampling(self.monitor) as looks:
                energy = energy_per_op(self.works[name], self.monitor, 0.4, self.clock)
            each = f"{energy.joules_per_op / amount * 1e12:.2f} {unit}" if energy.joules_per_op else "-"
            print(f"  {name}: {energy}\n    {each}\n    {looks.summary}")

    def do_bench(self) -> None:
        """Triton's median beside ours (it writes 256 MiB before each call)."""
        import triton.testing

        for name in ("matmul", "copy", "stream"):
            theirs = triton.testing.do_bench(self.works[name], return_mode="median") / 1e3
            ours = self.medians.get(f"{name} cold", math.nan)
            both = f"do_bench {theirs * 1e6:.3f} us, ours cold {ours * 1e6:.3f} us"
            print(f"  {name}: {both}: {ours / theirs:.4f}x")

    def ncu(self) -> None:
        """Nsight Compute's duration of the same kernels, caches flushed, clocks left alone."""
        command = [find_ncu(), "--csv", "--clock-control", "none", "--cache-control", "all"]
        command += ["--profile-from-start", "off", "--print-units", "base"]
        command += ["--metrics", "gpu__time_duration.sum", sys.executable, __file__, "--worker"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        table = [text for text in ran.stdout.splitlines() if text.startswith('"')]
        found: dict[str, list[float]] = {}
        for row in csv.DictReader(table):
            nanoseconds = float(row["Metric Value"].replace(",", ""))
            found.setdefault(row["Kernel Name"][:60], []).append(nanoseconds)
        for kernel, values in found.items():
            print(f"  {kernel}: {statistics.median(values) / 1e3:.3f} us (n={len(values)})")
        if not found:
            print(f"  no rows (exit {ran.returncode}): {(ran.stdout + ran.stderr)[-800:]}")
        for name in ("matmul", "stream"):
            print(f"  ours: {name} cold {self.medians.get(f'{name} cold', math.nan) * 1e6:.3f} us")


def worker() -> None:
    """What ncu runs: each work five times, warm-up left out."""
    gpu = cuda()
    some = works()
    cudart = gpu.cudart()
    for name in ("matmul", "stream"):
        some[name]()
    gpu.synchronize()
    cudart.cudaProfilerStart()
    for name in ("matmul", "stream"):
        for _ in range(5):
            some[name]()
    gpu.synchronize()
    cudart.cudaProfilerStop()


def main() -> None:
    """Run every part; say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ncu", action="store_true", help="also ask Nsight Compute (about 15 s more)")
    parser.add_argument("--quick", action="store_true", help="a third of the samples")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    began = time.perf_counter()
    check = Check(options.quick)
    parts = [check.start, check.stamps, check.known, check.large, check.small, check.flushes]
    parts += [check.energies, check.do_bench] + ([check.ncu] if options.ncu else [])
    for part in parts:
        at = time.perf_counter()
        print(f"== {part.__name__}: {part.__doc__}")
        try:
            part()
        except Exception:
            traceback.print_exc(file=sys.stdout)
        print(f"   ({time.perf_counter() - at:.1f} s)", flush=True)
    print(f"all: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
