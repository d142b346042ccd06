"""The one place that knows the inside of Triton's interpreter: it reports launches, programs and accesses.

Written against triton.runtime.interpreter of Triton 3.6 to 3.8. There GridExecutor runs a kernel once for
each program; whatever form a load has (pointers, block pointers, tensor descriptors), it becomes addresses
and a mask that go through four functions of the module `_interpreter`.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from perfkit.errors import EnvironmentMissing

Index = tuple[int, int, int]


class Observer(Protocol):
    """Is told what kernels do; each call comes before the thing happens."""

    def launch(self, kernel: str, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """A kernel is launched with `arguments` by name; `options` also has its warps and stages."""

    def program(self, index: Index, grid: Index) -> bool:
        """Whether the program at `index` is to run."""

    def program_done(self) -> None:
        """The program ran."""

    def launch_done(self) -> None:
        """All programs ran."""

    def read(self, pointers: Any, mask: Any, width: int) -> None:
        """A load of `width` bytes a lane."""

    def written(self, pointers: Any, mask: Any, width: int) -> None:
        """A store of `width` bytes a lane."""

    def atomic(self, pointers: Any, mask: Any, width: int) -> None:
        """An atomic operation with an operand of `width` bytes a lane."""


class _Memory:
    """The interpreter's `_interpreter`, with an observer told of each access."""

    def __init__(self, real: Any, observer: Observer) -> None:
        self._real, self._observer = real, observer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._observer.read(pointers, mask, dtype.itemsize)
        return self._real.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self._observer.written(pointers, mask, value.dtype.itemsize)
        return self._real.store(pointers, value, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        self._observer.atomic(pointers, mask, value.dtype.itemsize)
        return self._real.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers: Any, expected: Any, value: Any, order: Any) -> Any:
        self._observer.atomic(pointers, None, value.dtype.itemsize)
        return self._real.atomic_cas(pointers, expected, value, order)


class _Programs:
    """A kernel as GridExecutor calls it, once for each program; it looks like the kernel to `inspect`."""

    def __init__(self, kernel: Callable[..., Any], interpreter: Any, observer: Observer) -> None:
        self._kernel, self._interpreter, self._observer = kernel, interpreter, observer
        self.__name__ = kernel.__name__
        self.__globals__ = kernel.__globals__
        self.__signature__ = inspect.signature(kernel)

    def __call__(self, **arguments: Any) -> None:
        builder = self._interpreter.interpreter_builder
        if self._observer.program(builder.grid_idx, builder.grid_dim):
            self._kernel(**arguments)
            self._observer.program_done()


class _Patches:
    """Stands for `_patch_lang`, which makes triton.language interpreted, at every call of a jit function.

    Half of the interpreter's time goes there. Within a launch it has to be done once for each module.
    """

    def __init__(self, real: Callable[[Any], Any]) -> None:
        self._real, self._done = real, set[int]()

    def __call__(self, function: Any) -> Any:
        module = id(function.__globals__)
        if module in self._done:
            return None  # the first call of a launch is a new one; of later ones nobody takes the result
        self._done.add(module)
        return self._real(function)

    def forget(self) -> None:
        self._done.clear()


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Kernels run in the interpreter under the eyes of `observer`. EnvironmentMissing where they cannot."""
    interpreter = _checked()
    executor = interpreter.GridExecutor
    before = (interpreter._interpreter, interpreter._patch_lang, executor.__call__)
    patches = _Patches(before[1])

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = self.fn
        taken = inspect.signature(kernel).parameters
        bound = inspect.getcallargs(kernel, *args, **{k: v for k, v in kwargs.items() if k in taken})
        observer.launch(kernel.__name__, bound, kwargs)
        patches.forget()
        self.fn = _Programs(kernel, interpreter, observer)
        try:
            result = before[2](self, *args, **kwargs)
        finally:
            self.fn = kernel
        observer.launch_done()
        return result

    interpreter._interpreter = _Memory(before[0], observer)
    interpreter._patch_lang = patches
    executor.__call__ = call
    try:
        yield
    finally:
        interpreter._interpreter, interpreter._patch_lang, executor.__call__ = before


def _checked() -> Any:
    """The module of the interpreter, if it is one that this module knows."""
    try:
        import triton
        from triton.runtime import interpreter
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            f"{error.name} is not installed: it executes the kernels that are counted"
        ) from error
    needed = {
        interpreter: ("_interpreter", "_patch_lang", "interpreter_builder", "GridExecutor"),
        getattr(interpreter, "_interpreter", None): ("load", "store", "atomic_rmw", "atomic_cas"),
        getattr(interpreter, "InterpreterBuilder", None): ("create_masked_load", "create_masked_store"),
    }
    absent = [name for owner, names in needed.items() for name in names if not hasattr(owner, name)]
    if absent:
        raise EnvironmentMissing(
            f"the interpreter of Triton {triton.__version__} has no {', '.join(absent)}",
            "its inside has changed: counting works with Triton 3.6 to 3.8",
        )
    _check_numpy(triton.__version__)
    return interpreter


def _check_numpy(triton: str) -> None:
    import numpy

    def version(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:2])

    if version(triton) < (3, 7) and version(numpy.__version__) >= (2, 4):
        raise EnvironmentMissing(
            f"the interpreter of Triton {triton} cannot run loops with NumPy {numpy.__version__}",
            "install Triton 3.7 or newer, or NumPy below 2.4",
        )
