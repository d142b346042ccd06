"""The backend of the local CPU: the whole chain for real wherever torch is, against measured ceilings.

A CPU has no data sheet here: its ceilings are what torch's own matmul and copy reach on it, measured at the
start and marked so. Counters, clock and energy are not read.
"""

import platform
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from perfkit.errors import EnvironmentMissing
from perfkit.measure import correctness
from perfkit.measure.draft import Draft, OutOfMemory, Refused
from perfkit.measure.environment import environment
from perfkit.measure.loop import Batch, collect, slots_in_turn
from perfkit.measure.options import Options
from perfkit.measure.session import Stage, Work
from perfkit.measure.stopping import StoppingRule
from perfkit.measure.targets import HOW_TO_INSTALL, bound
from perfkit.measure.timing import timing_of
from perfkit.model.device import DeviceProfile
from perfkit.model.device_figures import Figure, Figures, LevelFigures, Memory, Peak
from perfkit.model.units import show
from perfkit.ops.base import Op
from perfkit.record import Environment, Status

MATMUL: Final = 1024
COPY_BYTES: Final = 256 << 20
_SECONDS: Final = 0.3


class CpuSampler:
    """Wall-clock samples of works on the CPU, round by round. Caches are as the last run left them."""

    def __init__(self, works: Sequence[Callable[[], object]]) -> None:
        self._works = works
        self._draw = random.Random(0)
        for work in works:
            work()  # threads, buffers and kernels are made in the first run

    @property
    def works(self) -> int:
        """How many pieces of work are sampled."""
        return len(self._works)

    def batch(self, count: int) -> list[Batch]:
        """`count` rounds, one sample after another: A B, B A, A B, ..."""
        works = self._works
        taken = {
            slot: _timed(works[slot % len(works)]) for slot in slots_in_turn(count, len(works), self._draw)
        }
        samples = ([taken[slot] for slot in range(at, len(taken), len(works))] for at in range(len(works)))
        return [Batch(samples_s=one, clock_hz=[None] * count) for one in samples]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _best(work: Callable[[], object]) -> float:
    """The shortest of the runs that fit _SECONDS, the first one not counted: a ceiling is the best seen."""
    work()
    samples: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < _SECONDS or len(samples) < 3:
        samples.append(_timed(work))
    return min(samples)


