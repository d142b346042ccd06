"""What hardware counters say about one callable: the one door to CUPTI and ncu.

DRAM is behind a write-back cache. When a kernel ends, lines that it wrote may still be dirty in L2 and not
yet DRAM writes; when it begins, dirty lines of earlier work wait there and are evicted at its cost. A settled
reading removes both. L2 is swept clean by *reading* a buffer before the range; the range holds the work and a
second read sweep, over another buffer, that drives the work's dirty lines out; and what that second sweep
costs by itself, after the same clean start, is subtracted. So DRAM traffic is of the work from a cold, clean
L2 until all it wrote is in DRAM. Values of single kernels cannot be settled: they are raw, the first kernel
from the same cold start.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final, Protocol

import msgspec

from perfkit.measure import ncu
from perfkit.measure.counter_errors import CountersUnavailable, InsufficientPrivileges, ProfilerBusy
from perfkit.measure.cupti import DEFAULT_MAX_RANGES, RangeProfiler, chip_name, current_context
from perfkit.measure.flush import L2Flush
from perfkit.measure.kernel_names import launched, short_name
from perfkit.measure.metrics import MetricSet, metric_set, quantities
from perfkit.record import KernelCounts

__all__ = ["CounterCheck", "CounterReading", "CountersUnavailable", "KernelCounts", "collect", "self_check"]

GROUPS: Final = ("core", "flops", "l1")
DRAM: Final[tuple[str, ...]] = ("dram_read_bytes", "dram_write_bytes")

#: A sweep of k capacities under random replacement leaves exp(-k) of what was there: 1.8 % for 4.
SWEEPS: Final = 4

#: Number in a record -> counter quantities that are that number, best first. SM<->L2 traffic is taken at L1
#: where the chip counts it there: on GH100, L2 counts requests of several SMs for one line as one.
RECORD_TAGS: Final[dict[str, tuple[str, ...]]] = {
    "dram_read": ("dram_read_bytes",),
    "dram_write": ("dram_write_bytes",),
    "l2_read": ("l1_fill_bytes", "l2_read_bytes"),
    "l2_write": ("l2_write_bytes",),
    "flops_tensor": ("tensor_flop",),
    "flops_vector": ("vector_flop",),
    "exps_measured": ("xu_inst",),
}

CHECK_BYTES: Final = 512 * 2**20
TOLERANCE: Final = 0.01

Work = Callable[[], object]


class CounterReading(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one callable.

    `kernels` are raw, in launch order. `totals` are sums over the kernels, except that DRAM's are settled
    where `settled` is true; `raw_dram` keeps the sums that they replace. Quantities and units: see
    `perfkit.measure.metrics`.
    """

    kernels: tuple[KernelCounts, ...]
    totals: dict[str, float]
    raw_dram: dict[str, float]
    settled: bool
    chip: str
    method: str  # "cupti" or "ncu"
    passes: int
    notes: tuple[str, ...] = ()


class CounterCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Known traffic beside counted traffic, in bytes. Counters are to be believed only where `ok`."""

    expected: dict[str, float]
    measured: dict[str, float]
    ok: bool
    reason: str = ""
    fix: str = ""

    def require(self) -> None:
        """CountersUnavailable with the reason where the check failed."""
        if not self.ok:
            raise CountersUnavailable(self.reason, self.fix)


class Backend(Protocol):
    """Something that counts in this process."""

    method: str

    def chip(self) -> str:
        """CUPTI's name of the chip."""

    def names(self, work: Work) -> list[str]:
        """The kernels that `work` launches, in order; runs it once."""

    def count(
        self, metrics: Sequence[str], work: Work, *, per_kernel: bool, prepare: Work, max_ranges: int
    ) -> tuple[list[dict[str, float]], int]:
        """Metric values per range, and the passes that they took."""

    def sweeps(self) -> tuple[Work, Work]:
        """Two read sweeps over different buffers: one to begin with, one to count."""


