"""What `benchmarks/attention.py` does in its child processes, where torch and the GPU are.

A child says on its output where it is: lines `@ NAME` before what may hang, `! REASON` after what went wrong,
`wait SECONDS` for how long it may be silent from then on, `warm`, `done NAME` and `wrong NAME`, and in JSON
`environment` and `cell`. All else is for a reader.
"""

import json
import os
import random
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from attention_cases import (
    BACKWARD,
    CHECKS,
    COMPILE_S,
    COMPILED,
    FORWARD,
    PACKAGES,
    PATIENCE_S,
    Cell,
    Problem,
    without_folders,
)
from triton import knobs

from perfkit.errors import PerfkitError
from perfkit.kernels.attention import sdpa
from perfkit.measure.correctness import Inputs, callables, make_inputs
from perfkit.measure.environment import environment, version_of
from perfkit.measure.loop import slots_in_turn
from perfkit.measure.nvml import GpuMonitor, monitor_of_torch
from perfkit.measure.sampling import sampling
from perfkit.measure.targets import bound
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload

DEVICE = "cuda"
WARM_ROUNDS = 2
#: Writes of 1 GiB before each sample: they clear the L2 and let the launches get ahead, of which the backward
#: has more.
FLUSHES = {"fwd": 1, "bwd": 4}
#: The same before the first sample of a round, when the GPU has nothing to do.
HEAD_START = 4
LOOK_S = 0.05


def serve(request: dict[str, Any]) -> None:
    """Does what the parent asks for, in this process."""
    # Autograd's thread has no context until cuBLAS makes one there: torch warns of what is no fault.
    warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
    # torch's compiler would point Triton at a cache of its own, in which our kernels are not.
    os.environ.setdefault("TRITON_CACHE_DIR", knobs.cache.dir)
    if request["do"] == "check":
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
        name = request["tile"]
        right = check_forward(name) if name in FORWARD else check_backward(name)
        print(f"done {name}" if right else f"wrong {name}")
    elif request["do"] == "warm":
        warm(request["jobs"])
    else:
        time_jobs(request["jobs"], request["rounds"])


# The check.


def forward_of(name: str) -> Callable[..., Any]:
    """The variant as a function of (q, k, v, causal, uses=)."""
    from perfkit.kernels.attention import flash_hopper

    tile = FORWARD[name].tile
    return lambda q, k, v, causal, uses=None: flash_hopper.forward(q, k, v, causal, tile=tile, uses=uses)


def backward_of(name: str) -> Callable[..., Any]:
    """The variant as a function of (q, k, v, out, lse, dout, causal, uses=)."""
    from perfkit.kernels.attention import flash_hopper_backward as module

    variant = BACKWARD[name]
    tile = variant.tile
    return lambda q, k, v, out, lse, dout, causal, uses=None: module.backward(
        q, k, v, out, lse, dout, causal, deterministic=variant.deterministic, tile=tile, uses=uses
    )


def check_forward(name: str) -> bool:
    """A line per problem: the largest errors of O, ours and torch flash's, and of LSE. Then repeats."""
    head_dim, call = FORWARD[name].head_dim, forward_of(name)
    worst, wrong = 0.0, 0
    uses: list[Any] = []
    for problem in CHECKS["fwd"]:
        q, k, v, _ = inputs_of(problem, head_dim)
        out, lse = call(q, k, v, problem.causal, uses=uses)
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
        right = error <= 2 * theirs + 1e-3 and lse_error <= 2e-3 and same_empty  # not if NaN
        wrong += not right
        worst = max(worst, error / theirs)
        empty = "" if same_empty else ", other empty rows"
        print(f"{'ok   ' if right else 'WRONG'} {name} {tuple(problem)}: "
              f"O {error:.1e} (torch {theirs:.1e}) LSE {lse_error:.1e}{empty}")  # fmt: skip
    q, k, v, _ = inputs_of(CHECKS["fwd"][-1], head_dim)
    first = call(q, k, v, True)[0]
    same = all(torch.equal(first, call(q, k, v, True)[0]) for _ in range(20))
    print(f"{'ok   ' if same else 'WRONG'} {name} 20 repeats bitwise; "
          f"worst error / torch's {worst:.2f}; {used(uses)}")  # fmt: skip
    return same and not wrong


