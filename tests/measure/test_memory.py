"""Peak memory above what was there, with a fake allocator."""

import pytest

from perfkit.measure import memory


class FakeAllocator:
    """Holds 100 bytes already; the first call of the work adds a workspace of 7 that stays."""

    def __init__(self) -> None:
        self.held, self.peak, self.calls = 100, 100, 0

    def work(self) -> str:
        self.held += 0 if self.calls else 7
        self.calls += 1
        self.peak = max(self.peak, self.held + 50)
        return "output"

    def synchronize(self) -> None: ...

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.held

    def memory_allocated(self) -> int:
        return self.held

    def max_memory_allocated(self) -> int:
        return self.peak

    def mem_get_info(self) -> tuple[int, int]:
        return 1000, 2000

    def memory_reserved(self) -> int:
        return 300


def test_peak_leaves_out_what_was_there_and_what_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeAllocator()
    monkeypatch.setattr(memory, "cuda", lambda: gpu)
    assert memory.peak_memory(gpu.work) == 50
    assert gpu.calls == 2


def test_free_memory_counts_the_unused_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cuda", FakeAllocator)
    assert memory.free_memory() == 1000 + (300 - 100)