class CuptiBackend:
    """Counting with CUPTI's range profiler on torch's current device."""

    method = "cupti"

    def chip(self) -> str:
        return chip_name()

    def names(self, work: Work) -> list[str]:
        return launched(work, current_context().synchronize)

    def count(
        self, metrics: Sequence[str], work: Work, *, per_kernel: bool, prepare: Work, max_ranges: int
    ) -> tuple[list[dict[str, float]], int]:
        with RangeProfiler(metrics, per_kernel=per_kernel, max_ranges=max_ranges) as profiler:
            return profiler.collect(work, prepare), profiler.passes

    def sweeps(self) -> tuple[Work, Work]:
        return L2Flush(sweeps=SWEEPS), L2Flush(sweeps=SWEEPS)


def collect(
    fn: Work,
    *,
    chip_hint: str | None = None,
    dtype: str,
    prepare: Work | None = None,
    settled: bool = True,
    groups: Sequence[str] = GROUPS,
    command: Sequence[str] | None = None,
    backend: Backend | None = None,
) -> CounterReading:
    """Count what `fn` does; CountersUnavailable(reason, fix) where that cannot be.

    `fn` runs several times, so it must be idempotent, or `prepare` (run before each, uncounted) must make it
    so; and it must be warm: kernels that tune or compile something inside would be counted. `command` is a
    command line that does the same between cudaProfilerStart and cudaProfilerStop, for ncu where CUPTI does
    not work; `chip_hint` names the chip for it.
    """
    try:
        return _in_process(fn, dtype, prepare or _nothing, settled, groups, backend or CuptiBackend())
    except (InsufficientPrivileges, ProfilerBusy):
        raise  # ncu needs the same rights and the same hardware
    except CountersUnavailable as error:
        if command is None:
            raise
        return _with_ncu(command, chip_hint or "", dtype, f"ncu instead of CUPTI: {error.reason}")


def _in_process(
    fn: Work, dtype: str, prepare: Work, settled: bool, groups: Sequence[str], backend: Backend
) -> CounterReading:
    chip = backend.chip()
    metrics = metric_set(chip, dtype)
    clean, sweep = backend.sweeps()
    start = _in_turn(prepare, clean)
    prepare()
    names = backend.names(fn)
    ranges, passes, notes = _kernels(fn, start, metrics, groups, backend, len(names))
    if len(names) != len(ranges):
        notes.append(f"{len(ranges)} kernels counted, {len(names)} launches seen: kernels are numbered")
        names = [f"kernel {number}" for number in range(len(ranges))]
    kernels = tuple(
        KernelCounts(name=short_name(name), values=quantities(metrics, raw))
        for name, raw in zip(names, ranges, strict=True)
    )
    totals = total(kernels)
    raw_dram = {tag: totals[tag] for tag in DRAM if tag in totals}
    dram = metrics.only(*DRAM)
    if settled and dram:
        counted, more = _settled(fn, start, clean, sweep, metrics, backend)
        totals |= counted
        passes += more
    return CounterReading(
        kernels=kernels,
        totals=totals,
        raw_dram=raw_dram,
        settled=settled and bool(dram),
        chip=chip,
        method=backend.method,
        passes=passes,
        notes=tuple(notes),
    )


def _kernels(
    fn: Work, start: Work, metrics: MetricSet, groups: Sequence[str], backend: Backend, launches: int
) -> tuple[list[dict[str, float]], int, list[str]]:
    """Raw values per kernel with all groups merged, the passes they took, and what is to be noted."""
    ranges: list[dict[str, float]] = []
    notes: list[str] = []
    passes = 0
    for group in metrics.groups:
        if group.name not in groups:
            continue
        found, more = backend.count(
            group.metrics,
            fn,
            per_kernel=True,
            prepare=start,
            max_ranges=max(DEFAULT_MAX_RANGES, 2 * launches),
        )
        passes += more
        if not ranges:
            ranges = found
        elif len(found) == len(ranges):
            ranges = [have | new for have, new in zip(ranges, found, strict=True)]
        else:
            notes.append(f"{group.name} left out: {len(found)} kernels in place of {len(ranges)}")
    return ranges, passes, notes