def check_backward(name: str) -> bool:
    """A line per problem: the errors of dQ, dK, dV beside what is allowed. Then repeats."""
    variant, call = BACKWARD[name], backward_of(name)
    worst, wrong = 0.0, False
    uses: list[Any] = []
    for problem in CHECKS["bwd"]:
        q, k, v, dout = inputs_of(problem, variant.head_dim)
        exact = gradients(q.float(), k.float(), v.float(), dout.float(), problem.causal)
        eager = gradients(q, k, v, dout, problem.causal)
        out, lse = exact[3].to(q.dtype), exact[4]
        found = call(q, k, v, out, lse, dout, problem.causal, uses=uses)
        torch.cuda.synchronize()
        parts = []
        for label, mine, theirs, truth in zip(("dQ", "dK", "dV"), found, eager[:3], exact[:3], strict=True):
            error, allowed = ((t.float() - truth).abs().max().item() for t in (mine, theirs))
            allowed = 2 * allowed + 1e-3 * truth.abs().max().item() + 1e-6
            right = error <= allowed  # not if NaN
            wrong = wrong or not right
            worst = max(worst, error / allowed)
            parts.append(f"{label} {error:.1e} of {allowed:.1e}{'' if right else ' WRONG'}")
        print(f"{name} {tuple(problem)}: {'; '.join(parts)}")
    fixed = slice(
        0 if variant.deterministic or variant.tile.wide else 1, 3
    )  # else dQ may differ in its last bits
    first = call(q, k, v, out, lse, dout, problem.causal)[fixed]
    for _ in range(10):
        again = call(q, k, v, out, lse, dout, problem.causal)[fixed]
        if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            print(f"WRONG {name}: two runs differ")
            wrong = True
    print(f"{name} 10 repeats bitwise; worst error / allowed {worst:.2f}; {used(uses)}")
    return not wrong


def used(uses: list[Any]) -> str:
    """Registers and spills of a thread and bytes of shared memory, of each kernel that was compiled."""
    found = sorted({(use.kernel, use.registers, use.spills, use.shared_bytes) for use in uses})
    return " ".join(f"{kernel}:{r}r/{s}s/{b}B" for kernel, r, s, b in found)


def inputs_of(problem: Problem, head_dim: int) -> list[Any]:
    """q, k, v, dout."""
    torch.manual_seed(problem.seq_q + problem.seq_k)
    dim, dtype = head_dim - problem.less_dim, getattr(torch, problem.dtype)
    query, key = (problem.heads, problem.seq_q), (problem.kv_heads, problem.seq_k)
    moved = [(query, problem.away), (key, -problem.away), (key, 0.0), (query, 0.0)]
    return [(torch.randn(problem.batch, h, n, dim, device=DEVICE) + away).to(dtype) for (h, n), away in moved]


def reference(q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Any]:
    """(O, LSE) in float32, bottom-right causal; a row without a key has O = 0 and LSE = -inf."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.float().repeat_interleave(group, 1) for t in (k, v))
    scores = q.float() @ k.mT / q.shape[-1] ** 0.5
    if causal:
        rows = torch.arange(q.shape[2], device=q.device)[:, None] + k.shape[2] - q.shape[2]
        scores = scores.masked_fill(torch.arange(k.shape[2], device=q.device) > rows, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp()
    return weights @ v, lse


def gradients(q: Any, k: Any, v: Any, dout: Any, causal: bool) -> tuple[Any, ...]:
    """(dQ, dK, dV, O, LSE) in the inputs' precision, bottom-right causal; rows without a key give zeros."""
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


# The timing.

#: From a list that receives what kernels used, or None, to the work to be timed.
Work = Callable[[list[Any] | None], Callable[[], object]]


def work_of(name: str, w: AttentionWorkload, inputs: Inputs) -> Work:
    """What a column runs; backward with the forward done. ValueError or PerfkitError where it cannot."""
    q, k, v, dout = inputs.q, inputs.k, inputs.v, inputs.dout
    if name in FORWARD:
        forward = forward_of(name)
        return lambda uses: lambda: forward(q, k, v, w.causal, uses=uses)
    if name in BACKWARD:
        from perfkit.kernels.attention import flash

        backward = backward_of(name)
        out, lse = flash.forward(q, k, v, w.causal)
        return lambda uses: lambda: backward(q, k, v, out, lse, dout, w.causal, uses=uses)
    row = find_op("attention").implementation(name)
    if row is None:
        raise ValueError(f"perfkit has no implementation called {name}")
    if why := row.refusal(w):
        raise ValueError(why)
    attention = bound(row)
    return lambda uses: callables(w, inputs, attention, uses)[0]


def warm(jobs: list[dict[str, Any]]) -> None:
    """Fills the caches of Triton and torch: runs the columns of each job once. A line after each job."""
    for job in jobs:
        w = Cell.parse(job["cell"]).workload(job["pass"])
        inputs = make_inputs(w, DEVICE)
        for name in job["columns"]:
            try:
                work_of(name, w, inputs)(None)()
                torch.cuda.synchronize()
            except Exception as error:
                print(f"! {reason(error)}")
        print(f"warm {job['pass']} {job['cell']}")


