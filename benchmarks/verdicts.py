"""How often the verdict on speed is wrong: identical code called different, a planted slowdown not seen.

    python benchmarks/verdicts.py --device cuda --turns 100 --out verdicts.json

In every turn three works are timed together, as `perfkit compare` does it: A, A again, and A with a wait
planted behind it (3 % of A's time). Implementations and sizes take turns. On the CPU nothing is planted: only
the A/A part is of interest there.
"""

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from perfkit.analysis.speed import THRESHOLD, compare_times
from perfkit.measure.options import Options
from perfkit.measure.stopping import StoppingRule
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Timing

Work = Callable[[], object]
PLANTED = 0.03
#: A short kernel takes 9 s a turn (its sample time is mostly sweeps of L2), so there is one among twelve.
GPU_CASES = [
    ("flash", 1024, 64),
    *itertools.product(("flash",), (4096, 8192, 16384), (64, 128)),
    *itertools.product(("standard",), (4096, 8192, 16384), (64,)),
    ("flash", 16384, 64),
    ("standard", 4096, 128),
]
CPU_CASES = [(impl, length, 64) for impl in ("standard", "sdpa") for length in (256, 512)]


def callable_of(impl: str, length: int, head_dim: int, device: str) -> Work:
    """The implementation on inputs of its own, warm."""
    from perfkit.measure import correctness
    from perfkit.measure.targets import resolve
    from perfkit.ops import find_op

    heads, dtype = (16, "bf16") if device == "cuda" else (4, "fp32")
    w = AttentionWorkload(
        seq_q=length, seq_k=length, head_dim=head_dim, heads=heads, kv_heads=heads, dtype=dtype
    )
    row = find_op("attention").implementation(impl)
    assert row is not None, impl
    inputs = correctness.make_inputs(w, device)
    work, _ = correctness.callables(w, inputs, resolve(row.target), None)
    work()
    return work


def on_cuda(works: Sequence[Work], probe: Any, flush: Any) -> list[Timing]:
    """Timed as the CUDA backend times."""
    from perfkit.measure.timing import time_cuda

    return time_cuda(works, flush=flush, rule=StoppingRule(limit_s=Options().limit_s), clock=probe)


def on_cpu(works: Sequence[Work]) -> list[Timing]:
    """Timed as the CPU backend times."""
    from perfkit.measure.cpu_backend import CpuSampler
    from perfkit.measure.loop import collect
    from perfkit.measure.timing import timing_of

    rule = StoppingRule(limit_s=Options().limit_s)
    return [
        timing_of(
            one,
            clock_source="none",
            cold=False,
            graph=False,
            launch_hidden=True,
            warmup_s=0.0,
            interleaved=True,
        )
        for one in collect(CpuSampler(works), rule, time.perf_counter)
    ]


def slowed(work: Work, time_s: float, clock_hz: float) -> Work:
    """`work` with a wait of PLANTED of its time behind it, in cycles of the clock that it ran at."""
    import torch

    cycles = int(PLANTED * time_s * clock_hz)

    def run() -> None:
        work()
        torch.cuda._sleep(cycles)

    return run


def gpu_turns() -> Callable[[str, int, int], list[Timing]]:
    """A turn on the GPU: A, A, and A slowed."""
    from perfkit.measure.clock import StampProbe
    from perfkit.measure.flush import L2Flush
    from perfkit.model.median import median

    probe, flush = StampProbe(), L2Flush()
    made: dict[tuple[str, int, int], list[Work]] = {}

    def turn(impl: str, length: int, head_dim: int) -> list[Timing]:
        key = (impl, length, head_dim)
        if key not in made:
            work = callable_of(*key, "cuda")
            (first,) = on_cuda([work], probe, flush)
            clock = median([hz for hz in first.clock_hz if hz])
            made[key] = [work, work, slowed(work, first.median_s, clock)]
        return on_cuda(made[key], probe, flush)

    return turn


def cpu_turns() -> Callable[[str, int, int], list[Timing]]:
    """A turn on the CPU: A, A."""
    made: dict[tuple[str, int, int], Work] = {}

    def turn(impl: str, length: int, head_dim: int) -> list[Timing]:
        key = (impl, length, head_dim)
        if key not in made:
            made[key] = callable_of(*key, "cpu")
        return on_cpu([made[key], made[key]])

    return turn


def judged(number: int, case: tuple[str, int, int], timings: Sequence[Timing]) -> Iterator[dict[str, Any]]:
    """A row a verdict: A beside A, and A beside what is slower."""
    base, *others = timings
    for kind, other in zip(("A/A", "planted"), others, strict=False):
        ratio, verdict = compare_times(base, other, THRESHOLD)
        yield {
            "turn": number, "case": list(case), "kind": kind, "status": verdict.status,
            "ratio": [ratio.low, ratio.value, ratio.high], "reason": verdict.reason,
            "samples": len(base.samples_s),
        }  # fmt: skip


def wrong(row: dict[str, Any]) -> bool:
    """Identical code called different, or a planted slowdown not called slower."""
    return row["status"] in ("faster", "slower") if row["kind"] == "A/A" else row["status"] != "slower"


def main() -> None:
    """All turns, the table of verdicts, and every single one as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no turn after this long")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    turn, cases = (gpu_turns(), GPU_CASES) if options.device == "cuda" else (cpu_turns(), CPU_CASES)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for number in range(options.turns):
        if time.perf_counter() - began > options.seconds:
            print(f"out of time after {number} turns")
            break
        case = cases[number % len(cases)]
        rows += judged(number, case, turn(*case))
    print(f"{options.device}: {time.perf_counter() - began:.0f} s, threshold {THRESHOLD:.1%}")
    for (kind, status), count in sorted(Counter((row["kind"], row["status"]) for row in rows).items()):
        print(f"  {kind:8} {status:10} {count}")
    for row in filter(wrong, rows):
        print("  wrong:", row)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
