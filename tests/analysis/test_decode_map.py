"""Decode maps: cells by hand on a device with round numbers, what is a map, grids with holes, rivals."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from perfkit.analysis.decode_map import DecodeMap, by_family, decode_maps, is_decode, unmapped
from perfkit.analysis.decode_rivals import Pace, pace, winners
from perfkit.analysis.study import Study, study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_cases
from perfkit.model.catalogue import load
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Run, Timing

MakeRun = Callable[..., Run]
MakeRecord = Callable[..., Record]
OP = find_op("attention")
BATCHES, CONTEXTS = (1, 2), (65536, 131072)
replace = msgspec.structs.replace


def step(batch: int, context: int, **more: Any) -> dict[str, Any]:
    """One token, 8 query heads over 2 K/V heads of width 64 in 16 bit: 512 B of K and V a token."""
    return {"batch": batch, "heads": 8, "kv_heads": 2, "seq_q": 1, "seq_k": context, **more}


@pytest.fixture
def grid(make_run: MakeRun, make_record: MakeRecord) -> Callable[..., Study]:
    """(impls, workload fields, fields of the runs) -> a study of two batches by two contexts.

    DRAM moves 600 B for each token of the cache, and each token of the cache takes 0.75 ns.
    """

    def make(*impls: str, status: str = "measured", timed: bool = True, **more: Any) -> Study:
        runs = []
        for impl in impls or ("flash-decode",):
            for batch in BATCHES:
                for context in CONTEXTS:
                    tokens = batch * context
                    times = {"time": 0.75e-9 * tokens} if timed else {}
                    moved = {"dram_read_modelled": 600.0 * tokens, "dram_write_modelled": 0.0}
                    flops = {"flops_convention": 2048.0 * tokens, "launches": 1}  # 4 h d for each token
                    w = step(batch, context, **more)
                    runs.append(make_run(impl, status, w=w, **times, **moved, **flops))
        return study(make_record(*runs))

    return make


def changed(subject: Study, at: int, **fields: Any) -> Study:
    runs = list(subject.record.runs)
    runs[at] = replace(runs[at], **fields)
    return study(replace(subject.record, runs=tuple(runs)))


def the_map(subject: Study) -> DecodeMap:
    (one,) = decode_maps(subject)
    return one


def sampled(run: Run, seconds: float) -> Run:
    """The run with ten equal samples."""
    timing = Timing(
        samples_s=[seconds] * 10, clock_hz=[1e9] * 10, clock_source="probe", median_s=seconds,
        ci_low_s=seconds, ci_high_s=seconds, stop_reason="", converged=True, cold=True, graph=False,
        launch_hidden=True, dropped=0, warmup_s=0.0,
    )  # fmt: skip
    numbers = {**run.numbers, "time": replace(run.numbers["time"], value=seconds)}
    return replace(run, timing=timing, numbers=numbers)


# Cells


def test_a_cell_by_hand(grid: Callable[..., Study]) -> None:
    """512 B over 0.75 ns is 0.683 TB/s of 1 TB/s; 600 B take at least 0.6 ns, 80 % of 0.75 ns."""
    one = the_map(grid())
    assert (one.impl, one.batches, one.contexts) == ("flash-decode", BATCHES, CONTEXTS)
    places = [(cell.batch, cell.context) for cell in one.cells]
    assert places == [(1, 65536), (1, 131072), (2, 65536), (2, 131072)]
    for cell in one.cells:
        assert cell.rate == pytest.approx(512 / 0.75e-9)
        assert cell.bandwidth == 1e12
        assert cell.share == pytest.approx(0.512 / 0.75)
        # a token of each sequence in the time of its 65,536 or 131,072 tokens of cache
        assert cell.tokens_per_s == pytest.approx(1 / (0.75e-9 * cell.context))
        assert cell.most_tokens_per_s == pytest.approx(1 / (0.6e-9 * cell.context))
        assert cell.of_least == pytest.approx(0.8)
        assert (cell.bound, cell.provenance, cell.reason) == ("DRAM", "measured", None)
    assert one.row(2) == one.cells[2:]


def test_several_query_tokens_are_several_tokens_a_step(grid: Callable[..., Study]) -> None:
    one = the_map(grid(seq_q=4))
    assert one.cells[0].tokens_per_s == pytest.approx(4 / (0.75e-9 * 65536))
    assert one.cells[0].rate == pytest.approx(512 / 0.75e-9)  # K and V are no more than with one token


def test_bytes_of_the_cache_are_in_its_own_dtype_and_a_prefix_once(grid: Callable[..., Study]) -> None:
    fp8 = the_map(grid(cache_dtype="fp8"))
    assert fp8.cells[0].rate == pytest.approx(256 / 0.75e-9)
    prefix = the_map(grid(page=64, prefix=32768))
    assert prefix.cells[0].rate == pytest.approx(512 / 0.75e-9)
    # batch 2 at 65,536: 131,072 tokens, of which 32,768 are the same pages
    assert prefix.cells[2].rate == pytest.approx(512 * 98304 / (0.75e-9 * 131072))


def test_the_fake_device_by_hand() -> None:
    """64 sequences of 4k: 2 h_kv N d e B = 1,073,741,824 B of K and V, and 2 x 524,288 B of Q and O.

    512 tiles fill the device, so that keys are not split; the fake takes 1.25 times their time at 4.8 TB/s.
    """
    shape: dict[str, Any] = {"heads": 32, "kv_heads": 8, "seq_q": 1, "head_dim": 128}
    asked = [AttentionWorkload(batch=b, seq_k=n, **shape) for b in (64, 128) for n in (4096, 8192)]
    row = OP.implementation("flash-decode")
    assert row is not None
    record = run_cases(OP, [(w, [row]) for w in asked], FakeBackend(), lambda *_: None)
    cell = the_map(study(record)).cells[0]
    time_s = 1.25 * (1073741824 + 2 * 524288) / 4.8e12
    assert cell.time_s == pytest.approx(time_s)
    assert cell.rate == pytest.approx(1073741824 / time_s)
    assert cell.share == pytest.approx(0.8 * 1073741824 / 1074790400)
    assert cell.tokens_per_s == pytest.approx(64 / time_s)
    assert cell.most_tokens_per_s == pytest.approx(1.25 * 64 / time_s)


def test_a_modelled_cell_is_of_the_least_time(grid: Callable[..., Study]) -> None:
    one = the_map(grid(status="modelled", timed=False))
    cell = one.cells[0]
    assert (cell.provenance, cell.bound, cell.reason) == ("modelled", "DRAM", None)
    assert cell.rate == pytest.approx(512 / 0.6e-9)
    assert cell.tokens_per_s == cell.most_tokens_per_s == pytest.approx(1 / (0.6e-9 * 65536))
    assert cell.of_least is None  # there is no time that it were a share of


def test_short_contexts_are_bound_by_launching() -> None:
    backend = ModelBackend(load("h200-141gb-sxm"), "no GPU")
    row = OP.implementation("flash-decode")
    assert row is not None
    shape: dict[str, Any] = {"heads": 32, "kv_heads": 8, "seq_q": 1, "head_dim": 128}
    asked = [AttentionWorkload(batch=b, seq_k=n, **shape) for b in (1, 16) for n in (1024, 16384)]
    record = run_cases(OP, [(w, [row]) for w in asked], backend, lambda *_: None)
    bounds = [cell.bound for cell in the_map(study(record)).cells]
    assert bounds == ["overhead", "DRAM", "DRAM", "DRAM"]  # 4.5 MB take 0.9 us, and two launches 5 us


# What is a map


@pytest.mark.parametrize(
    ("fields", "decodes"),
    [
        ({}, True),
        ({"seq_q": 64}, True),
        ({"seq_q": 65}, False),
        ({"seq_q": 64, "seq_k": 64}, False),
        ({"pass_": "bwd"}, False),
        ({"pattern": "window:512"}, False),
        ({"page": 64, "cache_dtype": "fp8"}, True),
    ],
)
def test_a_decode_step_is_a_few_tokens_over_a_longer_cache(fields: dict[str, Any], decodes: bool) -> None:
    assert is_decode(AttentionWorkload(**{**step(1, 4096), **fields})) is decodes


def test_a_map_has_two_batches_and_two_contexts(grid: Callable[..., Study]) -> None:
    whole = grid()
    assert decode_maps(study(replace(whole.record, runs=whole.record.runs[:2]))) == ()  # one batch
    assert decode_maps(study(replace(whole.record, runs=whole.record.runs[::2]))) == ()  # one context
    assert decode_maps(study(replace(whole.record, runs=()))) == ()
    assert len(decode_maps(whole)) == 1


def test_trials_are_in_no_map(grid: Callable[..., Study]) -> None:
    whole = grid()
    runs = tuple(replace(run, trial=True) for run in whole.record.runs)
    assert decode_maps(study(replace(whole.record, runs=runs))) == ()


def test_without_any_number_there_is_no_map(grid: Callable[..., Study]) -> None:
    refused = grid(status="refused", timed=False)
    assert decode_maps(refused) == ()
    assert unmapped(refused, ()) is refused


def test_what_differs_in_more_than_batch_and_context_is_a_map_of_its_own(grid: Callable[..., Study]) -> None:
    one, two = grid(), grid(cache_dtype="fp8")
    both = study(replace(one.record, runs=(*one.record.runs, *two.record.runs)))
    maps = decode_maps(both)
    assert [len(family) for family in by_family(maps)] == [1, 1]
    assert [found.workload.cache_dtype for found in maps] == [None, "fp8"]
    mixed = study(replace(one.record, runs=(*one.record.runs[:2], *two.record.runs[2:])))
    assert decode_maps(mixed) == ()  # each has one batch only


def test_the_first_shipped_one_with_numbers_comes_first(grid: Callable[..., Study]) -> None:
    names = ("sdpa-flash", "standard", "flash-decode")
    assert [one.impl for one in decode_maps(grid(*names))] == ["standard", "flash-decode", "sdpa-flash"]
    subject = grid(*names)
    runs = [
        replace(run, status="refused", reason="not here", numbers={}) if run.impl == "standard" else run
        for run in subject.record.runs
    ]
    ordered = decode_maps(study(replace(subject.record, runs=tuple(runs))))
    assert [(one.impl, one.known) for one in ordered] == [
        ("flash-decode", True), ("sdpa-flash", True), ("standard", False)
    ]  # fmt: skip


def test_another_workload_than_asked_for_stands_where_it_was_asked_for(grid: Callable[..., Study]) -> None:
    """One K/V head of two: the bytes are half, the place is the same."""
    subject = grid("flash-decode", "sdpa-flash")
    runs = [
        replace(run, asked=run.workload, workload=replace(run.workload, kv_heads=1))
        if run.impl == "sdpa-flash"
        else run
        for run in subject.record.runs
    ]
    own, other = decode_maps(study(replace(subject.record, runs=tuple(runs))))
    assert own.workload == other.workload
    assert len(by_family((own, other))) == 1
    assert own.cells[0].rate is not None
    assert other.cells[0].rate == own.cells[0].rate / 2


# Holes


def test_a_place_without_a_run_is_a_hole(grid: Callable[..., Study]) -> None:
    whole = grid()
    subject = study(replace(whole.record, runs=whole.record.runs[:3]))
    hole = the_map(subject).cells[3]
    assert (hole.placement, hole.reason, hole.provenance) == (None, "not run", "unavailable")
    numbers = (hole.time_s, hole.rate, hole.share, hole.tokens_per_s, hole.most_tokens_per_s, hole.of_least)
    assert set(numbers) == {None}
    assert hole.bound is None


def test_maps_of_one_family_have_the_same_axes(grid: Callable[..., Study]) -> None:
    subject = grid("flash-decode", "sdpa-flash")
    kept = [run for run in subject.record.runs if run.impl == "flash-decode" or run.workload.batch == 1]
    longer = [
        replace(run, impl="sdpa-flash", workload=replace(run.workload, batch=4))
        for run in subject.record.runs[:1]
    ]
    own, other = decode_maps(study(replace(subject.record, runs=(*kept, *longer))))
    assert own.batches == other.batches == (1, 2, 4)
    assert [cell.reason for cell in other.cells] == [None, None, "not run", "not run", None, "not run"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "refused", "reason": "no such head dim"}, "refused: no such head dim"),
        ({"status": "out-of-memory", "reason": None}, "out-of-memory: no reason given"),
        ({"status": "incorrect", "reason": "error 1e9"}, "incorrect: error 1e9"),
        ({"status": "interrupted", "reason": "not started"}, "interrupted: not started"),
        ({"numbers": {}}, "no time was measured"),
    ],
)
def test_a_run_that_failed_says_why(fields: dict[str, Any], reason: str, grid: Callable[..., Study]) -> None:
    cell = the_map(changed(grid(), 1, **fields)).cells[1]
    assert (cell.reason, cell.rate, cell.bound) == (reason, None, None)


def test_a_time_that_cannot_be_true_has_no_numbers(grid: Callable[..., Study]) -> None:
    """Measured bytes at 1 TB/s take 39 us, and the run says 3.9 us."""
    subject = grid()
    run = subject.record.runs[0]
    numbers = {
        **run.numbers,
        "time": replace(run.numbers["time"], value=3.9e-6),
        "dram_read": replace(run.numbers["dram_read_modelled"], provenance="measured"),
        "dram_write": replace(run.numbers["dram_write_modelled"], provenance="measured"),
    }
    cell = the_map(changed(subject, 0, numbers=numbers)).cells[0]
    assert cell.reason is not None
    assert cell.reason.startswith("INVALID: 10.08x above the DRAM roof")
    assert (cell.rate, cell.tokens_per_s, cell.provenance) == (None, None, "unavailable")


def test_of_several_runs_at_a_place_the_first_is_shown(grid: Callable[..., Study]) -> None:
    whole = grid()
    again = sampled(whole.record.runs[0], 1.0)
    subject = study(replace(whole.record, runs=(*whole.record.runs, again)))
    assert the_map(subject).cells[0].time_s == pytest.approx(0.75e-9 * 65536)
    assert unmapped(subject, decode_maps(subject)).record.runs == (whole.record.runs[0], again)


def test_what_no_map_holds_is_left(grid: Callable[..., Study], make_run: MakeRun) -> None:
    whole = grid()
    other = make_run("flash", w={"seq_q": 4096, "seq_k": 4096}, time=1e-3)
    subject = study(replace(whole.record, runs=(other, *whole.record.runs)))
    left = unmapped(subject, decode_maps(subject))
    assert left.record.runs == (other,)
    assert [finding.placement.run for finding in left.findings] == [other]
    assert unmapped(whole, decode_maps(whole)).findings == ()


# Rivals


def test_who_is_faster_and_by_how_much(grid: Callable[..., Study]) -> None:
    """The other takes 0.8, 1, and 2 times the time of the first, and has no number at the last place."""
    subject = grid("flash-decode", "sdpa-flash")
    runs = list(subject.record.runs)
    for at, factor in enumerate((0.8, 1.0, 2.0)):
        runs[at] = sampled(runs[at], 1e-4)
        runs[4 + at] = sampled(runs[4 + at], 1e-4 * factor)
    runs[7] = replace(runs[7], status="failed", reason="broken")
    own, other = decode_maps(study(replace(subject.record, runs=tuple(runs))))
    found = [pace(one, two) for one, two in zip(own.cells, other.cells, strict=True)]
    assert found == [
        Pace(ratio=1.25, apart=True),
        Pace(ratio=1.0, apart=False),
        Pace(ratio=0.5, apart=True),
        None,
    ]
    both = ("flash-decode", "sdpa-flash")
    assert winners((own, other)) == {("sdpa-flash",): 1, both: 1, ("flash-decode",): 1}
    assert winners((own,)) == {}


def test_times_without_samples_are_not_told_apart(grid: Callable[..., Study]) -> None:
    own, other = decode_maps(grid("flash-decode", "sdpa-flash"))
    assert pace(own.cells[0], other.cells[0]) == Pace(ratio=1.0, apart=False)


def test_modelled_cells_are_compared_by_their_least_times_and_with_no_measured_one(
    grid: Callable[..., Study],
) -> None:
    own, other = decode_maps(grid("flash-decode", "sdpa-flash", status="modelled", timed=False))
    assert pace(own.cells[0], other.cells[0]) == Pace(ratio=1.0, apart=False)
    assert pace(own.cells[0], own.cells[1]) == Pace(ratio=0.5, apart=True)  # twice the context
    measured = the_map(grid())
    assert pace(own.cells[0], measured.cells[0]) is None
