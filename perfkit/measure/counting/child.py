"""Counting, in a process of its own: Triton's interpreter has to be chosen before triton is imported.

TRITON_INTERPRET=1 python -m perfkit.measure.counting.child < requests.json > counts.json
"""

import gc
import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from perfkit.errors import PerfkitError
from perfkit.measure import correctness
from perfkit.measure.counting.passes import Passes
from perfkit.measure.counting.tally import Tally, extended
from perfkit.measure.counting.types import Count, Failure, Request
from perfkit.measure.counting.watcher import Watcher
from perfkit.measure.targets import resolve
from perfkit.ops.attention_workload import AttentionWorkload


class _Run:
    """One execution: its tally, and what the observers noted beside it."""

    def __init__(self, request: Request, w: AttentionWorkload) -> None:
        attention = partial(resolve(request.target), **msgspec.json.decode(request.options))
        _pose(request)
        inputs = correctness.make_inputs(w, "cpu")
        self.tally = Tally()
        self.watcher = Watcher(self.tally, request.sampling)
        named = {"Q": inputs.q, "K": inputs.k, "V": inputs.v, "dO": inputs.dout}
        self.passes = Passes(self.tally, named, lambda: self.watcher.busy)
        with ExitStack() as stack:
            # It is loaded exactly if there are kernels of Triton.
            if "triton.runtime.interpreter" in sys.modules:
                from perfkit.measure.counting.interpreter import observed

                stack.enter_context(observed(self.watcher))
            stack.enter_context(self.passes)
            self._count(False)  # the forward pass that a backward pass needs is run here
            work, _ = correctness.callables(w, inputs, attention, None)
            self._count(True)
            work()

    def _count(self, on: bool) -> None:
        self.watcher.counting = self.passes.counting = on


def counted(request: Request) -> Count:
    """Run the request, on one K/V head where that is asked for, and multiply up to the workload."""
    w = request.workload
    ran = msgspec.structs.replace(w, dtype="fp16" if w.dtype == "bf16" else w.dtype)
    groups, sampled = w.batch * w.kv_heads, request.sampling.heads == "one" and not request.ragged
    tally, twice = Tally(), False
    if groups == 1 or not sampled:
        run = _Run(request, ran)
        tally = run.tally
    else:
        run = _Run(request, _heads(ran, 1))
        # Kernels of Triton have a grid of heads; an operation of torch may make what all heads share.
        if twice := bool(run.passes.kernels):
            tally = extended(run.tally, _Run(request, _heads(ran, 2)).tally, groups)
        else:
            tally.add(run.tally.sums, groups)
    return Count(
        impl=request.impl,
        workload=w,
        moved=tally.moved(),
        atomics=tally.atomics(),
        uses=tuple(run.watcher.uses.values()),
        passes=tuple(run.passes.kernels),
        sampled=tuple(run.watcher.sampled),
        notes=_notes(request, run, twice),
    )


def _heads(w: AttentionWorkload, groups: int) -> AttentionWorkload:
    """The workload with so many K/V heads, and the query heads that share them."""
    return msgspec.structs.replace(w, batch=1, heads=groups * w.heads // w.kv_heads, kv_heads=groups)


def _notes(request: Request, run: _Run, twice: bool) -> tuple[str, ...]:
    w = request.workload
    groups, notes = w.batch * w.kv_heads, []
    if w.dtype == "bf16":
        notes.append("run in fp16: the interpreter multiplies bf16 wrongly, and the elements are as wide")
    if groups > 1 and request.sampling.heads == "one" and not request.ragged:
        shared = f" with {w.heads // w.kv_heads} query heads" if w.heads > w.kv_heads else ""
        times = "bytes of 1 and of 2 extended evenly" if twice else f"bytes times {groups}"
        notes.append(f"1 of {groups} K/V heads ran{shared}, {times}")
    if run.watcher.uses:
        major, minor = request.capability
        notes.append(f"tiles of compute capability {major}.{minor}")
        if run.watcher.described:
            notes.append("tiles read through tensor descriptors")
    notes += [
        f"{launch.kernel}: {launch.ran} of {launch.programs} programs ran, {launch.rule}"
        for launch in run.watcher.sampled
        if launch.ran < launch.programs
    ]
    return tuple(dict.fromkeys(notes))


def _pose(request: Request) -> None:
    """Have the kernels that are loaded choose tiles and loads as on the device that is asked for."""

    def descriptors(*_: Any) -> bool:
        return request.descriptors

    for name, module in list(sys.modules.items()):
        if name.startswith("perfkit.kernels."):
            if hasattr(module, "capability"):
                vars(module)["capability"] = lambda _: request.capability
            if hasattr(module, "use_descriptors"):
                vars(module)["use_descriptors"] = descriptors


def answer(request: Request) -> Count | Failure:
    """The count, or why there is none."""
    try:
        return counted(request)
    except Exception as error:  # a kernel may fail in any way, and the other process has to know how
        found = _own(error)
        name = request.impl
        if found is not None:
            return Failure(message=f"{name}: {found.message}", hint=found.hint)
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        return Failure(message=f"{name}: {type(error).__name__}: {text}")


def _own(error: BaseException | None) -> PerfkitError | None:
    """The error of perfkit that an error of the interpreter was made from, if there is one."""
    while error is not None and not isinstance(error, PerfkitError):
        error = error.__cause__ or error.__context__
    return error


def main() -> None:
    """Answer every request on standard input; what kernels print goes to standard error."""
    requests = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[Request, ...])
    # The interpreter makes millions of small objects: looking for cycles among them is a fifth of the time.
    gc.set_threshold(100_000, 50, 50)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(msgspec.json.encode([answer(request) for request in requests]))


if __name__ == "__main__":
    main()
