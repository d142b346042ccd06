"""The CUDA sampler against a fake torch.cuda: a stream on which sleeps, events and work have a length."""

from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest

from perfkit.errors import PerfkitError
from perfkit.measure import cuda_sampler, energy
from perfkit.measure.clock import NvmlClock


class FakeEvent:
    """Passes at a time on the stream."""

    def __init__(self, gpu: "FakeCuda") -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.gpu.host += 1e-6
        self.gpu.stream = self.at = max(self.gpu.stream, self.gpu.host)

    def query(self) -> bool:
        return self.at <= self.gpu.host

    def elapsed_time(self, other: "FakeEvent") -> float:
        return (other.at - self.at) * 1e3


class FakeCuda:
    """One stream and one host, each with its own time in seconds; `_sleep` runs at 1 GHz."""

    def __init__(self) -> None:
        self.host = self.stream = 0.0

    def Event(self, **_: bool) -> FakeEvent:
        return FakeEvent(self)

    def launch(self, seconds: float, host_s: float = 5e-6) -> None:
        self.host += host_s
        self.stream = max(self.stream, self.host) + seconds

    def _sleep(self, cycles: int) -> None:
        self.launch(cycles / 1e9)

    def synchronize(self) -> None:
        self.host = max(self.host, self.stream)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_sampler, "cuda", lambda: fake)
    monkeypatch.setattr(cuda_sampler.time, "perf_counter", lambda: fake.host)
    return fake


def sampler(work: Callable[[], object], flush: Any = None) -> cuda_sampler.CudaSampler:
    return cuda_sampler.CudaSampler([work], flush, None)


def test_launch_overhead_is_not_in_the_samples(gpu: FakeCuda) -> None:
    def work() -> None:  # ten launches of 1 us each, 20 us of host time each
        for _ in range(10):
            gpu.launch(1e-6, host_s=20e-6)

    taken = sampler(work)
    (batch,) = taken.batch(20)
    assert taken.launch_hidden == [True]
    assert batch.dropped == 0
    assert batch.samples_s == pytest.approx([10e-6] * 20)
    assert batch.clock_hz == [None] * 20


def test_flush_is_outside_the_samples(gpu: FakeCuda) -> None:
    (batch,) = sampler(lambda: gpu.launch(30e-6), flush=lambda: gpu.launch(5e-3)).batch(3)
    assert batch.samples_s == pytest.approx([30e-6] * 3)


def test_work_that_synchronises_is_found_out(gpu: FakeCuda) -> None:
    def work() -> None:
        gpu.launch(100e-6)
        gpu.synchronize()
        gpu.launch(100e-6, host_s=50e-6)

    taken = sampler(work)
    assert taken.launch_hidden == [False]
    (batch,) = taken.batch(5)
    assert batch.dropped == 0
    # No sleep: the first launch waits 5 us for the host, the second 50 us + 1 us of the fake's end event.
    assert batch.samples_s == pytest.approx([255e-6] * 5, rel=0.02)


def test_a_host_that_slows_down_makes_the_sleep_longer(gpu: FakeCuda) -> None:
    pace = {"host_s": 20e-6}
    taken = sampler(lambda: gpu.launch(1e-6, **pace))
    pace["host_s"] = 500e-6
    batches = []
    while not batches or batches[-1].dropped:
        batches += taken.batch(1)
    assert taken.launch_hidden == [True]
    assert [batch.dropped for batch in batches[:-1]] == [1] * (len(batches) - 1)
    assert len(batches) > 1
    assert batches[-1].samples_s == pytest.approx([1e-6])


def test_a_host_that_never_keeps_up_ends_in_unhidden_samples(gpu: FakeCuda) -> None:
    pace = {"host_s": 20e-6}
    taken = sampler(lambda: gpu.launch(1e-6, **pace))
    pace["host_s"] = 1.0
    batches = [taken.batch(1)[0] for _ in range(20)]
    assert taken.launch_hidden == [False]
    assert batches[-1].dropped == 0
    assert batches[-1].samples_s == pytest.approx([1.0], rel=0.01)


def test_clock_is_asked_once_a_batch(gpu: FakeCuda) -> None:
    asked = []
    clock = NvmlClock(lambda: asked.append(1) or 1.7e9)  # type: ignore[func-returns-value]
    (batch,) = cuda_sampler.CudaSampler([lambda: gpu.launch(1e-3)], None, clock).batch(4)
    assert batch.clock_hz == [1.7e9] * 4
    assert len(asked) == 1


