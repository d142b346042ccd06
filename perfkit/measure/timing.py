"""How long a piece of GPU work takes: CUDA events, cold L2, no launch overhead, the clock of every sample.

Samples come from `perfkit.measure.cuda_sampler`, the decision to stop from `perfkit.measure.loop`. Seconds
and hertz throughout.
"""

import time
from collections.abc import Callable, Sequence

from perfkit.measure.clock import ClockProbe, ClockSource
from perfkit.measure.cuda_sampler import CudaSampler, capture, warm_up
from perfkit.measure.flush import L2Flush
from perfkit.measure.loop import Collected, Progress, collect
from perfkit.measure.stopping import StoppingRule
from perfkit.model.median import Interval, median, median_interval
from perfkit.record import Timing

__all__ = ["Timing", "time_cuda", "timing_of"]


def time_cuda(
    works: Sequence[Callable[[], object]],
    *,
    flush: L2Flush | None,
    rule: StoppingRule,
    clock: ClockProbe | None,
    use_graph: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Timing]:
    """Time each of `works` on the current CUDA stream until `rule` is content; several are interleaved.

    `flush` None measures a warm L2. `use_graph` replays one captured call: for work of many small launches.
    Ctrl-C returns what was measured so far, with `interrupted` set (KeyboardInterrupt only where that is
    nothing). Raises PerfkitError where a work cannot be captured.
    """
    began = time.perf_counter()
    for fn in works:
        warm_up(fn)
    sampler = CudaSampler([capture(fn) if use_graph else fn for fn in works], flush, clock)
    warmup_s = time.perf_counter() - began
    collected = collect(sampler, rule, time.perf_counter, on_progress)
    return [
        timing_of(
            one,
            clock_source=clock.source if clock else "none",
            cold=flush is not None,
            graph=use_graph,
            launch_hidden=hidden,
            warmup_s=warmup_s,
            interleaved=len(works) > 1,
        )
        for one, hidden in zip(collected, sampler.launch_hidden, strict=True)
    ]


def timing_of(
    collected: Collected,
    *,
    clock_source: ClockSource,
    cold: bool,
    graph: bool,
    launch_hidden: bool,
    warmup_s: float,
    interleaved: bool,
) -> Timing:
    """The Timing of collected samples; there is at least one."""
    interval: Interval | None = median_interval(collected.samples_s)
    return Timing(
        samples_s=[round(sample, 10) for sample in collected.samples_s],  # events resolve 32 ns
        clock_hz=[None if hz is None else round(hz) for hz in collected.clock_hz],
        clock_source=clock_source,
        median_s=median(collected.samples_s),
        ci_low_s=interval.low if interval else None,
        ci_high_s=interval.high if interval else None,
        stop_reason=collected.stop.reason,
        converged=collected.stop.converged,
        cold=cold,
        graph=graph,
        launch_hidden=launch_hidden,
        dropped=collected.dropped,
        warmup_s=warmup_s,
        interleaved=interleaved,
    )
