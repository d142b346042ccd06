"""CUPTI's profiler host calls: metrics into a configuration, pass counts, raw counters into values.

Works without a GPU where no availability image is given (CUPTI Profiler Host API).
"""

import ctypes
import math
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from perfkit.measure import cupti_structs as s
from perfkit.measure.counter_errors import CountersUnavailable, CuptiFailure, UnknownMetric
from perfkit.measure.cupti_library import Cupti, load

Buffer = ctypes.Array[ctypes.c_char]


class HostProfiler:
    """The metrics of one configuration on one chip. Owns CUPTI's host object, and its buffers."""

    def __init__(
        self,
        chip: str,
        metrics: Sequence[str],
        *,
        availability: Buffer | None = None,
        cupti: Cupti | None = None,
    ) -> None:
        """Configure `metrics` for `chip`; UnknownMetric or ChipUnsupported where that cannot be."""
        self._cupti = cupti or load()
        self._availability = availability
        self._host: int | None = None
        self.metrics = tuple(metrics)
        self.names = s.c_names(self.metrics)
        image = None if availability is None else s.address(availability)
        block = s.HostInitialize(profilerType=s.RANGE_PROFILER, pChipName=chip.encode(), availability=image)
        self._host = self._cupti.call("cuptiProfilerHostInitialize", block).host
        try:
            self.config, self.passes = self._configure()
        except CountersUnavailable:
            self.close()
            raise

    def __enter__(self) -> "HostProfiler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give CUPTI's host object back; a second call does nothing."""
        host, self._host = self._host, None
        if host is not None:
            with suppress(CountersUnavailable):
                self._cupti.call("cuptiProfilerHostDeinitialize", s.HostDeinitialize(host=host))

    def values(self, counter_data: Buffer, index: int) -> dict[str, float]:
        """The metrics' values of range `index`, in base units; what CUPTI could not evaluate is left out."""
        values = (ctypes.c_double * len(self.metrics))()
        block = s.HostEvaluateToGpuValues(
            host=self._host,
            image=s.address(counter_data),
            imageSize=len(counter_data),
            rangeIndex=index,
            names=self.names,
            count=len(self.metrics),
            values=values,
        )
        self._cupti.call("cuptiProfilerHostEvaluateToGpuValues", block)
        pairs = zip(self.metrics, values, strict=True)
        return {name: float(value) for name, value in pairs if math.isfinite(value)}

    def _configure(self) -> tuple[Buffer, int]:
        count = len(self.metrics)
        add = s.HostConfigAddMetrics(host=self._host, names=self.names, count=count)
        try:
            self._cupti.call("cuptiProfilerHostConfigAddMetrics", add)
        except CuptiFailure as error:  # CUPTI calls an unknown name an invalid parameter
            raise UnknownMetric(f"{error.reason}: {', '.join(self.metrics)}") from error
        query = s.HostGetConfigImageSize(host=self._host)
        size = self._cupti.call("cuptiProfilerHostGetConfigImageSize", query).size
        config = ctypes.create_string_buffer(size)
        image = s.HostGetConfigImage(host=self._host, size=size, image=s.address(config))
        self._cupti.call("cuptiProfilerHostGetConfigImage", image)
        passes = s.HostGetNumOfPasses(size=size, image=s.address(config))
        return config, self._cupti.call("cuptiProfilerHostGetNumOfPasses", passes).passes


def supported_chips(cupti: Cupti | None = None) -> tuple[str, ...]:
    """The chips that this libcupti names, as GH100."""
    block = (cupti or load()).call("cuptiProfilerHostGetSupportedChips", s.HostGetSupportedChips())
    return tuple(block.names[index].decode() for index in range(block.count))


def passes(chip: str, metrics: Sequence[str], cupti: Cupti | None = None) -> int:
    """How many passes `metrics` take on `chip`; UnknownMetric where one does not exist there."""
    with HostProfiler(chip, metrics, cupti=cupti) as host:
        return host.passes
