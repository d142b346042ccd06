"""One implementation on one workload, run once between cudaProfilerStart and cudaProfilerStop, for ncu.

python -m perfkit.measure.replay attention flash WORKLOAD.json's text OPTIONS.json's text
"""

import sys
from collections.abc import Sequence

import msgspec

from perfkit.measure import correctness
from perfkit.measure.targets import bound
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation


def command(op: str, row: Implementation, w: AttentionWorkload) -> list[str]:
    """The command line that replays `row` on `w` in a fresh process."""
    texts = (msgspec.json.encode(value).decode() for value in (w, row.options))
    return [sys.executable, "-m", "perfkit.measure.replay", op, row.name, *texts]


def main(arguments: Sequence[str]) -> None:
    """Warm up, then run once with the profiler on and L2 swept clean."""
    import torch

    from perfkit.measure.counters import SWEEPS
    from perfkit.measure.flush import L2Flush

    op, impl, text, options = arguments
    row = find_op(op).implementation(impl)
    assert row is not None, impl
    row = msgspec.structs.replace(row, options=msgspec.json.decode(options))
    w = msgspec.json.decode(text, type=AttentionWorkload)
    work, _ = correctness.callables(w, correctness.make_inputs(w, "cuda"), bound(row), None)
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
