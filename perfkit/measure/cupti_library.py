"""Finding, loading and calling libcupti.

Loaded is what the process already has (torch brings one), then the nvidia-cuda-cupti wheel, then what the
dynamic linker or the CUDA toolkit offers. Two versions in one process would hook the driver twice.
"""

import ctypes
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from perfkit.measure import cupti_structs as s
from perfkit.measure.counter_errors import LibraryMissing, failure

_SONAMES: Final = ("libcupti.so.13", "libcupti.so.12")
_WHEEL_FOLDERS: Final = ("cu13/lib", "cuda_cupti/lib")
_TOOLKIT_FOLDERS: Final = ("lib64", "lib", "extras/CUPTI/lib64")
_INVALID_PARAMETER: Final = 1

Block = TypeVar("Block", bound=ctypes.Structure)


class Cupti:
    """A loaded libcupti: fills in block sizes and turns result codes into typed failures."""

    def __init__(self, library: Any, path: str = "") -> None:
        self._library = library
        self.path = path

    def call(self, function: str, block: Block) -> Block:
        """Call `function` with a parameter block and return it; CountersUnavailable on failure.

        Blocks grew over the versions: the newest size goes first, an older one where it is refused.
        """
        entry = self._entry(function)
        status = 0
        for size in s.sizes(type(block)):
            block.structSize = size
            status = entry(ctypes.byref(block))
            if status != _INVALID_PARAMETER:
                break
        self.check(function, status)
        return block

    def plain(self, function: str, *arguments: Any) -> None:
        """Call a function that takes plain arguments; CountersUnavailable on failure."""
        self.check(function, self._entry(function)(*arguments))

    def check(self, function: str, status: int) -> None:
        """Raise the typed failure for a result code other than success."""
        if status:
            raise failure(function, status, self._status_name(status))

    def _entry(self, function: str) -> Any:
        try:
            return getattr(self._library, function)
        except AttributeError as error:
            raise LibraryMissing(f"{self.path or 'libcupti'} is too old: it has no {function}") from error

    def _status_name(self, status: int) -> str:
        name = ctypes.c_char_p()
        try:
            self._library.cuptiGetResultString(status, ctypes.byref(name))
        except AttributeError:
            return "an error"
        return name.value.decode() if name.value else "an error"


@cache
def load() -> Cupti:
    """The libcupti of this process; LibraryMissing with everything that was tried."""
    tried: list[str] = []
    for candidate in candidates(_memory_map(), _wheel_roots(), _toolkit_roots()):
        try:
            return Cupti(ctypes.CDLL(candidate), candidate)
        except OSError as error:
            tried.append(f"{candidate}: {error}")
    raise LibraryMissing("libcupti cannot be loaded" + (f" ({'; '.join(tried)})" if tried else ""))


def candidates(memory_map: str, wheel_roots: Iterable[Path], toolkit_roots: Iterable[Path]) -> Iterator[str]:
    """Libraries to try, best first: mapped already, in a wheel, by name, in a toolkit.

    `memory_map` is the text of /proc/self/maps; the roots are folders that may not exist.
    """
    mapped = (line.split(maxsplit=5)[-1] for line in memory_map.splitlines() if "/libcupti.so" in line)
    yield from dict.fromkeys(mapped)
    folders = [root / folder for root in wheel_roots for folder in _WHEEL_FOLDERS]
    yield from _existing(folders)
    yield from _SONAMES
    yield from _existing([root / folder for root in toolkit_roots for folder in _TOOLKIT_FOLDERS])


def _existing(folders: Iterable[Path]) -> Iterator[str]:
    for folder in folders:
        yield from (str(folder / name) for name in _SONAMES if (folder / name).exists())


def _wheel_roots() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []


def _toolkit_roots() -> list[Path]:
    return sorted(Path("/usr/local").glob("cuda*"), reverse=True)


def _memory_map() -> str:
    try:
        return Path("/proc/self/maps").read_text()
    except OSError:
        return ""
