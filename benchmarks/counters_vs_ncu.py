"""perfkit's counters beside Nsight Compute's, for the same kernels on the same GPU.

    python benchmarks/counters_vs_ncu.py --out counters_vs_ncu.json

Both leave clocks alone, and L2 begins clean and cold: so raw values are compared with raw values.
Settled writes stand beside them. A part that fails says so, and the others go on.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MIB = 2**20
COPY_BYTES = 512 * MIB
HEADS, LENGTH = 16, 16384
CASES = ("copy", "flash64", "flash128")
PEAKS = (
    "lts__t_bytes.sum.peak_sustained",
    "l1tex__m_xbar2l1tex_read_bytes.sum.peak_sustained",
    "dram__bytes.sum.peak_sustained",
    "sm__cycles_elapsed.max",
    "lts__cycles_elapsed.max",
    "sm__cycles_elapsed.avg.per_second",
    "lts__cycles_elapsed.avg.per_second",
)
NCU_TIMEOUT_S = 60


def work(case: str, kernel: str) -> tuple[Callable[[], object], float | None]:
    """The callable of `case`, warm, and the tensor FLOPs that it must execute."""
    import torch

    if case == "copy":
        source = torch.ones(COPY_BYTES // 4, device="cuda")
        target = torch.empty_like(source)
        run: Callable[[], object] = lambda: torch.neg(source, out=target)  # noqa: E731
        flops = 0.0
    else:
        width = int(case.removeprefix("flash"))
        q, k, v = (
            torch.randn(1, HEADS, LENGTH, width, device="cuda", dtype=torch.bfloat16) for _ in range(3)
        )
        run = attention(kernel, q, k, v)
        flops = 4.0 * HEADS * LENGTH**2 * width
    run()
    torch.cuda.synchronize()
    return run, flops


def attention(kernel: str, q: Any, k: Any, v: Any) -> Callable[[], object]:
    """Flash attention forward: perfkit's in Triton, or torch's."""
    if kernel == "triton":
        from perfkit.kernels.attention.flash import attention as triton_attention

        return lambda: triton_attention(q, k, v)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def run() -> object:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(q, k, v)

    return run


def choose_kernel() -> str:
    """Triton where perfkit's kernel runs, else torch's."""
    try:
        work("flash64", "triton")
    except Exception as error:
        print(f"perfkit's flash kernel does not run ({type(error).__name__}: {error}); torch SDPA instead")
        return "sdpa"
    return "triton"


def child(kernel: str, cases: list[str]) -> None:
    """What ncu profiles: each case once, from a clean cold L2."""
    import torch

    from perfkit.measure.counters import SWEEPS
    from perfkit.measure.flush import L2Flush

    cuda_profiler: Any = torch.cuda.profiler
    sweep = L2Flush(sweeps=SWEEPS)
    for case in cases:
        run, _ = work(case, kernel)
        sweep()
        torch.cuda.synchronize()
        cuda_profiler.start()
        run()
        torch.cuda.synchronize()
        cuda_profiler.stop()


def by_ncu(kernel: str, chip: str) -> dict[str, list[Any]]:
    """ncu's kernels of every case (each case is one kernel, in order)."""
    from perfkit.measure import ncu
    from perfkit.measure.metrics import metric_set

    metrics = [term.metric for term in metric_set(chip, "bf16").terms]
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--kernel", kernel]
    kernels = ncu.profile(command, list(dict.fromkeys([*metrics, *PEAKS])), timeout_s=NCU_TIMEOUT_S)
    print("ncu saw:", ", ".join(found.name for found in kernels))
    if len(kernels) != len(CASES):
        raise RuntimeError(f"ncu saw {len(kernels)} kernels in place of {len(CASES)}")
    return {case: [found] for case, found in zip(CASES, kernels, strict=True)}


def by_perfkit(case: str, kernel: str) -> dict[str, Any]:
    """perfkit's reading of one case, and the seconds it took."""
    import msgspec

    from perfkit.measure.counters import collect

    run, flops = work(case, kernel)
    start = time.perf_counter()
    reading = collect(run, dtype="bf16")
    seconds = time.perf_counter() - start
    return {"flops": flops, "seconds": seconds, **msgspec.to_builtins(reading)}


def timings() -> dict[str, float]:
    """Seconds that set-up and ranges take, and one call each of both modes."""
    from perfkit.measure.cupti import RangeProfiler
    from perfkit.measure.metrics import metric_set

    run, _ = work("copy", "sdpa")
    core = metric_set("GH100", "bf16").groups[0].metrics
    found: dict[str, float] = {}
    for mode, per_kernel in (("kernel replay", True), ("user replay", False)):
        for turn in ("first", "again"):
            start = time.perf_counter()
            with RangeProfiler(core, per_kernel=per_kernel) as profiler:
                ready = time.perf_counter()
                profiler.collect(run)
                found[f"{mode}, {turn}: set-up"] = ready - start
                found[f"{mode}, {turn}: range"] = time.perf_counter() - ready
    return found


