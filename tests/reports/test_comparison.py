"""`perfkit compare` on a terminal of 80 columns: whole outputs, and what each part must say."""

import io
import os
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from perfkit.analysis.comparison import compare, compare_records
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load as profile
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Published
from perfkit.record import load, number
from perfkit.reports import published
from perfkit.reports.comparison import render
from perfkit.reports.grid import Column, Row, grid

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
H200 = ROOT / "docs" / "examples" / "h200"
OP = find_op("attention")
replace = msgspec.structs.replace


@pytest.fixture(autouse=True)
def nothing_published(monkeypatch):
    """Goldens do not change when somebody adds a figure; a test of its own shows figures."""
    monkeypatch.setattr(published, "published", lambda *_: ())


def session(names, lengths, backend=None, **rest):
    """A study of a session that compares the implementations with `standard`."""
    workloads = [AttentionWorkload(seq_q=n, seq_k=n, **rest) for n in lengths]
    rows = [OP.implementation(name) for name in names]
    return study(run_session(OP, workloads, rows, backend or FakeBackend(), lambda *_: None, "standard"))


def saved(*names):
    """A study of the runs of several saved records."""
    records = [load(H200 / f"{name}.json") for name in names]
    runs = tuple(run for record in records for run in record.runs)
    return study(replace(records[0], runs=runs, baseline="standard"))


def fake():
    return session(["standard", "flash", "sdpa-flash"], [4096, 16384, 65536])


def modelled():
    backend = ModelBackend(profile("a100-80gb-sxm"), "no NVIDIA GPU on this machine")
    return session(["standard", "flash"], [2048, 8192], backend, causal=True, head_dim=128)


def refused():
    return session(["standard", "flash"], [4096], head_dim=20)


STUDIES = {
    "compare-fake": fake,
    "compare-modelled": modelled,
    "compare-refused": refused,
    "compare-h200-one": lambda: saved("all-d64-16k"),
    "compare-h200-bwd": lambda: saved(*(f"bwd-d64-{n}" for n in ("4k", "16k", "32k", "64k"))),
    "compare-h200-dims": lambda: saved("fwd-d64-4k", "fwd-d128-4k", "fwd-d128-4k-causal"),
}


def shown(subject, comparison=None, width=80):
    """What a terminal shows, without styles and the spaces at line ends."""
    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False)
    console.print(render(subject, comparison or compare(subject, "standard", 0.01), width))
    return "".join(line.rstrip() + "\n" for line in console.file.getvalue().splitlines())


def golden(name, found):
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("name", STUDIES)
def test_whole_output(name):
    found = shown(STUDIES[name]())
    assert max(map(len, found.splitlines())) <= 80
    assert "…" not in found
    golden(name, found)


def test_two_records_of_the_same_workload():
    old, new = study(load(H200 / "all-d64-16k.json")), study(load(H200 / "fwd-d64-16k.json"))
    found = shown(new, compare_records(old, new, ("before", "after"), 0.01))
    assert "sdpa-math is in before only" in found
    golden("compare-h200-records", found)


def between(text, start, end):
    return text.split(f"\n{start}")[1].split(f"\n{end}")[0]


def test_the_summary_comes_first():
    found = shown(fake())
    assert found.index("- flash is 6.42x faster than standard at N 64k") < found.index("\nSpeed")
    order = ["\nSpeed", "\nCost", "\nTime", "\nDRAM bytes", "\n  device profile"]
    places = [found.index(title) for title in order]
    assert places == sorted(places)


def test_every_row_of_speed():
    # See test_words for the times; each is 1.25 times its floor, so the ratio is that of the floors.
    speed = between(shown(session(["standard", "flash"], [4096, 16384])), "Speed", "Cost").splitlines()
    assert [line.split() for line in speed[2:6]] == [
        ["4k", "standard", "568", "us", "±1.0%", "baseline", "DRAM"],
        ["flash", "107", "us", "±1.0%", "5.33x", "[5.33,", "5.33]", "faster", "compute"],
        ["16k", "standard", "8.98", "ms", "±1.0%", "baseline", "DRAM"],
        ["flash", "1.70", "ms", "±1.0%", "5.30x", "[5.30,", "5.30]", "faster", "compute"],
    ]


def test_modelled_numbers_carry_their_mark():
    found = shown(modelled())
    assert "MODELLED: no number here was measured" in found
    rows = between(found, "Speed", "Cost").splitlines()[2:6]
    # N 2k: 2 products x 2 N^2 d x 16 heads / 2 = 17.2 GFLOP / 312 TFLOP/s = 55.1 us, and masked tiles
    assert [row.split()[-4] for row in rows if "flash" in row] == ["us*", "us*"]
    assert "* modelled, not measured" in found
    assert "energy" not in between(
        found, "Cost", "  - "
    )  # a table of nothing but absent numbers is not shown
    assert "peak memory, energy, error of standard and flash: no NVIDIA GPU on this machine" in " ".join(
        found.split()
    )


