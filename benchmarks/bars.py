"""What perfkit promises in numbers, measured on this machine: start-up, accuracy, speed of its kernels.

    python benchmarks/bars.py [--out bars.json] [--skip run,ncu,io]

A part that fails says so, and the others go on. Start-up needs no GPU; everything else does.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Row = tuple[str, str, str, bool]


def whole_process(arguments: list[str], runs: int = 5) -> float:
    """Median wall time in seconds of `perfkit ARGUMENTS`, after one run that is not counted."""
    line = [sys.executable, "-m", "perfkit", *arguments]
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(line, cwd=ROOT, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def startup() -> Iterator[Row]:
    """`--help`, and a modelled report, as whole processes."""
    help_s = whole_process(["--help"])
    yield "perfkit --help", "<= 0.3 s", f"{help_s:.2f} s", help_s <= 0.3
    modelled = ["roofline", "--device", "a100-80gb-sxm"]
    if not Path("/dev/nvidiactl").exists():
        model_s = whole_process(modelled)
        yield "modelled roofline", "<= 0.6 s", f"{model_s:.2f} s", model_s <= 0.6
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "record.json")
        line = [sys.executable, "-m", "perfkit", "roofline", "--device", "fake", "--json", path]
        subprocess.run(line, cwd=ROOT, capture_output=True, check=True)
        show_s = whole_process(["show", path])
    yield "show", "<= 0.6 s", f"{show_s:.2f} s", show_s <= 0.6


def run() -> Iterator[Row]:
    """The default run with new caches, in a fresh process."""
    for impl, bar in (("all", 40), ("standard,flash", 15)):
        with tempfile.TemporaryDirectory() as folder:
            caches = {"TRITON_CACHE_DIR": f"{folder}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
            line = [sys.executable, "-m", "perfkit", "roofline", "--impl", impl]
            began = time.perf_counter()
            subprocess.run(line, cwd=ROOT, env=os.environ | caches, capture_output=True, check=True)
            took = time.perf_counter() - began
        yield f"roofline --impl {impl}, new caches", f"<= {bar} s", f"{took:.1f} s", took <= bar


def measured(impl: str, stages: list[tuple[float, str]] | None = None, **shape: Any) -> Any:
    """The finding on one implementation, measured without energy."""
    from perfkit.analysis.study import study
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_session
    from perfkit.ops import find_op
    from perfkit.ops.attention_workload import AttentionWorkload

    op = find_op("attention")
    w = AttentionWorkload(**shape)
    row = op.implementation(impl)
    assert row is not None
    backend = choose_backend(None, w.dtype, Options(energy=False))
    note = (
        (lambda _i, what: stages.append((time.perf_counter(), what)))
        if stages is not None
        else (lambda *_: None)
    )
    found = study(run_session(op, [w], [row], backend, note)).findings[0]
    if found.placement.run.status != "measured":
        raise RuntimeError(f"{impl}: {found.placement.run.status}: {found.placement.run.reason}")
    return found


def stages() -> Iterator[Row]:
    """Where the wall time of one measurement goes: no bar, for finding what is slow."""
    seen: list[tuple[float, str]] = []
    measured("flash", seen, seq_q=16384, seq_k=16384)
    seen.append((time.perf_counter(), "end"))
    text = ", ".join(f"{name} {after[0] - at:.1f}" for (at, name), after in itertools.pairwise(seen))
    yield "stages of one measurement, s", "-", text, True


def alone(w: Any, launches: int = 10) -> tuple[float, float]:
    """Median time (s) and SM clock (Hz) of `flash` by our events, launched as ncu launches it: by itself.

    A rest before each launch: a chip under its power cap clocks lower than the one that ncu finds.
    """
    from perfkit.measure import correctness
    from perfkit.measure.clock import StampProbe
    from perfkit.measure.cuda_sampler import CudaSampler, warm_up
    from perfkit.measure.flush import L2Flush
    from perfkit.measure.targets import resolve

    attention = resolve("perfkit.kernels.attention.picked:attention")
    work, _ = correctness.callables(w, correctness.make_inputs(w, "cuda"), attention, None)
    warm_up(work)
    sampler = CudaSampler([work], L2Flush(), StampProbe())
    times, clocks = [], []
    while len(times) < launches:
        time.sleep(0.3)
        (one,) = sampler.batch(1)
        times += one.samples_s
        clocks += [hz for hz in one.clock_hz if hz]
    return statistics.median(times), statistics.median(clocks)


def ncu() -> Iterator[Row]:
    """One kernel at N 16k beside Nsight Compute, in the same run."""
    from settled_by_ncu import by_ncu, by_perfkit

    from perfkit.measure import ncu as referee
    from perfkit.measure.metrics import metric_set
    from perfkit.measure.replay import command

    for head_dim in (64, 128):
        run = measured("flash", seq_q=16384, seq_k=16384, head_dim=head_dim).placement.run
        kernel = referee.collect(command("attention", "flash", run.workload), metric_set("GH100", "bf16"))[
            0
        ].values
        name = f"d {head_dim}, N 16k"
        theirs_hz = kernel["sm_cycles"] / (kernel["duration_ns"] * 1e-9)
        samples = (
            ("time against ncu, both launched alone,", "within 2 %", *alone(run.workload)),
            ("  time of a default run against ncu,", "-", run.value("time"), run.value("clock")),
        )
        for what, bar, time_s, clock_hz in samples:
            off = time_s / (kernel["duration_ns"] * 1e-9) - 1
            text = f"{off:+.2%} ({clock_hz / 1e6:.0f} for {theirs_hz / 1e6:.0f} MHz)"
            yield f"{what} {name}", bar, text, bar == "-" or abs(off) <= 0.02
        ours, whole = by_perfkit("flash", run.workload), by_ncu("flash", run.workload, "GH100")
        pairs = {
            "DRAM read, settled,": (ours["dram_read_bytes"], whole["dram_read_bytes"]),
            "DRAM write, settled,": (ours["dram_write_bytes"], whole["dram_write_bytes"]),
            "SM<->L2 read": (run.value("l2_read"), kernel["l1_fill_bytes"]),
            "SM<->L2 write": (run.value("l2_write"), kernel["l2_write_bytes"]),
        }
        for what, (here, theirs) in pairs.items():
            off = here / theirs - 1
            yield f"{what} against ncu, {name}", "within 1 %", f"{off:+.3%}", abs(off) <= 0.01
        # Every byte is written once, so what L2 was given is what DRAM gets; ncu stops counting before.
        for what, value in (
            ("DRAM write, ours", ours["dram_write_bytes"]),
            ("  of ncu, settled", whole["dram_write_bytes"]),
            ("  of ncu, at the kernel's end", kernel["dram_write_bytes"]),
        ):
            off = value / run.value("l2_write") - 1
            bar = "-" if what.startswith(" ") else "within 1 %"
            yield f"{what}, against truth, {name}", bar, f"{off:+.3%}", bar == "-" or abs(off) <= 0.01
        ratio = run.value("flops_tensor") / run.value("flops_exact")
        yield f"tensor FLOPs / 4 N^2 d h, {name}", "within 0.1 %", f"{ratio:.6f}", abs(ratio - 1) <= 1e-3


def io() -> Iterator[Row]:
    """The IO model of `flash` over N, its speed, and its error."""
    for head_dim in (64, 128):
        for length in (2048, 4096, 8192, 16384, 32768, 65536):
            heads = 16 if length < 65536 else 4
            found = measured(
                "flash", seq_q=length, seq_k=length, head_dim=head_dim, heads=heads, kv_heads=heads
            )
            run = found.placement.run
            off = run.value("l2_read") / run.value("l2_read_modelled") - 1
            dram = run.value("dram_read") / run.value("dram_read_modelled") - 1
            least = run.value("dram_read") / run.value("dram_read_compulsory")
            name = f"d {head_dim}, N {length // 1024}k"
            yield f"SM<->L2 read = IO model, {name}", "within 1 %", f"{off:+.3%}", abs(off) <= 0.01
            yield f"  DRAM read = L2 model, {name}", "-", f"{dram:+.1%} ({least:.2f}x compulsory)", True
            rate = found.placement.achieved / 1e12
            if (head_dim, length) == (128, 16384):
                yield (
                    "flash forward, d 128, N 16k, full",
                    ">= 400 TFLOP/s",
                    f"{rate:.0f} TFLOP/s",
                    rate >= 400,
                )
            else:
                yield f"  flash forward, {name}", "-", f"{rate:.0f} TFLOP/s", True
            error, eager = run.value("error"), run.value("eager_error")
            yield f"  error, {name}", "<= 2x eager", f"{error:.1e} / {eager:.1e}", error <= 2 * eager


PARTS: tuple[Callable[[], Iterator[Row]], ...] = (startup, run, stages, ncu, io)


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="write the rows as JSON")
    parser.add_argument("--skip", default="", help="parts to leave out: startup,run,stages,ncu,io")
    options = parser.parse_args()
    rows: list[Row] = []
    for part in PARTS:
        if part.__name__ in options.skip.split(","):
            continue
        try:
            for row in part():
                rows.append(row)
                print(f"{row[0]:56} {row[1]:15} {row[2]:24} {'ok' if row[3] else 'MISSED'}", flush=True)
        except Exception:
            print(f"{part.__name__}: {traceback.format_exc(limit=-3)}", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
