"""libcupti: finding it, block sizes, failures by type, the profiler's sequence against a fake library."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit.errors import EnvironmentMissing
from perfkit.measure import cupti_structs as s
from perfkit.measure.counter_errors import (
    ChipUnsupported,
    CountersUnavailable,
    CuptiFailure,
    InsufficientPrivileges,
    LibraryMissing,
    ProfilerBusy,
    UnknownMetric,
    failure,
)
from perfkit.measure.cupti import CudaContext, RangeProfiler
from perfkit.measure.cupti_host import HostProfiler, passes, supported_chips
from perfkit.measure.cupti_library import Cupti, candidates, load
from perfkit.measure.kernel_names import LaunchLog, launched, short_name

INVALID_PARAMETER = 1


@pytest.fixture
def libcupti() -> Cupti:
    try:
        return load()
    except CountersUnavailable as error:
        pytest.skip(f"no libcupti on this machine: {error.reason}")


class FakeLibrary:
    """Stands for libcupti: records calls, fills in what the callers read, fails where told to."""

    def __init__(self, fail: dict[str, int] | None = None, ranges: int = 1, passes: int = 1) -> None:
        self.calls: list[str] = []
        self.blocks: list[Any] = []
        self._fail = fail or {}
        self._ranges = ranges
        self._passes = passes
        self._stops = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cupti"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == "cuptiGetResultString":
                return 0
            self.calls.append(name.removeprefix("cupti"))
            block = getattr(arguments[0], "_obj", None)
            self.blocks.append(block)
            if name in self._fail:
                return self._fail[name]
            self._fill(name, block)
            return 0

        return call

    def _fill(self, name: str, block: Any) -> None:
        if name == "cuptiDeviceGetChipName":
            block.pChipName = b"GH100"
        elif name == "cuptiProfilerGetCounterAvailability":
            block.imageSize = 16
        elif name == "cuptiProfilerHostInitialize":
            block.host = 0xB0
        elif name in ("cuptiProfilerHostGetConfigImageSize", "cuptiRangeProfilerGetCounterDataSize"):
            block.size = 64
        elif name == "cuptiProfilerHostGetNumOfPasses":
            block.passes = self._passes
        elif name == "cuptiRangeProfilerEnable":
            block.profiler = 0xA0
        elif name == "cuptiRangeProfilerStop":
            self._stops += 1
            block.allPassesSubmitted = self._stops >= self._passes
        elif name == "cuptiRangeProfilerGetCounterDataInfo":
            block.ranges = self._ranges
        elif name == "cuptiRangeProfilerCounterDataGetRangeInfo":
            # Stored last to first, to see that launch order is restored.
            block.name = str(self._ranges - 1 - block.rangeIndex).encode()
        elif name == "cuptiProfilerHostEvaluateToGpuValues":
            for index in range(block.count):
                block.values[index] = 100.0 * (index + 1) + block.rangeIndex


def context(log: list[str] | None = None) -> CudaContext:
    def synchronize() -> None:
        if log is not None:
            log.append("synchronize")

    return CudaContext(handle=0xC0, device_index=0, synchronize=synchronize)


def profiler(library: FakeLibrary, *, per_kernel: bool, log: list[str] | None = None) -> RangeProfiler:
    return RangeProfiler(
        ["a.sum", "b.sum"], per_kernel=per_kernel, cupti=Cupti(library), context=context(log)
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (35, InsufficientPrivileges),
        (40, InsufficientPrivileges),
        (39, ProfilerBusy),
        (26, ProfilerBusy),
        (17, UnknownMetric),
        (43, ChipUnsupported),
        (46, ChipUnsupported),
        (999, CuptiFailure),
    ],
)
def test_result_codes_become_typed_failures(status: int, kind: type[CountersUnavailable]) -> None:
    error = failure("cuptiSomething", status, "CUPTI_ERROR_X")
    assert type(error) is kind
    assert error.reason == f"cuptiSomething answered CUPTI_ERROR_X ({status})"
    assert error.fix
    assert isinstance(error, EnvironmentMissing)


def test_block_sizes_are_those_of_the_headers() -> None:
    # x86-64: a pointer and a size_t take 8 bytes; a size ends with its last field, unpadded.
    assert s.sizes(s.ProfilerInitialize) == (16,)
    assert s.sizes(s.HostInitialize) == (56, 48)  # CUDA 13.3 adds a pointer
    assert s.sizes(s.GetCounterAvailability) == (41, 40)  # and a byte
    assert s.sizes(s.RangeStop) == (41,)  # 16 + 3 x 8 + 1
    assert s.sizes(s.RangeSetConfig) == (90,)  # 16 + 5 x 8 + 2 x 4 + 8 + 2 x 2, padded to 80, + 8 + 2
    assert s.CallbackData.symbolName.offset == 32
    assert s.CallbackData.correlationId.offset == 64


def test_an_older_block_size_is_tried_where_the_newest_is_refused() -> None:
    seen: list[int] = []

    class Older:
        def cuptiProfilerHostInitialize(self, reference: Any) -> int:
            seen.append(reference._obj.structSize)
            return INVALID_PARAMETER if reference._obj.structSize > 48 else 0

    Cupti(Older()).call("cuptiProfilerHostInitialize", s.HostInitialize())
    assert seen == [56, 48]


def test_a_library_without_the_range_profiler_is_too_old() -> None:
    with pytest.raises(
        LibraryMissing, match=r"libcupti\.so\.12 is too old: it has no cuptiRangeProfilerEnable"
    ):
        Cupti(object(), "libcupti.so.12").call("cuptiRangeProfilerEnable", s.RangeEnable())


def test_the_library_that_is_loaded_already_goes_first(tmp_path: Path) -> None:
    wheel = tmp_path / "nvidia/cu13/lib"
    toolkit = tmp_path / "cuda/lib64"
    for folder in (wheel, toolkit):
        folder.mkdir(parents=True)
        (folder / "libcupti.so.13").touch()
    mapped = (
        "7f00-7f01 r-xp 00000000 08:01 42   /opt/torch/lib/libcupti.so.13\n"
        "7f01-7f02 r--p 00001000 08:01 42   /opt/torch/lib/libcupti.so.13\n"
        "7f02-7f03 rw-p 00000000 00:00 0\n"
    )
    found = list(candidates(mapped, [tmp_path / "nvidia"], [tmp_path / "cuda", tmp_path / "absent"]))
    assert found == [
        "/opt/torch/lib/libcupti.so.13",
        str(wheel / "libcupti.so.13"),
        "libcupti.so.13",
        "libcupti.so.12",
        str(toolkit / "libcupti.so.13"),
    ]


def test_one_range_for_the_whole_callable() -> None:
    log: list[str] = []
    library = FakeLibrary(passes=2)
    with profiler(library, per_kernel=False, log=log) as ranges:
        assert ranges.chip == "GH100"
        values = ranges.collect(lambda: log.append("work"), lambda: log.append("prepare"))
    assert values == [{"a.sum": 100.0, "b.sum": 200.0}]
    # Prepared and drained before each of the two passes, drained after it.
    assert log == ["prepare", "synchronize", "work", "synchronize"] * 2
    a_pass = [f"RangeProfiler{step}" for step in ("Start", "PushRange", "PopRange", "Stop")]
    start = library.calls.index("RangeProfilerStart")
    assert library.calls[start : start + 8] == a_pass * 2
    assert library.calls[-2:] == ["RangeProfilerDisable", "ProfilerHostDeinitialize"]


def test_one_range_a_kernel_in_launch_order() -> None:
    library = FakeLibrary(ranges=3)
    with profiler(library, per_kernel=True) as ranges:
        values = ranges.collect(lambda: None)
    assert [value["a.sum"] for value in values] == [102.0, 101.0, 100.0]
    assert "RangeProfilerPushRange" not in library.calls
    (config,) = (block for block in library.blocks if isinstance(block, s.RangeSetConfig))
    assert (config.range, config.replayMode) == (s.AUTO_RANGE, s.KERNEL_REPLAY)


@pytest.mark.parametrize("where", ["Start", "SetConfig", "DecodeData"])
def test_the_device_is_let_go_after_a_failure(where: str) -> None:
    library = FakeLibrary(fail={f"cuptiRangeProfiler{where}": 35})
    with profiler(library, per_kernel=True) as ranges, pytest.raises(InsufficientPrivileges):
        ranges.collect(lambda: None)
    assert library.calls[-2:] == ["RangeProfilerDisable", "ProfilerHostDeinitialize"]


def test_an_error_of_the_work_passes_through_and_lets_the_device_go() -> None:
    library = FakeLibrary()

    def broken() -> None:
        raise ZeroDivisionError

    with profiler(library, per_kernel=True) as ranges, pytest.raises(ZeroDivisionError):
        ranges.collect(broken)
    assert "RangeProfilerDisable" in library.calls


def test_a_refusal_at_the_first_question_leaves_nothing_open() -> None:
    library = FakeLibrary(fail={"cuptiProfilerGetCounterAvailability": 35})
    with pytest.raises(InsufficientPrivileges), profiler(library, per_kernel=True):
        pass
    assert "RangeProfilerEnable" not in library.calls


def test_a_metric_that_does_not_exist_gives_the_host_object_back() -> None:
    library = FakeLibrary(fail={"cuptiProfilerHostConfigAddMetrics": INVALID_PARAMETER})
    with pytest.raises(UnknownMetric, match=r"made\.up"):
        HostProfiler("GH100", ["made.up"], cupti=Cupti(library))
    assert library.calls[-1] == "ProfilerHostDeinitialize"


def test_passes_that_never_end_are_given_up() -> None:
    library = FakeLibrary(passes=1)
    library._stops = -(10**6)
    with profiler(library, per_kernel=False) as ranges, pytest.raises(CuptiFailure, match="did not suffice"):
        ranges.collect(lambda: None)


def test_the_real_library_knows_the_chips(libcupti: Cupti) -> None:
    assert {"TU104", "GA100", "GA102", "AD102", "GH100", "GB100", "GB202"} <= set(supported_chips(libcupti))


def test_the_real_library_refuses_what_is_not_there(libcupti: Cupti) -> None:
    with pytest.raises(UnknownMetric, match=r"made__up\.sum"):
        passes("GH100", ["made__up.sum"], libcupti)
    with pytest.raises(CountersUnavailable):
        passes("XX999", ["gpu__time_duration.sum"], libcupti)


def test_launches_are_noted_once_from_any_thread() -> None:
    log = LaunchLog()
    log.note(2, True, "a")  # runtime launch ...
    log.note(1, True, "a")  # ... with the driver launch inside it
    log.note(1, False, "a")
    log.note(2, False, "a")
    log.note(1, True, "b")  # a driver launch by itself, as Triton does it
    log.note(1, False, "b")
    log.note(2, True, "c")  # a runtime launch that shows no driver launch
    log.note(2, False, "c")
    assert log.symbols == ["a", "b", "c"]


def test_names_come_from_callbacks_and_the_subscription_ends() -> None:
    class Subscribed(FakeLibrary):
        def cuptiSubscribe(self, _subscriber: Any, callback: Any, _user: Any) -> int:
            self.callback = callback
            return 0

    library = Subscribed()

    def work() -> None:
        data = s.CallbackData(callbackSite=0, symbolName=b"my_kernel")
        library.callback(None, 1, 307, ctypes.pointer(data))

    assert launched(work, lambda: None, Cupti(library)) == ["my_kernel"]
    assert library.calls.count("EnableCallback") == 14
    assert library.calls[-1] == "Unsubscribe"


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_attn_fwd", "_attn_fwd"),
        ("triton_poi_fused_add_0", "triton_poi_fused_add_0"),
        ("sm90_xmma_gemm_bf16bf16_tn", "sm90_xmma_gemm_bf16bf16_tn"),
        ("_Z6saxpy2ifPfS_", "saxpy2"),
        ("_ZN5flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi64EEEEvNS_16Flash_fwd_paramsE",
         "flash::flash_fwd_kernel"),
        ("_ZN2at6native29vectorized_elementwise_kernelILi4ENS0_11FillFunctorIfEEEEviT0_",
         "at::native::vectorized_elementwise_kernel"),
        ("_ZN2at6native54_GLOBAL__N__b7b6b8e5_21_DistributionKernel_cu_0badcafe6kernelILi4EEEvi",
         "at::native::kernel"),
        ("_ZN12_GLOBAL__N_17softmaxEv", "softmax"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, (int)4>>(int, float*)",
         "at::native::reduce_kernel"),
        ("void (anonymous namespace)::softmax_warp_forward<float, 10>(float*, int)", "softmax_warp_forward"),
        ("void cutlass::Kernel2<cutlass_80_tensorop>(Params)", "cutlass::Kernel2"),
    ],
)  # fmt: skip
def test_short_names(symbol: str, name: str) -> None:
    assert short_name(symbol) == name
