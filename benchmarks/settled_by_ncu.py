"""DRAM bytes of one implementation by perfkit and by Nsight Compute, with what it left dirty in L2 counted.

    python benchmarks/settled_by_ncu.py flash '{"seq_q": 16384, "seq_k": 16384}'

ncu counts a kernel until it ends, when its last lines are still dirty in L2 and no DRAM write yet. So ncu is
given a range of the kernel and a read sweep behind it, with its own flushing of caches off: what the two
move, less what the same sweep moves after nothing, is what the kernel moved. The first range of a process
is not used: it finds 3.5 MB of ncu's own dirty lines. What a kernel re-reads differs from run to run, by a
few percent where K and V do not fit L2: so both are medians.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from perfkit.measure import ncu
from perfkit.measure.counters import DRAM, SWEEPS, collect, settle
from perfkit.measure.metrics import metric_set, quantities
from perfkit.ops.attention_workload import AttentionWorkload

#: Ranges of the work, of which the median is taken.
TURNS = 15


def by_ncu(impl: str, w: AttentionWorkload, chip: str) -> dict[str, float]:
    """Settled DRAM bytes by ncu: `dram_read_bytes` and `dram_write_bytes`."""
    metrics = metric_set(chip, w.dtype)
    shape = msgspec.json.encode(w).decode()
    command = [sys.executable, str(Path(__file__).resolve()), impl, shape, "--child"]
    seen = ncu.profile(command, metrics.only(*DRAM), timeout_s=60, unit="range")
    _, *together, alone = (quantities(metrics, one.values) for one in seen)
    return middle([settle(one, alone) for one in together])


def by_perfkit(impl: str, w: AttentionWorkload) -> dict[str, float]:
    """The same by perfkit, in this process."""
    work = callable_of(impl, w)
    work()
    return middle([collect(work, dtype=w.dtype, groups=()).totals for _ in range(TURNS)])


def middle(turns: list[dict[str, float]]) -> dict[str, float]:
    """The median of every quantity."""
    return {tag: statistics.median(turn[tag] for turn in turns) for tag in DRAM}


def callable_of(impl: str, w: AttentionWorkload) -> Callable[[], object]:
    """The implementation on inputs of its own."""
    from perfkit.measure import correctness
    from perfkit.measure.targets import resolve
    from perfkit.ops import find_op

    row = find_op("attention").implementation(impl)
    assert row is not None, impl
    return correctness.callables(w, correctness.make_inputs(w, "cuda"), resolve(row.target), None)[0]


def child(impl: str, w: AttentionWorkload) -> None:
    """What ncu profiles: the sweep by itself, then the work and the sweep, each from a clean cold L2."""
    import torch

    from perfkit.measure.flush import L2Flush

    work = callable_of(impl, w)
    clean, sweep = L2Flush(sweeps=SWEEPS), L2Flush(sweeps=SWEEPS)
    work()
    sweep()
    for counted in ((sweep,), *[(work, sweep)] * TURNS, (sweep,)):
        clean()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for one in counted:
            one()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main() -> None:
    """The child's part, or the figures."""
    impl, shape, *rest = sys.argv[1:]
    w = msgspec.json.decode(shape, type=AttentionWorkload)
    if rest == ["--child"]:
        child(impl, w)
    else:
        print("ncu    ", by_ncu(impl, w, "GH100"))
        print("perfkit", by_perfkit(impl, w))


if __name__ == "__main__":
    main()