def _matmul_rate(dtype: Any) -> float:
    """FLOP/s of the best of three products: one as it is, one transposed, and 16 of a quarter of the side.

    torch has other code for each, and in 16 bit one may be four times as fast as another.
    """
    import torch

    one = torch.randn(MATMUL, MATMUL, dtype=dtype)
    several = torch.randn(16, MATMUL // 4, MATMUL // 4, dtype=dtype)
    whole, parts = 2 * MATMUL**3, 16 * 2 * (MATMUL // 4) ** 3
    works: tuple[tuple[int, Callable[[], object]], ...] = (
        (whole, lambda: one @ one),
        (whole, lambda: one @ one.T),
        (parts, lambda: torch.bmm(several, several.transpose(1, 2))),
    )
    return max(flops / _best(work) for flops, work in works)


def measured_profile(dtypes: tuple[str, ...]) -> DeviceProfile:
    """This CPU as a device: matmul and copy rates of torch, measured now. Needs torch and a second."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            "--device cpu measures with torch, which is not installed", HOW_TO_INSTALL
        ) from error
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    cores = torch.get_num_threads()
    clock = 1e6  # per-clock rates mean nothing here; a nominal MHz keeps their rounding small
    peaks = []
    for dtype in dtypes:
        rate = _matmul_rate(kinds[dtype])
        per_clock = max(1, round(rate / clock / cores))
        peaks.append(
            Peak(dtype=dtype, pipe="vector", flop_per_s=per_clock * clock * cores,
                 flop_per_clock_per_sm=per_clock, source="matmul")
        )  # fmt: skip
    source = torch.randn(COPY_BYTES // 4)
    target = torch.empty_like(source)
    bandwidth = 2 * COPY_BYTES / _best(lambda: target.copy_(source))
    memory, cache = _memory_bytes(), _cache_bytes()

    def system(value: int) -> Figure[int]:
        return Figure(value=value, source="system")

    return DeviceProfile(
        name="cpu",
        model=environment(with_torch=False).cpu or platform.machine(),
        vendor="CPU",
        architecture=platform.machine(),
        chip="cpu",
        compute_capability="0.0",
        derived=True,
        peaks=tuple(peaks),
        figures=Figures(
            sm_count=system(cores),
            boost_hz=Figure(value=clock, source="nominal"),
            exp_per_clock_per_sm=Figure(value=1, source="nominal"),
            registers_bytes_per_sm=Figure(value=1, source="nominal"),
            shared_bytes_per_block=Figure(value=1, source="nominal"),
        ),
        memory=Memory(
            dram=LevelFigures(
                capacity_bytes=system(memory), bytes_per_s=Figure(value=bandwidth, source="copy")
            ),
            l2=LevelFigures(capacity_bytes=system(cache)),
            shared=LevelFigures(capacity_bytes=Figure(value=1, source="nominal")),
        ),
        sources={
            "matmul": f"measured: torch matmul up to {MATMUL}^3 on {cores} threads, best of three shapes",
            "copy": f"measured: torch copy of {COPY_BYTES >> 20} MiB, read + write, best of {_SECONDS} s",
            "system": "the operating system",
            "nominal": "no meaning on a CPU; 1 MHz stands for its clock",
        },
    )


def _memory_bytes() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cache_bytes() -> int:
    """The last-level cache, or 1 byte where the system does not say."""
    import os

    sizes = [
        os.sysconf(name)
        for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE")
        if name in os.sysconf_names
    ]
    return max([1, *sizes])


def _free_bytes() -> int:
    with open("/proc/meminfo") as lines:
        return next(
            (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62
        )


def open_cpu(dtype: str, options: Options) -> "CpuBackend":
    """The backend of this CPU, its ceilings for `dtype` measured first."""
    return CpuBackend(measured_profile((dtype,)), options)


class CpuBackend:
    """Measures `standard` and torch's SDPA on this CPU."""

    name = "cpu"
    hardware: str | None = "cpu"
    missing = "not read on a CPU"
    status: Status = "measured"
    notes: tuple[str, ...] = ("ceilings are torch's own matmul and copy on this CPU, measured",)

    def __init__(self, profile: DeviceProfile, options: Options) -> None:
        self.profile = profile
        self.options = options
        self._bench = correctness.Bench("cpu")

    def environment(self) -> Environment:
        """Versions and names, torch's included."""
        return environment(with_torch=True)

    def prepare(self, op: Op, draft: Draft, stage: Stage) -> Work:  # noqa: ARG002
        """Hold the result against the oracle."""
        w, row = draft.workload, draft.row
        need = row.workspace(w) + 4 * (w.query_bytes + w.key_bytes)
        if need > _free_bytes():
            raise Refused(
                f"needs {show(need, 'bytes')}, and {show(_free_bytes(), 'bytes')} of memory are free"
            )
        stage("checking against the oracle")
        inputs, judge = self._bench.inputs(w)
        attention: Any = bound(row)
        try:
            work, result = correctness.callables(w, inputs, attention, None)
            errors = judge.errors(result())
        except (ValueError, NotImplementedError) as error:
            raise Refused(str(error).splitlines()[0]) from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate" not in str(error):
                raise
            raise OutOfMemory(f"predicted need {show(need, 'bytes')}") from error
        draft.put("error", errors.error, "measured", note=f"against float64, {errors.scope}")
        draft.put("eager_error", errors.eager_error, "measured", note=errors.scope)
        correctness.require(w, errors)
        return work

    def time(self, drafts: Sequence[Draft], works: Sequence[Work], stage: Stage) -> None:
        """Wall-clock time."""
        stage("timing")
        sampler = CpuSampler([work for work in works if work is not None])
        rule = StoppingRule(limit_s=self.options.limit_s)
        for draft, collected in zip(drafts, collect(sampler, rule, time.perf_counter), strict=True):
            timing = timing_of(
                collected, clock_source="none", cold=False, graph=False, launch_hidden=True, warmup_s=0.0,
                interleaved=len(drafts) > 1,
            )  # fmt: skip
            draft.timed(timing, self.missing)

    def examine(self, op: Op, draft: Draft, work: Work, stage: Stage) -> None:
        """Nothing else can be read on a CPU."""
