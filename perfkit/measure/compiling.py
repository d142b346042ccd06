"""What is compiled during an implementation's first call: shown while it lasts, and timed.

Triton calls a hook before it compiles a kernel, or finds it in its cache on disk, and a listener afterwards
(`knobs.runtime.jit_cache_hook` and `knobs.compilation.listener`, Triton 3.6 to 3.8). Where there are none, no
more is shown than that this is the first call. torch.compile, which has its kernels compiled elsewhere, calls
hooks of its own (`torch._dynamo.callback`, torch 2.11 to 2.13).
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from perfkit.measure.session import Stage
from perfkit.model.units import show

FIRST_CALL: Final = "first call"
BY_TORCH: Final = "torch.compile"
#: Who imports it will call torch.compile; to import that for everybody's hooks would take seconds.
_COMPILED: Final = "torch.nn.attention.flex_attention"


@contextmanager
def compilation(stage: Stage) -> Iterator[dict[str, float]]:
    """Show `compiling KERNEL` while Triton does; yields kernel -> seconds, without what was in its cache.

    Several variants of a kernel add up, as does all that torch.compile does. Hooks that others have set are
    called too.
    """
    seconds: dict[str, float] = {}
    since: list[float] = []  # when torch.compile began, where it is at work

    def begins(**given: Any) -> bool:
        if not since:
            stage(f"compiling {getattr(given.get('fn'), 'name', 'a kernel')}")
        return False  # true would keep Triton from compiling

    def ended(**given: Any) -> None:
        if since:
            return
        stage(FIRST_CALL)
        if not given["cache_hit"]:
            name = given["src"].name
            seconds[name] = seconds.get(name, 0.0) + given["times"].total * 1e-6

    def torch_begins(_: object) -> None:
        since.append(time.perf_counter())
        stage(f"compiling by {BY_TORCH}")

    def torch_ended(_: object) -> None:
        seconds[BY_TORCH] = seconds.get(BY_TORCH, 0.0) + time.perf_counter() - since.pop()
        stage(FIRST_CALL)

    stage(FIRST_CALL)
    with ExitStack() as hooks:
        if _COMPILED in sys.modules:
            hooks.enter_context(_told(torch_begins, torch_ended))
        try:
            from triton import knobs
        except ImportError:
            pass
        else:
            hooks.enter_context(_added(knobs, "runtime", "jit_cache_hook", begins))
            hooks.enter_context(_added(knobs, "compilation", "listener", ended))
        yield seconds


@contextmanager
def _told(begins: Callable[[object], None], ended: Callable[[object], None]) -> Iterator[None]:
    """The hooks called around each compilation by torch.compile; nested ones count as one."""
    from torch._dynamo.callback import callback_handler

    callback_handler.register_start_callback(begins)
    callback_handler.register_end_callback(ended)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(begins)
        callback_handler.remove_end_callback(ended)


@contextmanager
def _added(knobs: Any, group: str, name: str, hook: Callable[..., Any]) -> Iterator[None]:
    """`hook` after the one that is set at `knobs.<group>.<name>`; nothing where Triton has no such place."""
    place = getattr(knobs, group, None)
    if not hasattr(place, name):
        yield
        return
    before = getattr(place, name)

    def both(**given: Any) -> Any:
        answer = before(**given) if before is not None else None
        return answer or hook(**given)

    setattr(place, name, both)
    try:
        yield
    finally:
        setattr(place, name, before)


def words(seconds: Mapping[str, float]) -> str:
    """What a record says of a first call that compiled: the sum, then the kernels, the slowest first."""
    slowest = sorted(seconds.items(), key=lambda item: -item[1])
    each = ", ".join(f"{name} {show(took, 'time')}" for name, took in slowest)
    return f"compiled in {show(sum(seconds.values()), 'time')}: {each}"
