"""Hardware counters read inside the measuring process, by CUPTI's range profiler.

Source: CUPTI Range Profiler API (CUDA 12.6 update 2 and newer, compute capability 7.5 and newer).
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

import msgspec

from perfkit.measure import cupti_structs as s
from perfkit.measure.counter_errors import CountersUnavailable, CuptiFailure
from perfkit.measure.cupti_host import Buffer, HostProfiler
from perfkit.measure.cupti_library import Cupti, load

#: Kernels in one collection that are recorded unless the caller knows better.
DEFAULT_MAX_RANGES: Final = 128
#: Room for the one user range, and for the tree that it stands in.
_USER_RANGES: Final = 8


class CudaContext(msgspec.Struct, frozen=True, kw_only=True):
    """The CUDA context that is profiled."""

    handle: int
    device_index: int
    synchronize: Callable[[], None]


def current_context() -> CudaContext:
    """The context that torch works in, made current; CountersUnavailable where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise CountersUnavailable("torch sees no CUDA device", "run on a machine with an NVIDIA GPU")
    torch.zeros(1, device="cuda")  # the runtime makes a context at the first use
    handle = ctypes.c_void_p()
    status = ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(handle))
    if status or not handle.value:
        raise CuptiFailure(f"no CUDA context is current in this thread (cuCtxGetCurrent answered {status})")
    return CudaContext(
        handle=handle.value,
        device_index=torch.cuda.current_device(),
        synchronize=torch.cuda.synchronize,
    )


def chip_name(context: CudaContext | None = None, cupti: Cupti | None = None) -> str:
    """CUPTI's name of the chip, as GH100."""
    index = (context or current_context()).device_index
    cupti = cupti or load()
    cupti.call("cuptiProfilerInitialize", s.ProfilerInitialize())
    name = cupti.call("cuptiDeviceGetChipName", s.DeviceGetChipName(deviceIndex=index)).pChipName
    return str(name.decode())


