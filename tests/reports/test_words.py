"""The sentences of reports: exact words, with the derivation of every number in them."""

import msgspec
import pytest

from perfkit.analysis.comparison import compare
from perfkit.analysis.speed import Ratio
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import number
from perfkit.reports.contrast_words import modelled_ratio
from perfkit.reports.fastest_words import fastest_words
from perfkit.reports.places import common, every, joined, length, only_length, place, places
from perfkit.reports.ratios import inverse, numbers_text, ratio_text
from perfkit.reports.words import comparison_words, verdict_words

OP = find_op("attention")
replace = msgspec.structs.replace


def square(n, **rest):
    """The workload of N queries and keys."""
    return AttentionWorkload(seq_q=n, seq_k=n, **rest)


def record(names, *workloads, backend=None):
    """What a session of the implementations gives, compared with `standard`."""
    rows = [OP.implementation(name) for name in names]
    return run_session(
        OP, workloads or [square(16384)], rows, backend or FakeBackend(), lambda *_: None, "standard"
    )


def timed(run, samples):
    """The run with other samples, taken by themselves at one clock."""
    timing = replace(
        run.timing, samples_s=list(samples), clock_hz=[1.5e9] * len(samples), interleaved=False,
        median_s=sorted(samples)[len(samples) // 2],
    )  # fmt: skip
    numbers = {**run.numbers, "time": number("time", timing.median_s, "measured")}
    return replace(run, timing=timing, numbers=numbers)


def two(standard, flash):
    """A study of `standard` and `flash` with these samples."""
    one = record(["standard", "flash"])
    return study(replace(one, runs=(timed(one.runs[0], standard), timed(one.runs[1], flash))))


def compared(subject):
    return comparison_words(compare(subject, "standard", 0.01))


# standard: 2 B x 16 heads x (4 N^2 + 4 N d) = 34494 MB; flash: 4 N d = 134.2 MB and 1.05 MB of row statistics
COST = ", with 255x fewer DRAM bytes"


def test_one_workload_in_words():
    # standard: 2 B x 16 heads x (4 N^2 + 4 N d) = 34.49 GB / 4.8 TB/s x 1.25 = 8.98 ms
    # flash: 16 x 4 N^2 d = 1.0995 TFLOP, 1.1000 as it is issued (see the impossible
    # time below), / (989.4 TFLOP/s x 1500/1830) x 1.25 = 1.695 ms; the ratio is 5.30
    subject = study(record(["standard", "flash"]))
    assert verdict_words(subject) == (
        "FAKE: no number here was measured.",
        "standard and flash were measured: attention on NVIDIA H200 141GB SXM "
        "(batch 1, 16 heads, N 16k, d 64, bf16, full mask, forward).",
        "K/V cache 67.1 MB, h/h_kv 1.",  # 2 B x 2 x 16 heads x 16384 x 64
        "flash is the fastest: 1.70 ms, 649 TFLOP/s, 80.0 % of its roof at the clock of the run, "
        "bound by compute.",  # 1 / 1.25
        "IO check: 12 hold.",
    )
    assert compared(subject) == (f"flash is 5.30x faster than standard (5.30 to 5.30), certain{COST}.",)


def test_several_lengths_have_the_longest_and_the_range():
    subject = study(record(["standard", "flash"], square(4096), square(16384)))
    assert "(batch 1, 16 heads, d 64, bf16, full mask, forward, at N 4k and 16k)" in verdict_words(subject)[1]
    # at N 4k 2 of 66 warpgroups have no row, and a block of keys for 32: 1.001 of the convention's FLOPs, of
    # which 132 x 3 products for nothing are 0.006 more
    assert fastest_words(subject) == ("flash is the fastest at both lengths: 79.4 % to 80.0 % of the roof.",)
    # at N 4k: (4 N^2 + 4 N d) is (1 + d/N) 4 N^2, so (1 + 64/4096) / (1 + 64/16384) x 5.301 = 5.362,
    # and for the FLOPs / 1.0066: 5.33
    assert compared(subject) == (
        f"flash is 5.30x faster than standard at N 16k (5.30 to 5.30), certain{COST}.",
        "flash is faster than standard at both lengths, each certain: "
        "speed-up 5.30x at N 16k to 5.33x at N 4k.",
    )


@pytest.mark.parametrize(
    ("flash", "sentence"),
    [
        # 30 / 20.05, and the ends of the interval 30 / 20.1 and 30 / 20
        ([20e-3] * 5 + [20.1e-3] * 5, f"flash is 1.50x faster than standard (1.49 to 1.50), certain{COST}."),
        ([40e-3] * 5 + [40.4e-3] * 5, f"flash is 1.34x slower than standard (1.33 to 1.35), certain{COST}."),
        ([30e-3] * 10, f"flash is as fast as standard within 1 % (1.000 to 1.000){COST}."),
        (
            [20e-3] * 5,
            f"flash and standard cannot be told apart: the speed-up is 1.50x{COST}; "
            "undecided, because fewer than 6 samples.",
        ),
    ],
)
def test_each_verdict_has_its_words(flash, sentence):
    assert compared(two([30e-3] * 10, flash)) == (sentence,)


def test_an_interval_across_the_threshold_is_not_called_a_difference():
    samples = [30e-3 * (1 + 0.004 * i) for i in range(10)]  # 30 to 31.08 ms: the median is 1.018 x 30 ms
    (found,) = compared(two(samples, [30e-3] * 10))
    assert found.startswith("flash and standard cannot be told apart: the speed-up is 1.018x")
    assert "reaches across" in found
    assert "faster" not in found


def test_times_that_cannot_be_told_apart_share_the_first_place():
    subject = two([30.1e-3] * 10, [30e-3] * 10)  # 0.3 % is within 1 %
    assert fastest_words(subject)[0].startswith(
        "standard and flash are the fastest and cannot be told apart: flash 30.0 ms"
    )
    alone = two([35e-3] * 10, [30e-3] * 10)
    assert fastest_words(alone)[0].startswith("flash is the fastest: 30.0 ms")


def test_one_implementation_took_its_time_and_is_no_fastest():
    (sentence,) = fastest_words(study(record(["flash"])))
    assert sentence.startswith("flash took: 1.70 ms")


def test_modelled_numbers_are_said_to_be_modelled():
    backend = ModelBackend(load("a100-80gb-sxm"), "no GPU")
    subject = study(record(["standard", "flash"], square(4096), square(16384), backend=backend))
    assert verdict_words(subject)[0].startswith("MODELLED: nothing was measured: formulas for attention on ")
    # 1.0995 TFLOP / 312 TFLOP/s = 3.52 ms; 34.49 GB / 2.039 TB/s = 16.9 ms
    first, over = compared(subject)
    assert first == (
        "By the model, not measured: the least time of flash is 4.80x shorter than that of standard at N 16k "
        "(3.52 ms against 16.9 ms), with 255x fewer DRAM bytes (modelled)."
    )
    assert over.startswith("flash beside standard at both lengths, by the model: speed-up 4.80x at N 16k")
    assert not any("faster" in sentence or "certain" in sentence for sentence in (first, over))


def test_what_was_not_compared_has_one_sentence_with_the_reason():
    names = ["standard", "flash", "sdpa-flash"]
    one = record(names, square(4096), square(16384))
    runs = list(one.runs)
    runs[3] = replace(runs[3], status="refused", reason="needs 276 GB", timing=None, numbers={})
    subject = study(replace(one, runs=tuple(runs)))
    found = compared(subject)
    assert found[-1] == (
        "Not compared with standard at N 16k: flash and sdpa-flash, because standard refused: needs 276 GB."
    )
    assert "faster at N 4k (5.33x); not compared at N 16k." in found[1]
    assert "standard at N 16k: refused: needs 276 GB." in verdict_words(subject)


def test_a_comparison_without_any_answer_is_only_its_reason():
    one = record(["standard", "flash"])
    failed = replace(one.runs[0], status="failed", reason=None, timing=None, numbers={})
    found = compared(study(replace(one, runs=(failed, one.runs[1]))))
    assert found == ("Not compared with standard: flash, because standard failed: no reason given.",)


def test_an_impossible_time_is_invalid_and_wins_nothing():
    # 1.0995 TFLOP / (132 x 4096 x 1.5 GHz) = 1355.73 us. A head has 2 blocks of keys more than 256 x 128, and
    # 132 x 3 products of a block lead nowhere: 1356.33 us
    subject = two([30e-3] * 10, [1e-6] * 10)
    words = verdict_words(subject)
    (invalid,) = [sentence for sentence in words if sentence.startswith("INVALID")]
    assert invalid.startswith("INVALID: flash is 1356.33x above the compute roof: ")
    assert fastest_words(subject)[0].startswith("standard took")
    assert compared(subject)[0].startswith("Not compared with standard: flash, because flash is INVALID")


def test_violations_are_named_with_how_far_they_are_off():
    one = record(["standard", "flash"])
    flash = one.runs[1]
    read = flash.value("l2_read")
    numbers = {**flash.numbers, "l2_read": number("l2_read", read * 1.1, "measured")}
    words = verdict_words(study(replace(one, runs=(one.runs[0], replace(flash, numbers=numbers)))))
    (violated,) = [sentence for sentence in words if sentence.startswith("VIOLATED: ")]
    assert "flash, SM<->L2 read = IO model (off by +10.0%)" in violated
    # the counter gives the height of the tiles, too: a tenth more passes
    assert "tile height from counter" in violated
    assert "IO check: 10 hold, 2 VIOLATED." in words


def test_a_record_without_runs_says_so():
    empty = study(replace(record(["standard", "flash"]), runs=()))
    assert verdict_words(empty) == ("There is no run in this record of attention on NVIDIA H200 141GB SXM.",)


def test_recomputed_products_are_said():
    # standard keeps P: 4 products (dV, dP, dQ, dK); flash-triton has 4 in one kernel and 3 in the other, and
    # flash, which is fused on an H200, 5
    for impl, ratio in (("flash-triton", "1.75x"), ("flash", "1.25x")):
        (sentence,) = compared(study(record(["standard", impl], square(4096, pass_="bwd"))))
        assert sentence.endswith(f" and {ratio} the tensor FLOPs.")


def test_a_ratio_with_one_measured_side_is_modelled():
    one = record(["standard", "flash"])
    base = {k: n for k, n in one.runs[0].numbers.items() if k not in ("dram_read", "dram_write")}
    found = compare(
        study(replace(one, runs=(replace(one.runs[0], numbers=base), one.runs[1]))), "standard", 0.01
    )
    (group,) = found.groups
    assert modelled_ratio(group, group.contrasts[0], "dram")
    assert not modelled_ratio(group, group.contrasts[0], "energy")
    assert comparison_words(found)[0].endswith("255x fewer DRAM bytes (modelled).")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1 / 256, "256x fewer"),
        (0.5, "2.00x fewer"),
        (0.9, "0.900x"),
        (1.02, "1.02x"),
        (4.5, "4.50x"),
        (0.0, "0x"),
    ],
)
def test_ratios_are_said_as_people_do(ratio, text):
    assert ratio_text(ratio) == text