def settling() -> dict[str, dict[str, float]]:
    """A fill that fits L2: bytes written at L2, in DRAM when the kernel ended, in DRAM when settled."""
    import torch

    from perfkit.measure.counters import collect

    found = {}
    for size in (4 * MIB, 16 * MIB, 32 * MIB):
        out = torch.empty(size // 4, device="cuda")
        out.fill_(1.0)
        reading = collect(partial(out.fill_, 2.0), dtype="bf16", groups=("core",))
        found[f"{size // MIB} MiB"] = {
            "bytes": float(size),
            "l2_write": reading.totals["l2_write_bytes"],
            "dram_write, raw": reading.raw_dram["dram_write_bytes"],
            "dram_write, settled": reading.totals["dram_write_bytes"],
            "dram_read, settled": reading.totals["dram_read_bytes"],
        }
    return found


def show(case: str, ours: dict[str, Any], theirs: dict[str, float]) -> None:
    """One table: ours, ncu's, difference."""
    names = ", ".join(kernel["name"] for kernel in ours["kernels"])
    print(f"\n{case}: {names}; {ours['seconds']:.2f} s, {ours['passes']} passes; notes {ours['notes']}")
    print(f"  {'quantity':18} {'perfkit':>20} {'ncu':>20} {'difference':>11}")
    raw = {**ours["totals"], **ours["raw_dram"]}
    for tag, value in raw.items():
        other = theirs.get(tag)
        shown = "-" if other is None else f"{other:,.0f}"
        difference = f"{100 * (value / other - 1):+.3f} %" if other else "-"
        print(f"  {tag:18} {value:20,.0f} {shown:>20} {difference:>11}")
    for tag in ours["raw_dram"]:
        print(f"  {tag:18} {ours['totals'][tag]:20,.0f}  settled")
    if ours["flops"]:
        print(f"  tensor FLOPs / exact: {raw.get('tensor_flop', 0.0) / ours['flops']:.6f}")


def attempt(name: str, part: Callable[[], Any], errors: dict[str, str]) -> Any:
    """The part's result; None with the error printed where it fails."""
    start = time.perf_counter()
    try:
        return part()
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"
        print(f"{name} FAILED: {errors[name]}")
        if hint := getattr(error, "hint", ""):
            print(f"  {hint}")
        traceback.print_exc(limit=4)
        return None
    finally:
        print(f"[{name}: {time.perf_counter() - start:.1f} s]", flush=True)


def main() -> None:
    """Every part in turn; the numbers go to --out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kernel", choices=("triton", "sdpa"))
    parser.add_argument("--chip", default="GH100", help="CUPTI's name of the chip, for ncu's metrics")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.kernel or "sdpa", list(CASES))
        return

    import msgspec

    from perfkit.measure import counters, ncu
    from perfkit.measure.cupti import chip_name
    from perfkit.measure.cupti_library import load
    from perfkit.measure.metrics import metric_set, quantities
    from perfkit.measure.permission import counter_permission

    errors: dict[str, str] = {}
    kernel = options.kernel or choose_kernel()
    print("permission:", counter_permission())
    print("ncu:", attempt("version", lambda: version(ncu.find_ncu()), errors))
    # First, while this process has not touched the profiler.
    theirs = attempt("ncu", lambda: by_ncu(kernel, options.chip), errors) or {}
    chip = attempt("chip", chip_name, errors) or options.chip
    print("chip:", chip, "library:", attempt("library", lambda: load().path, errors), "kernel:", kernel)
    check = attempt("self-check", counters.self_check, errors)
    print(check)
    ours = {case: attempt(case, partial(by_perfkit, case, kernel), errors) for case in CASES}
    taken = attempt("timings", timings, errors) or {}
    settled = attempt("settling", settling, errors) or {}

    metrics = metric_set(chip, "bf16")
    referee = {case: quantities(metrics, found[0].values) for case, found in theirs.items()}
    for case, reading in ours.items():
        if reading:
            show(case, reading, referee.get(case, {}))
    print("\npeaks by ncu (per cycle of the unit's clock; rates per second):")
    peaks = {
        case: {name: found[0].values[name] for name in PEAKS if name in found[0].values}
        for case, found in theirs.items()
    }
    for case, values in peaks.items():
        print(f"  {case}: {values}")
    for name, seconds in taken.items():
        print(f"  {name}: {seconds:.3f} s")
    for size, values in settled.items():
        print(f"  fill {size}: " + ", ".join(f"{name} {value:,.0f}" for name, value in values.items()))
    result = {
        "chip": chip,
        "kernel": kernel,
        "self_check": msgspec.to_builtins(check) if check else None,
        "perfkit": ours,
        "ncu": referee,
        "peaks": peaks,
        "seconds": taken,
        "settling": settled,
        "errors": errors,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def version(binary: str) -> str:
    """The binary and the last line of its version."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return f"{binary} {said.stdout.strip().splitlines()[-1] if said.stdout.strip() else ''}"


if __name__ == "__main__":
    main()
