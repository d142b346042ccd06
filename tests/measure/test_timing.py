"""The sampling loop with a fake sampler and clock, and the pure parts around it."""

from collections import Counter
from random import Random

import pytest

from perfkit.measure.clock import NvmlClock, clock_between, stamp_kernel
from perfkit.measure.energy import mean_power
from perfkit.measure.loop import Batch, Collected, Progress, collect, next_count, slots_in_turn
from perfkit.measure.stopping import Stop, StoppingRule
from perfkit.measure.timing import timing_of


class FakeSampler:
    """Every sample takes `sample_s` (exact in binary); batches in `events` raise, or drop everything."""

    def __init__(self, sample_s: float = 1 / 128, events: dict[int, str] | None = None) -> None:
        self.sample_s, self.events = sample_s, events or {}
        self.time, self.counts = 0.0, list[int]()

    def now(self) -> float:
        return self.time

    works = 1

    def batch(self, count: int) -> list[Batch]:
        self.counts.append(count)
        self.time += count * self.sample_s
        match self.events.get(len(self.counts)):
            case "ctrl-c":
                raise KeyboardInterrupt
            case "drop":
                return [Batch(samples_s=[], clock_hz=[], dropped=count)]
            case _:
                return [Batch(samples_s=[self.sample_s] * count, clock_hz=[1.5e9] * count)]


def test_loop_stops_when_the_rule_is_content() -> None:
    sampler = FakeSampler()
    seen: list[Progress] = []
    (collected,) = collect(sampler, StoppingRule(), sampler.now, seen.append)
    # A first batch of 5, then 0.1 s * 128/s = 12 at a time; 0.5 s are 64 samples: 5 + 5 * 12 = 65.
    assert sampler.counts == [5, 12, 12, 12, 12, 12]
    assert len(collected.samples_s) == len(collected.clock_hz) == 65
    assert collected.stop == Stop(reason="median known to 0.00% (below 0.50%)", converged=True)
    assert [step.samples for step in seen] == [5, 17, 29, 41, 53, 65]
    assert seen[0].half_width is None
    assert seen[1].half_width == 0.0


def test_loop_ends_at_the_time_limit() -> None:
    sampler = FakeSampler(sample_s=2.0)
    (collected,) = collect(sampler, StoppingRule(limit_s=5.0), sampler.now)
    assert sampler.counts == [5]
    assert collected.stop.reason == "time limit of 5 s: 5 of 10 samples"
    assert not collected.stop.converged


def test_dropped_samples_are_counted_and_not_kept() -> None:
    sampler = FakeSampler(events={1: "drop", 3: "drop"})
    (collected,) = collect(sampler, StoppingRule(), sampler.now)
    assert collected.dropped == 5 + 12
    assert len(collected.samples_s) == 6 * 12


def test_time_limit_waits_for_the_first_valid_sample() -> None:
    sampler = FakeSampler(sample_s=2.0, events={1: "drop"})
    (collected,) = collect(sampler, StoppingRule(), sampler.now)
    assert collected.samples_s == [2.0]


def test_ctrl_c_keeps_the_samples_so_far() -> None:
    sampler = FakeSampler(events={3: "ctrl-c"})
    (collected,) = collect(sampler, StoppingRule(), sampler.now)
    assert len(collected.samples_s) == 5 + 12
    assert collected.stop == Stop(reason="interrupted", converged=False)
    assert _timing(collected).interrupted


def test_ctrl_c_before_the_first_sample_comes_through() -> None:
    sampler = FakeSampler(events={1: "ctrl-c"})
    with pytest.raises(KeyboardInterrupt):
        collect(sampler, StoppingRule(), sampler.now)


@pytest.mark.parametrize(
    ("count", "took_s", "expected"),
    [(5, 0.05, 10), (5, 50.0, 1), (5, 1e-6, 1000), (10, 0.0, 1000), (1, 0.03, 3)],
)
def test_batches_fill_a_tenth_of_a_second(count: int, took_s: float, expected: int) -> None:
    assert next_count(count, took_s) == expected


def _timing(collected: Collected):  # type: ignore[no-untyped-def]
    return timing_of(
        collected,
        clock_source="probe",
        cold=True,
        graph=False,
        launch_hidden=True,
        warmup_s=0.1,
        interleaved=False,
    )


def test_timing_of_ten_samples() -> None:
    samples = [float(n) for n in range(1, 11)]
    stop = Stop(reason="why", converged=True)
    timing = _timing(Collected(samples_s=samples, clock_hz=[None] * 10, dropped=2, stop=stop))
    assert (timing.median_s, timing.ci_low_s, timing.ci_high_s) == (5.5, 2.0, 9.0)
    assert (timing.stop_reason, timing.converged, timing.dropped) == ("why", True, 2)
    assert not timing.interrupted