@pytest.mark.parametrize(("seconds", "stamps_round_the_sleep"), [(10e-6, True), (1e-3, False)])
def test_short_work_is_stamped_round_the_sleep(
    gpu: FakeCuda, seconds: float, stamps_round_the_sleep: bool
) -> None:
    at: list[float] = []

    class Stamps(NvmlClock):
        def before(self, _: int) -> None:
            at.append(gpu.stream)

        def after(self, _: int) -> None:
            at.append(gpu.stream)

    taken = cuda_sampler.CudaSampler([lambda: gpu.launch(seconds)], None, Stamps(lambda: None))
    at.clear()
    taken.batch(1)
    stretch = at[1] - at[0]
    assert (stretch > seconds + 0.9 * cuda_sampler.LEAST_SLEEP_S) is stamps_round_the_sleep


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 3), (0.01, 5)])
def test_warm_up_runs_three_times_and_for_50_ms(gpu: FakeCuda, seconds: float, calls: int) -> None:
    done = []

    def work() -> None:
        done.append(1)
        gpu.launch(seconds)

    cuda_sampler.warm_up(work)
    assert len(done) == calls


class Meter:
    """A GPU at 500 W while busy whose counter moves every 50 ms; a look takes 20 us."""

    def __init__(self, gpu: FakeCuda, moves: bool = True) -> None:
        self.gpu, self.moves = gpu, moves

    def read(self, _: str) -> tuple[float | None, str]:
        self.gpu.host += 20e-6
        return (500.0 * 0.05 * int(self.gpu.host / 0.05) if self.moves else 7.0), ""


def test_energy_of_steady_work(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "cuda", lambda: gpu)
    meter: Any = Meter(gpu)
    measured = energy.energy_per_op(lambda: gpu.launch(1e-3), meter, seconds=0.4)
    assert measured.seconds_per_op == pytest.approx(1e-3, rel=0.01)
    assert measured.watts == pytest.approx(500.0, rel=0.01)
    assert measured.joules_per_op == pytest.approx(0.5, rel=0.01)  # 500 W for 1 ms
    assert measured.seconds >= 0.4
    assert measured.reason == ""


def test_energy_without_ticks_is_none_with_a_reason(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "cuda", lambda: gpu)
    meter: Any = Meter(gpu, moves=False)
    measured = energy.energy_per_op(lambda: gpu.launch(1e-3), meter, seconds=0.4)
    assert (measured.joules_per_op, measured.watts) == (None, None)
    assert measured.reason == "the energy counter did not move often enough"
    assert measured.seconds_per_op == pytest.approx(1e-3, rel=0.01)
    assert measured.seconds < 2.5  # 3 * 0.4 + 1 and what was queued


def test_energy_without_a_counter(gpu: FakeCuda) -> None:
    meter = MagicMock()
    meter.read.return_value = (None, "Not Supported")
    measured = energy.energy_per_op(lambda: gpu.launch(1e-3), meter)
    assert (measured.joules_per_op, measured.ops) == (None, 0)
    assert measured.reason == "no energy counter: Not Supported"


def test_two_works_take_turns_and_keep_their_own_times(gpu: FakeCuda) -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            gpu.launch(seconds)

        return run

    taken = cuda_sampler.CudaSampler([work("A", 1e-3), work("B", 2e-3)], None, None)
    order.clear()
    one, two = taken.batch(4)
    text = "".join(order)
    assert {text[:4], text[4:]} <= {"ABBA", "BAAB"}
    assert one.samples_s == pytest.approx([1e-3] * 4)
    assert two.samples_s == pytest.approx([2e-3] * 4)


def test_a_round_with_an_invalid_sample_is_dropped_for_both(gpu: FakeCuda) -> None:
    pace = {"host_s": 20e-6}
    works = [lambda: gpu.launch(1e-6), lambda: gpu.launch(1e-6, **pace)]
    taken = cuda_sampler.CudaSampler(works, None, None)
    pace["host_s"] = 500e-6
    one, two = taken.batch(1)
    assert (one.dropped, one.samples_s, two.dropped, two.samples_s) == (1, [], 1, [])


def test_interrupt_leaves_no_work_behind(gpu: FakeCuda) -> None:
    pressed = []

    def work() -> None:
        if pressed:
            raise KeyboardInterrupt
        gpu.launch(1e-3)

    taken = sampler(work)
    pressed.append(True)
    with pytest.raises(KeyboardInterrupt):
        taken.batch(3)
    assert gpu.host >= gpu.stream


def test_capture_says_what_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = MagicMock()
    gpu.graph.return_value.__exit__.return_value = False
    gpu.stream.return_value.__exit__.return_value = False
    monkeypatch.setattr(cuda_sampler, "cuda", lambda: gpu)
    work = MagicMock(side_effect=[None, RuntimeError("not permitted when stream is capturing\nmore")])
    with pytest.raises(PerfkitError) as caught:
        cuda_sampler.capture(work)
    assert caught.value.message == (
        "the work cannot be captured in a CUDA graph: not permitted when stream is capturing"
    )
