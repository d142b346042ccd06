"""Names of the kernels that a callable launches, in launch order, and how to shorten them."""

import ctypes
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from perfkit.measure import cupti_structs as s
from perfkit.measure.counter_errors import CountersUnavailable
from perfkit.measure.cupti_library import Cupti, load

_API_ENTER: Final = 0
_DRIVER, _RUNTIME = 1, 2
#: CUpti_driver_api_trace_cbid: cuLaunchKernel, cuLaunchCooperativeKernel, cuLaunchKernelEx, each also _ptsz.
_DRIVER_LAUNCHES: Final = (307, 442, 477, 478, 652, 653)
#: CUpti_runtime_api_trace_cbid: cudaLaunchKernel, cudaLaunchCooperativeKernel, cudaLaunchKernelExC and
#: __cudaLaunchKernel, each also _ptsz.
_RUNTIME_LAUNCHES: Final = (211, 214, 269, 270, 430, 431, 505, 506)

_CALLBACK: Final = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.POINTER(s.CallbackData)
)


class LaunchLog:
    """Launches as the callbacks tell them, from any thread.

    A runtime launch may or may not show a driver launch inside it: both are watched, and a driver launch
    inside a runtime launch of the same thread is the same kernel.
    """

    def __init__(self) -> None:
        self.symbols: list[str] = []
        self._inside_runtime: set[int] = set()

    def note(self, domain: int, enter: bool, symbol: str) -> None:
        """Take in one callback; never raises."""
        thread = threading.get_ident()
        if domain == _RUNTIME and not enter:
            self._inside_runtime.discard(thread)
        elif enter and thread not in self._inside_runtime:
            self.symbols.append(symbol)
            if domain == _RUNTIME:
                self._inside_runtime.add(thread)


def launched(
    fn: Callable[[], object], synchronize: Callable[[], None], cupti: Cupti | None = None
) -> list[str]:
    """The symbols of the kernels that `fn` launches, from whichever thread, in launch order.

    Taken from CUPTI's callbacks (CUPTI Callback API); from torch.profiler where another client, such as
    torch.profiler used earlier, holds the one subscription that CUPTI grants.
    """
    try:
        with _subscription(cupti or load()) as log:
            fn()
            synchronize()
        return log.symbols
    except CountersUnavailable:
        return _profiled(fn, synchronize)


@contextmanager
def _subscription(cupti: Cupti) -> Iterator[LaunchLog]:
    log = LaunchLog()

    def callback(_user: int, domain: int, _id: int, data: Any) -> None:
        # An exception cannot leave a C callback.
        with suppress(Exception):
            symbol = data.contents.symbolName or b"?"
            log.note(domain, data.contents.callbackSite == _API_ENTER, symbol.decode(errors="replace"))

    keep = _CALLBACK(callback)  # the library calls it until unsubscribed
    subscriber = ctypes.c_void_p()
    cupti.plain("cuptiSubscribe", ctypes.byref(subscriber), keep, None)
    try:
        for domain, launches in ((_DRIVER, _DRIVER_LAUNCHES), (_RUNTIME, _RUNTIME_LAUNCHES)):
            for launch in launches:
                with suppress(CountersUnavailable):  # an older library lacks the newest ids
                    cupti.plain(
                        "cuptiEnableCallback", ctypes.c_uint32(1), subscriber, domain, ctypes.c_uint32(launch)
                    )
        yield log
    finally:
        with suppress(CountersUnavailable):
            cupti.plain("cuptiUnsubscribe", subscriber)


def _profiled(fn: Callable[[], object], synchronize: Callable[[], None]) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        fn()
        synchronize()
    events: list[Any] = [event for event in trace.events() if str(event.device_type).endswith("CUDA")]
    events.sort(key=lambda event: event.time_range.start)
    return [event.name for event in events if not event.name.startswith(("Memcpy", "Memset"))]


def short_name(symbol: str) -> str:
    """A kernel's name for display: namespaces and function, without template arguments and parameters.

    Takes mangled (Itanium C++ ABI, "External Names") and demangled names; C and Triton names stay as they
    are.
    """
    if symbol.startswith("_Z"):
        return "::".join(_identifiers(symbol)) or symbol
    if "(" not in symbol and "<" not in symbol:
        return symbol
    plain = symbol.replace("(anonymous namespace)::", "")
    while (stripped := re.sub(r"<[^<>]*>", "", plain)) != plain:
        plain = stripped
    return plain.split("(")[0].strip().split(" ")[-1] or symbol


def _identifiers(mangled: str) -> list[str]:
    """The identifiers of a mangled name up to its template arguments."""
    rest = re.sub(r"^_Z(L|N[rVK]*)?", "", mangled)
    found = []
    while match := re.match(r"L?(\d+)|St", rest):
        if match.group(1) is None:
            identifier, rest = "std", rest[2:]
        else:
            end = match.end() + int(match.group(1))
            identifier, rest = rest[match.end() : end], rest[end:]
        if not identifier.startswith("_GLOBAL__N_"):
            found.append(identifier)
        if mangled[2] != "N":
            break
    return found