def _settled(
    fn: Work, start: Work, clean: Work, sweep: Work, metrics: MetricSet, backend: Backend
) -> tuple[dict[str, float], int]:
    """DRAM bytes of `fn` with its dirty lines written back, and the passes that this took."""
    names = metrics.only(*DRAM)

    def count(work: Work, before: Work) -> tuple[dict[str, float], int]:
        ranges, passes = backend.count(names, work, per_kernel=False, prepare=before, max_ranges=1)
        return quantities(metrics, ranges[0]), passes

    alone, first = count(sweep, clean)
    together, second = count(_in_turn(fn, sweep), start)
    return settle(together, alone), first + second


def settle(together: Mapping[str, float], alone: Mapping[str, float]) -> dict[str, float]:
    """DRAM bytes of the work, from those of work and sweep together and of the sweep alone; never below 0."""
    return {tag: max(0.0, together[tag] - alone.get(tag, 0.0)) for tag in DRAM if tag in together}


def total(kernels: Sequence[KernelCounts]) -> dict[str, float]:
    """Sums over the kernels, of the quantities that every one of them has."""
    if not kernels:
        return {}
    tags = [tag for tag in kernels[0].values if all(tag in kernel.values for kernel in kernels)]
    return {tag: sum(kernel.values[tag] for kernel in kernels) for tag in tags}


def _with_ncu(command: Sequence[str], chip: str, dtype: str, note: str) -> CounterReading:
    kernels = tuple(ncu.collect(command, metric_set(chip, dtype)))
    totals = total(kernels)
    return CounterReading(
        kernels=kernels,
        totals=totals,
        raw_dram={tag: totals[tag] for tag in DRAM if tag in totals},
        settled=False,
        chip=chip,
        method="ncu",
        passes=0,
        notes=(note,),
    )


def check(expected: Mapping[str, float], measured: Mapping[str, float], tolerance: float) -> CounterCheck:
    """Whether every expected number of bytes was counted, within a relative `tolerance`."""
    seen = {tag: measured[tag] for tag in expected if tag in measured}
    wrong = [
        f"{tag} {value:.0f} for {expected[tag]:.0f} ({value / expected[tag] - 1:+.1%})"
        for tag, value in seen.items()
        if abs(value / expected[tag] - 1) > tolerance
    ]
    if not seen:
        wrong = ["none of the expected quantities was counted"]
    return CounterCheck(
        expected=dict(expected),
        measured=seen,
        ok=not wrong,
        reason=f"counters fail the self-check with a copy of known size: {'; '.join(wrong)}" if wrong else "",
        fix="another process may be using the GPU; ECC kept inside DRAM (GDDR boards) counts as traffic too"
        if wrong
        else "",
    )


@cache
def self_check(tolerance: float = TOLERANCE) -> CounterCheck:
    """One kernel that reads and writes 512 MiB, counted; once a process. Not ok also where nothing counts."""
    expected = dict.fromkeys((*DRAM, "l2_read_bytes", "l2_write_bytes"), float(CHECK_BYTES))
    try:
        reading = collect(_copy_kernel(CHECK_BYTES), dtype="fp32", groups=("core",))
    except CountersUnavailable as error:
        return CounterCheck(expected=expected, measured={}, ok=False, reason=error.reason, fix=error.fix)
    return check(expected, reading.totals, tolerance)


def _copy_kernel(size_bytes: int) -> Work:
    """A kernel that reads and writes `size_bytes`; negation, because a plain copy may be no kernel at all."""
    current_context()
    import torch

    source = torch.ones(size_bytes // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    torch.neg(source, out=target)
    return lambda: torch.neg(source, out=target)


def _in_turn(first: Work, second: Work) -> Work:
    def both() -> None:
        first()
        second()

    return both


def _nothing() -> None:
    return None