@pytest.mark.parametrize(
    ("low", "value", "high", "text"),
    [
        (5.36, 5.39, 5.42, ("5.39", "5.36", "5.42")),
        (5.391, 5.392, 5.394, ("5.392", "5.391", "5.394")),  # a fourth digit where three show no width
        (5.39, 5.39, 5.39, ("5.39", "5.39", "5.39")),  # no width at all needs none
        (0.995, 0.999, 1.0004, ("0.999", "0.995", "1.000")),  # percents count near 1
        (None, 2.0, None, ("2.00", "-", "-")),
    ],
)
def test_intervals_have_the_digits_that_show_their_width(low, value, high, text):
    assert numbers_text(Ratio(value=value, low=low, high=high)) == text


def test_the_inverse_swaps_the_ends():
    assert inverse(Ratio(value=0.5, low=0.4, high=0.8)) == Ratio(value=2.0, low=1.25, high=2.5)


@pytest.mark.parametrize(
    ("w", "said"),
    [
        (square(16384), "batch 1, 16 heads, N 16k, d 64, bf16, full mask, forward"),
        (
            square(5000, causal=True, pass_="bwd"),
            "batch 1, 16 heads, N 5000, d 64, bf16, causal, backward",
        ),
        (
            AttentionWorkload(seq_q=1, seq_k=4096, kv_heads=4),
            "batch 1, 16 heads over 4 K/V heads, N_q 1, N_k 4k, d 64, bf16, full mask, forward",
        ),
    ],
)
def test_one_workload_is_described_whole(w, said):
    assert common([w]) == said
    assert place(w, [w]) == ""


def test_places_say_only_what_differs():
    both = [square(4096), square(16384)]
    assert [place(w, both) for w in both] == ["N 4k", "N 16k"]
    assert places(["N 4k", "N 16k", "N 4k"]) == "N 4k and 16k"
    assert only_length(both)
    assert [length(w, both) for w in both] == [4096, 16384]
    mixed = [square(4096), square(4096, causal=True)]
    assert [place(w, mixed) for w in mixed] == ["full mask", "causal"]
    assert places(place(w, mixed) for w in mixed) == "full mask; causal"
    assert not only_length(mixed)
    assert (every(both), every(mixed * 2)) == ("both lengths", "all 4 workloads")


def test_where_only_queries_vary_they_are_the_length():
    prefix = [AttentionWorkload(seq_q=n, seq_k=4096) for n in (1024, 2048)]
    assert [length(w, prefix) for w in prefix] == [1024, 2048]
    assert places(place(w, prefix) for w in prefix) == "N_q 1k, N_k 4k; N_q 2k, N_k 4k"


@pytest.mark.parametrize(("items", "text"), [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b and c")])
def test_lists_in_words(items, text):
    assert joined(items) == text