class RangeProfiler:
    """Counts `metrics` while a callable runs: one range a kernel, or one for all of it.

    `per_kernel` replays each kernel as often as the passes need (AutoRange, KernelReplay); otherwise the
    whole callable is repeated (UserRange, UserReplay), and must be idempotent. The device is held only inside
    `collect`. Times taken inside are not times of the kernel.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        per_kernel: bool,
        max_ranges: int = DEFAULT_MAX_RANGES,
        cupti: Cupti | None = None,
        context: CudaContext | None = None,
    ) -> None:
        self.metrics = tuple(metrics)
        self.per_kernel = per_kernel
        self.max_ranges = max_ranges if per_kernel else _USER_RANGES
        self._given = (cupti, context)

    def __enter__(self) -> "RangeProfiler":
        """Configure the metrics for the device; CountersUnavailable says why that cannot be."""
        cupti, context = self._given
        self._context = context or current_context()
        self._cupti = cupti or load()
        self.chip = chip_name(self._context, self._cupti)
        self._host = HostProfiler(
            self.chip, self.metrics, availability=self._availability(), cupti=self._cupti
        )
        self.passes = self._host.passes
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._host.close()

    def collect(
        self, fn: Callable[[], object], prepare: Callable[[], object] | None = None
    ) -> list[dict[str, float]]:
        """Metric values in base units, one mapping a range, in launch order.

        `prepare` runs before each pass and is not counted. An error raised by `fn` passes through with the
        profiler switched off; CountersUnavailable where CUPTI fails.
        """
        session = _Session(self._cupti, self._context, self._host, self.per_kernel, self.max_ranges)
        try:
            session.configure()
            for _ in range(2 * self.passes + 1):
                if prepare is not None:
                    prepare()
                    self._context.synchronize()
                if session.one_pass(fn):
                    return session.results()
        finally:
            session.disable()
        raise CuptiFailure(f"{self.passes} passes were planned and twice as many did not suffice")

    def _availability(self) -> Buffer:
        """Which counters this device grants; the first call that a lack of privileges refuses."""
        handle = self._context.handle
        query = s.GetCounterAvailability(ctx=handle)
        size = self._cupti.call("cuptiProfilerGetCounterAvailability", query).imageSize
        image = ctypes.create_string_buffer(size)
        block = s.GetCounterAvailability(ctx=handle, imageSize=size, image=s.address(image))
        self._cupti.call("cuptiProfilerGetCounterAvailability", block)
        return image


class _Session:
    """One enabled range profiler, from Enable to Disable. Owns the counter data."""

    def __init__(
        self, cupti: Cupti, context: CudaContext, host: HostProfiler, per_kernel: bool, max_ranges: int
    ) -> None:
        self._cupti = cupti
        self._context = context
        self._host = host
        self._per_kernel = per_kernel
        self._max_ranges = max_ranges
        self._profiler: int | None = None

    def configure(self) -> None:
        """Enable the profiler and hand it the configuration and room for the counters."""
        enabled = self._cupti.call("cuptiRangeProfilerEnable", s.RangeEnable(ctx=self._context.handle))
        self._profiler = enabled.profiler
        query = s.RangeGetCounterDataSize(
            profiler=self._profiler,
            names=self._host.names,
            count=len(self._host.metrics),
            maxRanges=self._max_ranges,
            maxTreeNodes=self._max_ranges,
        )
        size = self._cupti.call("cuptiRangeProfilerGetCounterDataSize", query).size
        self._data = ctypes.create_string_buffer(size)
        block = s.RangeCounterDataInitialize(profiler=self._profiler, size=size, image=s.address(self._data))
        self._cupti.call("cuptiRangeProfilerCounterDataImageInitialize", block)
        config = s.RangeSetConfig(
            profiler=self._profiler,
            configSize=len(self._host.config),
            config=s.address(self._host.config),
            imageSize=size,
            image=s.address(self._data),
            range=s.AUTO_RANGE if self._per_kernel else s.USER_RANGE,
            replayMode=s.KERNEL_REPLAY if self._per_kernel else s.USER_REPLAY,
            maxRanges=self._max_ranges,
            nestingLevels=1,
            minNestingLevel=1,
            targetNestingLevel=0 if self._per_kernel else 1,
        )
        self._cupti.call("cuptiRangeProfilerSetConfig", config)

    def one_pass(self, fn: Callable[[], object]) -> bool:
        """Run `fn` counted; True when that was the last pass."""
        self._on("cuptiRangeProfilerStart")
        if not self._per_kernel:
            push = s.RangePush(profiler=self._profiler, name=b"range")
            self._cupti.call("cuptiRangeProfilerPushRange", push)
        fn()
        self._context.synchronize()
        if not self._per_kernel:
            self._on("cuptiRangeProfilerPopRange")
        stopped = self._cupti.call("cuptiRangeProfilerStop", s.RangeStop(profiler=self._profiler))
        return bool(stopped.allPassesSubmitted)

    def results(self) -> list[dict[str, float]]:
        """The values of every range."""
        decoded = self._cupti.call("cuptiRangeProfilerDecodeData", s.RangeDecodeData(profiler=self._profiler))
        if decoded.dropped:
            raise CuptiFailure(
                f"{decoded.dropped} kernels found no room beyond the first {self._max_ranges}",
                "count a shorter piece of work",
            )
        data = {"image": s.address(self._data), "imageSize": len(self._data)}
        info = self._cupti.call("cuptiRangeProfilerGetCounterDataInfo", s.RangeGetCounterDataInfo(**data))
        order = sorted(range(info.ranges), key=lambda index: self._launch(index, data))
        return [self._host.values(self._data, index) for index in order]

    def disable(self) -> None:
        """Let the device go; safe in any state."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            with suppress(CountersUnavailable):
                self._cupti.call("cuptiRangeProfilerDisable", s.RangeObject(profiler=profiler))

    def _launch(self, index: int, data: dict[str, int]) -> int:
        """AutoRange names ranges by launch number."""
        block = s.RangeGetRangeInfo(rangeIndex=index, delimiter=b"/", **data)
        name = self._cupti.call("cuptiRangeProfilerCounterDataGetRangeInfo", block).name or b""
        return int(name) if name.isdigit() else index

    def _on(self, function: str) -> None:
        self._cupti.call(function, s.RangeObject(profiler=self._profiler))
