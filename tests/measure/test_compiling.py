"""What is shown and noted of compilation: Triton's hooks called by hand, and by Triton for an absent GPU."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
triton: Any = pytest.importorskip("triton")

from perfkit.measure.compiling import compilation, words  # noqa: E402


def begin(name: str) -> Any:
    """As Triton does before it compiles; true keeps it from that."""
    return triton.knobs.runtime.jit_cache_hook(fn=SimpleNamespace(name=name), repr=name)


def end(name: str, microseconds: int, cache_hit: bool = False) -> None:
    """As Triton does afterwards."""
    times = SimpleNamespace(total=microseconds)
    triton.knobs.compilation.listener(src=SimpleNamespace(name=name), times=times, cache_hit=cache_hit)


def hooks() -> tuple[Any, Any]:
    return triton.knobs.runtime.jit_cache_hook, triton.knobs.compilation.listener


def test_a_kernel_is_named_while_it_compiles() -> None:
    seen: list[str] = []
    before = hooks()
    with compilation(seen.append) as seconds:
        for name, took, cached in (("one", 1_500_000, False), ("one", 250_000, False), ("two", 4_000, True)):
            assert not begin(name)
            end(name, took, cached)
    assert seen[::2] == ["first call"] * 4
    assert seen[1::2] == ["compiling one", "compiling one", "compiling two"]
    assert seconds == {"one": pytest.approx(1.75)}  # two variants; what was on disk took no compilation
    assert hooks() == before


def test_hooks_of_others_are_called_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def skip(**given: Any) -> bool:
        called.append(given["fn"].name)
        return True

    def listen(**given: Any) -> None:
        called.append(given["src"].name)

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", skip)
    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    with compilation(lambda _: None) as seconds:
        assert begin("one") is True  # the other's answer holds
        end("two", 1)
    assert (called, list(seconds)) == (["one", "two"], ["two"])
    assert hooks() == (skip, listen)


def test_torch_compile_is_shown_and_timed() -> None:
    """Its kernels, which may be compiled in between, are part of it; what is compiled already is no more."""
    pytest.importorskip("torch.nn.attention.flex_attention")

    def backend(graph: Any, _: Any) -> Any:
        end("one", 5_000_000)
        return graph

    seen: list[str] = []
    called = torch.compile(lambda tensor: tensor + 1, backend=backend, dynamic=False)
    with compilation(seen.append) as seconds:
        for size in (2, 2, 3):
            called(torch.ones(size))
        assert seen == ["first call", *["compiling by torch.compile", "first call"] * 2]
        end("two", 4_000)
    assert list(seconds) == ["torch.compile", "two"]
    assert 0 < seconds["torch.compile"] < 5
    handler = torch._dynamo.callback.callback_handler
    assert handler.start_callbacks == handler.end_callbacks == []


def test_torch_compile_is_not_imported_for_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.nn.attention.flex_attention", raising=False)
    monkeypatch.setitem(sys.modules, "torch._dynamo.callback", None)  # an import would fail
    with compilation(lambda _: None) as seconds:
        pass
    assert seconds == {}


def fail_to_compile() -> None:
    with compilation(lambda _: None):
        raise RuntimeError


def test_hooks_come_back_where_a_kernel_fails() -> None:
    before = hooks()
    with pytest.raises(RuntimeError):
        fail_to_compile()
    assert hooks() == before


@pytest.mark.parametrize(
    "knobs", [SimpleNamespace(), SimpleNamespace(runtime=SimpleNamespace(), compilation=SimpleNamespace())]
)
def test_a_triton_without_hooks_only_has_a_first_call(knobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "knobs", knobs)
    seen: list[str] = []
    with compilation(seen.append) as seconds:
        pass
    assert (seen, seconds) == (["first call"], {})


def test_without_triton_there_is_only_a_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    seen: list[str] = []
    with compilation(seen.append):
        pass
    assert seen == ["first call"]


def test_the_note_has_the_sum_and_the_slowest_first() -> None:
    assert words({"quick": 0.25, "slow": 3.0}) == "compiled in 3.25 s: slow 3.00 s, quick 250 ms"


class Elsewhere:
    """A driver of a GPU of compute capability 9.0 that is not here: enough to compile, not to launch."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


KERNEL = """
import triton
import triton.language as tl

@triton.jit
def copies(source, target, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(target + place, tl.load(source + place))
"""


def test_triton_itself_calls_the_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled anew, then from memory, and by a new process from disk (here: with an empty memory)."""
    from triton.runtime import driver

    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(KERNEL)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(driver, "_active", Elsewhere())
    seen: list[str] = []
    with compilation(seen.append) as first:
        for _ in range(2):
            module.copies.warmup(torch.float32, torch.float32, COUNT=64, grid=(1,))
    module.copies.device_caches.clear()
    with compilation(seen.append) as second:
        module.copies.warmup(torch.float32, torch.float32, COUNT=64, grid=(1,))
    assert seen == ["first call", "compiling copies", "first call"] * 2
    assert list(first) == ["copies"]
    assert 0 < first["copies"] < 60
    assert second == {}
