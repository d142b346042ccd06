"""Pictures of time and traffic against N: where the letters stand, what the ticks say, what is not drawn."""

import math

import msgspec
import pytest

from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.reports.sweep_plot import HEIGHT, letters, time_plot, traffic_plot

OP = find_op("attention")
LENGTHS = (4096, 16384, 65536)
replace = msgspec.structs.replace


def swept(*lengths, names=("standard", "flash"), backend=None, **rest):
    """A study of the implementations at these lengths."""
    workloads = [AttentionWorkload(seq_q=n, seq_k=n, **rest) for n in lengths]
    rows = [OP.implementation(name) for name in names]
    return study(run_session(OP, workloads, rows, backend or FakeBackend(), lambda *_: None))


def inside(picture):
    """The lines within the frame."""
    lines = [line.replace("┤", "│") for line in picture.plain.splitlines()]
    return [line.split("│")[1] for line in lines if line.count("│") == 2]


def marks(picture, letter):
    """Where a letter stands, as (column, row), by column."""
    found = [
        (c, r) for r, line in enumerate(inside(picture)) for c, sign in enumerate(line) if sign == letter
    ]
    return sorted(found)


def test_a_letter_stands_at_each_length_and_time_grows_with_it():
    picture = time_plot(swept(*LENGTHS))
    for letter in "AB":
        columns, rows = zip(*marks(picture, letter), strict=True)
        assert len(columns) == len(LENGTHS)
        assert columns[1] - columns[0] == pytest.approx(columns[2] - columns[1], abs=2)  # each 4x as long
        # Each 16x the time (N^2): equal steps up.
        assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=1)
        assert rows[0] > rows[1] > rows[2]
    # standard takes 5.3x as long, so it stands above
    assert all(a[1] < b[1] for a, b in zip(marks(picture, "A"), marks(picture, "B"), strict=True))


def test_standards_bytes_grow_with_the_square_and_flashs_with_n():
    picture = traffic_plot(swept(*LENGTHS))
    rises = {}
    for letter in "AB":
        rows = [row for _, row in marks(picture, letter)]
        rises[letter] = rows[0] - rows[-1]
    # 16x the length: 252x the bytes against 16x, log 252 / log 16 = 2.0
    assert rises["A"] / rises["B"] == pytest.approx(2.0, abs=0.35)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("plot", [time_plot, traffic_plot])
def test_size_and_frame(plot, width):
    lines = plot(swept(*LENGTHS), width).plain.splitlines()
    assert len(lines) == HEIGHT
    assert {len(line) for line in lines[:-1]} == {width}
    assert lines[-1].split() == ["4k", "8k", "16k", "32k", "64k"]  # powers of two between the ends


def test_ticks_of_time_and_bytes_have_units():
    assert " ms┤" in time_plot(swept(*LENGTHS)).plain
    text = traffic_plot(swept(*LENGTHS)).plain
    assert [tick for tick in ("100 MB┤", "1 GB┤", "10 GB┤", "100 GB┤") if tick not in text] == []


def test_few_decades_have_finer_ticks():
    text = time_plot(swept(4096, 8192, names=("flash",))).plain  # 106 us and 424 us: one power of ten at most
    assert [tick for tick in ("100 us┤", "200 us┤") if tick not in text] == []


def test_lengths_that_are_no_powers_of_two_are_ticks_themselves():
    assert time_plot(swept(5000, 6000)).plain.splitlines()[-1].split() == ["5000", "6000"]


def test_many_lengths_do_not_crowd_the_axis():
    lengths = [1 << power for power in range(4, 24)]
    ticks = time_plot(swept(*lengths, names=("flash",))).plain.splitlines()[-1].split()
    assert 5 <= len(ticks) <= 10
    assert ticks[0] == "16"


def test_marks_that_would_hide_each_other_stand_side_by_side():
    picture = time_plot(
        swept(*LENGTHS, names=("standard", "flash", "sdpa-flash"))
    )  # both take their FLOPs' time
    for b, c in zip(marks(picture, "B"), marks(picture, "C"), strict=True):
        assert c == (b[0] + 1, b[1])


def test_no_mark_is_lost_where_many_are_equal():
    peers = ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "flex", "sdpa-math")
    picture = time_plot(swept(*LENGTHS, names=("standard", "flash", *peers)))
    assert [len(marks(picture, letter)) for letter in "ABCDEFG"] == [3] * 7


def test_letters_are_those_of_the_implementations_in_order():
    subject = swept(*LENGTHS, names=("flash", "standard"))
    assert letters(subject) == {"flash": "A", "standard": "B"}


def test_one_length_has_no_picture():
    assert time_plot(swept(4096)) is None
    assert traffic_plot(swept(4096)) is None


def test_workloads_that_differ_in_more_than_n_have_no_picture():
    one = swept(4096).record
    other = swept(8192, causal=True).record
    mixed = study(replace(one, runs=(*one.runs, *other.runs)))
    assert time_plot(mixed) is None
    assert traffic_plot(mixed) is None


def broken(subject, impl, **change):
    """The study with the run of `impl` at the longest N changed."""
    runs = [
        replace(run, **change) if (run.impl, run.workload.seq_k) == (impl, LENGTHS[-1]) else run
        for run in subject.record.runs
    ]
    return study(replace(subject.record, runs=tuple(runs)))


def test_a_run_without_memory_has_no_mark_but_its_modelled_bytes():
    whole = swept(*LENGTHS)
    predicted = {tag: n for tag, n in whole.record.runs[-2].numbers.items() if n.provenance == "modelled"}
    assert {"dram_read_modelled", "dram_write_modelled"} <= predicted.keys()
    failed = broken(whole, "standard", status="out-of-memory", reason="no", timing=None, numbers=predicted)
    assert len(marks(time_plot(failed), "A")) == len(marks(traffic_plot(failed), "A")) == 2
    # the dots reach the place where the mark was
    column, row = marks(traffic_plot(whole), "A")[-1]
    line = inside(traffic_plot(failed))[row]
    assert any("\u2801" <= sign <= "\u28ff" for sign in line[column - 2 : column + 1])


def test_a_time_that_cannot_be_true_is_not_drawn():
    whole = swept(*LENGTHS)
    flash = whole.record.runs[-1]
    time = replace(flash.numbers["time"], value=1e-6)
    subject = broken(whole, "flash", numbers={**flash.numbers, "time": time})
    assert subject.findings[-1].placement.invalid
    assert len(marks(time_plot(subject), "B")) == 2


def test_modelled_studies_show_least_times():
    backend = ModelBackend(load("a100-80gb-sxm"), "no GPU")
    subject = swept(*LENGTHS, backend=backend)
    assert len(marks(time_plot(subject), "A")) == len(marks(traffic_plot(subject), "B")) == 3
    spread = math.log10(550e9 / 33.8e6)  # standard at 64k over flash at 4k: 4.2 decades
    assert traffic_plot(subject).plain.count("B┤") == math.floor(spread)


def test_bytes_of_unknown_tiles_are_not_drawn():
    subject = swept(*LENGTHS, names=("sdpa-flash",))  # only compulsory bytes are known of it
    assert traffic_plot(subject) is None
    assert time_plot(subject) is not None


def test_everything_is_said_without_colour():
    spans = {span.style for span in time_plot(swept(*LENGTHS)).spans}
    assert spans <= {"dim", ""}