def time_jobs(jobs: list[dict[str, Any]], rounds: int) -> None:
    """A line in JSON about this machine, then one for each job."""
    print("environment " + json.dumps(here()))
    try:
        monitor: GpuMonitor | None = monitor_of_torch()
    except PerfkitError as error:
        print(error.message)
        monitor = None
    flush = torch.empty(2**30, dtype=torch.int8, device=DEVICE)
    for job in jobs:
        print("cell " + json.dumps(time_job(job, flush, rounds, monitor)))


def here() -> dict[str, Any]:
    """Versions and the GPU's name: nothing of the machine beyond them."""
    found = environment(with_torch=True)
    names = ("perfkit", "python", "torch", "triton", "cuda_runtime", "cudnn", "driver", "gpu", "timestamp")
    peers = {package: version_of(package) for package in PACKAGES}
    return {
        **{name: getattr(found, name) for name in names},
        "gpu": found.gpu or torch.cuda.get_device_name(),
        "peers": {package: version for package, version in peers.items() if version},
    }


def time_job(
    job: dict[str, Any], flush: Any, rounds: int, monitor: GpuMonitor | None = None
) -> dict[str, Any]:
    """Seconds of each column of one cell and pass, interleaved; why others have none; clock and power."""
    print("@ inputs")
    w = Cell.parse(job["cell"]).workload(job["pass"])
    inputs = make_inputs(w, DEVICE)
    calls: dict[str, Callable[[], object]] = {}
    kernels: dict[str, list[dict[str, Any]]] = {}
    errors: dict[str, str] = {}
    for name in job["columns"]:
        print(f"@ {name}")
        print(f"wait {COMPILE_S if name in COMPILED else PATIENCE_S:.0f}")
        try:
            uses: list[Any] = []
            work = work_of(name, w, inputs)
            work(uses)()
            call = work(None)  # recording costs host time
            call()
            torch.cuda.synchronize()
        except Exception as error:
            errors[name] = reason(error)
            print(f"! {errors[name]}")
            torch.cuda.synchronize()  # raises where the GPU is lost: the parent goes on without this column
        else:
            calls[name], kernels[name] = call, [use._asdict() for use in dict.fromkeys(uses)]
    print(f"wait {PATIENCE_S:.0f}")
    state: dict[str, float | None] = {"sm_clock_hz": None, "power_w": None}
    if monitor is None:
        samples = sample(calls, flush, FLUSHES[job["pass"]], rounds)
    else:
        with sampling(monitor, LOOK_S) as looks:
            samples = sample(calls, flush, FLUSHES[job["pass"]], rounds)
        seen = looks.summary
        state["sm_clock_hz"] = seen.sm_clock_hz.median if seen.sm_clock_hz else None
        state["power_w"] = seen.power_w.median if seen.power_w else None
    columns = {name: {**summary(samples[name]), "kernels": kernels[name]} for name in calls}
    return {"pass": job["pass"], "cell": job["cell"], **state, "columns": columns, "errors": errors}


def sample(
    calls: dict[str, Callable[[], object]], flush: Any, flushes: int, rounds: int
) -> dict[str, list[float]]:
    """`rounds` samples of each call, in seconds: a round has one of each, in an order of its own."""
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    order = slots_in_turn(rounds + WARM_ROUNDS, len(names), random.Random(0))
    for turn in range(rounds + WARM_ROUNDS):
        print("@ timing")
        for _ in range(HEAD_START):
            flush.zero_()
        now = [names[slot % len(names)] for slot in order[turn * len(names) : (turn + 1) * len(names)]]
        events = {name: timed(calls[name], flush, flushes) for name in now}
        torch.cuda.synchronize()
        for name, (start, end) in events.items():
            if turn >= WARM_ROUNDS:
                samples[name].append(start.elapsed_time(end) / 1e3)
    return samples


def timed(call: Callable[[], object], flush: Any, flushes: int) -> tuple[Any, Any]:
    """Events around the call, after writes that clear the L2 and let the launches get ahead of the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(flushes):
        flush.zero_()
    start.record()
    call()
    end.record()
    return start, end


def summary(samples: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of samples in seconds."""
    middle = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, method="inclusive") if len(samples) > 1 else [middle] * 3
    return {"median_s": middle, "quartiles_s": [low, high], "rounds": len(samples)}


def reason(error: Exception) -> str:
    """The first line of an error, short and without the folders of this machine."""
    text = error.message if isinstance(error, PerfkitError) else str(error)
    line = (text.strip().splitlines() or [""])[0]
    line = without_folders(line)[:200]
    return line if isinstance(error, (PerfkitError, ValueError)) else f"{type(error).__name__}: {line}"