def test_timing_of_few_samples_has_no_interval() -> None:
    stop = Stop(reason="why", converged=False)
    timing = _timing(Collected(samples_s=[1.0, 3.0], clock_hz=[None] * 2, dropped=0, stop=stop))
    assert (timing.median_s, timing.ci_low_s, timing.ci_high_s) == (2.0, None, None)


def test_clock_between_two_stamps() -> None:
    # 148,500 cycles in 100,000 ns: 1.485 GHz
    assert clock_between((1000, 500, 7), (101_000, 149_000, 7)) == pytest.approx(1.485e9)
    assert clock_between((1000, 500, 7), (101_000, 149_000, 8)) is None  # another SM, another origin
    assert clock_between((1000, 500, 7), (20_999, 30_500, 7)) is None  # 19,999 ns: mostly rounding
    assert clock_between((1000, 500, 7), (101_000, 500, 7)) is None


def test_nvml_clock_is_one_reading_a_batch() -> None:
    readings = iter([1.9e9, None])
    clock = NvmlClock(lambda: next(readings))
    assert clock.source == "nvml"
    clock.queued()
    assert clock.read(3) == [1.9e9] * 3
    clock.queued()
    assert clock.read(1) == [None]


def test_stamp_kernel_compiles_to_the_three_registers() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(fn=stamp_kernel(), signature={"out": "*i64", "slot": "i32"}, constexprs={})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"]
    block = ptx.split("begin inline asm")[1].split("end inline asm")[0]
    assert [name in block for name in ("%globaltimer", "%clock64", "%smid")] == [True] * 3
    assert ptx.count("st.global.b64") == 3


def test_mean_power_between_ticks() -> None:
    ticks = [(1.0, 100.0), (1.1, 170.0), (1.5, 450.0)]
    assert mean_power(ticks, 0.4) == pytest.approx(700.0)  # 350 J in 0.5 s
    assert mean_power(ticks, 0.6) is None
    assert mean_power(ticks[:1], 0.0) is None
    assert mean_power([(1.0, 5.0), (2.0, 5.0)], 0.4) is None


class TwoWorks:
    """Rounds of two works, 1 and 100 ms: the clock drifts up by 1 % a round."""

    works = 2

    def __init__(self) -> None:
        self.time, self.rounds = 0.0, 0

    def now(self) -> float:
        return self.time

    def batch(self, count: int) -> list[Batch]:
        samples: list[list[float]] = [[], []]
        for _ in range(count):
            for at, seconds in enumerate((0.001, 0.1)):
                samples[at].append(seconds * (1 + 0.01 * self.rounds))
                self.time += seconds
            self.rounds += 1
        return [Batch(samples_s=one, clock_hz=[None] * count) for one in samples]


def test_works_that_are_timed_together_have_one_sample_a_round() -> None:
    sampler = TwoWorks()
    short, long = collect(sampler, StoppingRule(limit_s=1.0), sampler.now)
    # 0.101 s a round; two works share 2 x 1 s: 5 rounds (0.505 s), then one a batch until 20 (2.02 s).
    assert len(short.samples_s) == len(long.samples_s) == 20
    assert [two / one for one, two in zip(short.samples_s, long.samples_s, strict=True)] == pytest.approx(
        [100.0] * 20
    )
    assert short.stop.reason == long.stop.reason


@pytest.mark.parametrize("works", [1, 2, 3, 5])
def test_rounds_go_back_and_forth(works: int) -> None:
    order = slots_in_turn(600, works, Random(0))
    rounds = [order[at : at + works] for at in range(0, len(order), works)]
    assert [sorted(slots) for slots in rounds] == [
        list(range(at * works, (at + 1) * works)) for at in range(600)
    ]
    for there, back in zip(rounds[::2], rounds[1::2], strict=True):
        assert [slot % works for slot in there] == [slot % works for slot in reversed(back)]


def test_every_work_follows_every_other_as_often() -> None:
    """Three works, 600 rounds: 6 ordered pairs of different works in 1200 places inside rounds."""
    order = [slot % 3 for slot in slots_in_turn(600, 3, Random(0))]
    inside = Counter((order[at], order[at + 1]) for at in range(len(order) - 1) if at % 3 != 2)
    assert len(inside) == 6
    assert all(abs(count - 200) < 45 for count in inside.values())  # 200 +- 3.5 sqrt(200 * 5/6)
