"""One implementation on one workload, run once between cudaProfilerStart and cudaProfilerStop, for ncu.

python -m perfkit.measure.replay attention flash WORKLOAD.json's text
"""

import sys
from collections.abc import Sequence

import msgspec

from perfkit.measure import correctness
from perfkit.measure.targets import resolve
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload


def command(op: str, impl: str, w: AttentionWorkload) -> list[str]:
    """The command line that replays `impl` on `w` in a fresh process."""
    return [sys.executable, "-m", "perfkit.measure.replay", op, impl, msgspec.json.encode(w).decode()]


def main(arguments: Sequence[str]) -> None:
    """Warm up, then run once with the profiler on and L2 swept clean."""
    import torch

    from perfkit.measure.counters import SWEEPS
    from perfkit.measure.flush import L2Flush

    op, impl, text = arguments
    row = find_op(op).implementation(impl)
    assert row is not None, impl
    w = msgspec.json.decode(text, type=AttentionWorkload)
    work, _ = correctness.callables(w, correctness.make_inputs(w, "cuda"), resolve(row.target), None)
    sweep = L2Flush(sweeps=SWEEPS)
    for _ in range(3):
        work()
    sweep()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    work()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1:])