def test_a_failed_run_is_a_row_with_reason_and_predicted_bytes():
    found = shown(STUDIES["compare-h200-bwd"]())
    speed = " ".join(between(found, "Speed", "Cost").split())
    # 137 GB: the allocator's need; 344 GB: what the model says that the backward pass would move
    assert (
        "32k standard out-of-memory: CUDA out of memory; predicted need 137 GB; "
        "DRAM bytes by the model 344 GB*" in speed
    )
    assert "64k standard refused: needs 551 GB, and 150 GB of device memory are free" in speed
    cost = between(found, "Cost", "Time").splitlines()
    # where the baseline has no measured bytes, both sides are modelled, and marked
    (flash,) = [line.split() for line in cost if "390x" in line]
    assert flash[-1] == "1.75x*"
    # no row of cost belongs to a run without numbers, and its place stands at the next one
    assert any(line.startswith("64k flash ") for line in cost)


def test_an_impossible_time_is_marked():
    whole = session(["standard", "flash"], [16384]).record
    flash = whole.runs[1]
    timing = replace(flash.timing, samples_s=[1e-6] * 10, median_s=1e-6)
    numbers = {**flash.numbers, "time": number("time", 1e-6, "measured")}
    broken = study(replace(whole, runs=(whole.runs[0], replace(flash, timing=timing, numbers=numbers))))
    found = shown(broken)
    assert "INVALID" in between(found, "Speed", "Cost")
    assert "faster" not in found.split("\nSpeed")[0]


def test_reasons_of_verdicts_stand_under_the_table():
    whole = session(["standard", "flash"], [16384]).record
    short = replace(whole.runs[1].timing, samples_s=[2e-3] * 5, clock_hz=[1.5e9] * 5, interleaved=False)
    found = shown(study(replace(whole, runs=(whole.runs[0], replace(whole.runs[1], timing=short)))))
    assert "  undecided: flash: fewer than 6 samples\n" in found


def test_published_figures_stand_beside_the_measured_ones(monkeypatch):
    figure = Published(
        impl="flash", tag="achieved", value=324.4e12, hint="flop_rate", device="H100 SXM",
        source="a paper, table 1", note="fp16",
    )  # fmt: skip
    monkeypatch.setattr(published, "published", lambda _, w: (figure,) * (w.seq_k == 16384))
    section = between(shown(fake()), "Published", "  device profile").splitlines()
    assert section[1].split() == ["N", "impl", "number", "published", "here", "ratio", "published", "on"]
    # 649 TFLOP/s here over 324.4
    assert section[2].split() == [
        "16k", "flash", "achieved", "324", "TFLOP/s", "649", "TFLOP/s", "2.00x", "H100", "SXM",
    ]  # fmt: skip
    assert section[3] == "  published on H100 SXM: a paper, table 1; fp16"


def test_a_published_figure_without_a_number_here_has_none(monkeypatch):
    figure = Published(impl="flex", tag="achieved", value=1e12, hint="flop_rate", device="X", source="s")
    monkeypatch.setattr(published, "published", lambda *_: (figure,))
    row = between(
        shown(session(["standard", "flash"], [4096])), "Published", "  device profile"
    ).splitlines()[2]
    assert row.split() == ["flex", "achieved", "1.00", "TFLOP/s", "-", "-", "X"]


@pytest.mark.parametrize("width", [80, 100])
def test_long_names_are_folded_and_nothing_is_cut_off(width):
    old, new = study(load(H200 / "fwd-d64-16k.json")), study(load(H200 / "fwd-d64-16k.json"))
    names = (
        "results/main/2026-01-01-attention-forward.json",
        "results/branch/2026-01-02-attention-forward.json",
    )
    found = shown(new, compare_records(old, new, names, 0.01), width)
    assert max(map(len, found.splitlines())) <= width
    assert "…" not in found
    assert "compute" in between(found, "Speed", "Cost")


def test_record_strings_are_no_markup():
    whole = session(["standard", "flash"], [4096]).record
    found = shown(study(replace(whole, notes=("[bold]a[/bold] [red]",))))
    assert "  [bold]a[/bold] [red]\n" in found


def table(rows, width=40, columns=("a", "b")):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    heads = [Column(name=name, justify="left", wide=True) for name in columns]
    console.print(grid(heads, rows, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_rest_of_a_row_runs_over_what_is_left():
    rows = [Row(cells=("x", "1")), Row(cells=("y",), rest="runs on to the right edge and is folded there")]
    assert table(rows) == ["a b", "x 1", "y runs on to the right edge and is", "  folded there"]


def test_a_column_without_name_and_text_is_left_out():
    assert table([Row(cells=("", "1"))], columns=("", "b")) == ["b", "1"]
    assert table([Row(cells=("z", "1"))], columns=("", "b")) == ["  b", "z 1"]
