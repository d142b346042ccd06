"""The charts of the HTML report as data: marks and roofs against the record's numbers."""

import math
from pathlib import Path
from typing import Any

import msgspec
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import study
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load as load_device
from perfkit.model.units import short_count
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Run, load
from perfkit.reports.html.figure import Figure, Trace
from perfkit.reports.html.lengths import length_charts
from perfkit.reports.html.looks import looks
from perfkit.reports.html.roofline import rooflines

RECORDS = Path(__file__).parents[2] / "docs" / "examples" / "h200"
SWEEP = ("fwd-d64-2k", "fwd-d64-4k", "fwd-d64-8k")


def part(name: str) -> Titled:
    return Titled(name=name, study=study(load(RECORDS / f"{name}.json")))


def sweep(*names: str, baseline: str | None = None) -> Report:
    return Report(parts=tuple(map(part, names)), baseline=part(baseline) if baseline else None)


def of(record: Record) -> Report:
    return Report(parts=(Titled(name="record", study=study(record)),))


def roofline(report: Report) -> Figure:
    (figure,) = rooflines(report, looks(report))
    return figure


def trace(figure: Figure, name: str) -> Trace:
    (found,) = [one for one in figure.data if one["name"] == name]
    return found


def run_of(name: str, impl: str) -> Run:
    return next(run for run in part(name).study.record.runs if run.impl == impl)


def value(run: Run, tag: str) -> float:
    found = run.value(tag)
    assert found is not None
    return found


def test_marks_are_the_numbers_of_the_record() -> None:
    """Flash, N 16k: x = 4 h N^2 d over bytes at each level, y = the same over the time; exactly."""
    figure = roofline(sweep("all-d64-16k"))
    flash, run = trace(figure, "flash"), run_of("all-d64-16k", "flash")
    flops = 4 * 16 * 16384**2 * 64
    assert flash["x"] == [flops / (100_689_152 + 34_338_816), flops / (17_213_423_616 + 34_603_008), None]
    assert flash["y"] == [flops / 0.002304255962371826] * 2 + [None]
    assert flash["marker"]["symbol"][:2] == ["square", "square-dot"]
    # the longest time of the interval is the lowest rate
    low, high = flops / value(run, "time_high"), flops / value(run, "time_low")
    rate = flash["y"][0]
    assert flash["error_y"]["arrayminus"][0] == rate - low > 0
    assert flash["error_y"]["array"][0] == high - rate > 0


def test_every_run_with_a_time_has_its_marks() -> None:
    report = sweep(*SWEEP)
    figure = roofline(report)
    wanted = [
        point.intensity
        for subject in report.studies
        for finding in subject.findings
        for point in finding.placement.points
    ]
    drawn = [x for one in figure.data if "look" in one["meta"] for x in one["x"] if x is not None]
    assert sorted(drawn) == sorted(wanted)
    assert len(drawn) == 3 * 4 * 2  # records, implementations, levels


def test_roofs_are_the_data_sheets_and_the_run_clocks() -> None:
    figure = roofline(sweep("all-d64-16k"))
    roofs = [one for one in figure.data if "roof" in one["meta"]]
    assert [one["name"] for one in roofs] == [
        "DRAM, data sheet: 4.80 TB/s",
        "SM&lt;-&gt;L2, data sheet: 15.4 TB/s",
        "bf16, data sheet: 989 TFLOP/s at 1830 MHz",
        "bf16, run clock: 926 TFLOP/s at 1713 MHz",
        "bf16, run clock: 1.07 PFLOP/s at 1977 MHz",
    ]
    dram, l2, sheet, low, high = roofs
    assert dram["x"][1] == pytest.approx(989.4 / 4.8)  # the ridge: 206.125 FLOP/B
    assert l2["x"][1] == pytest.approx(989.4 / 15.4)
    for diagonal, rate in ((dram, 4.8e12), (l2, 15.4e12)):
        assert [y / x for x, y in zip(diagonal["x"], diagonal["y"], strict=True)] == pytest.approx([rate] * 2)
    assert sheet["y"] == [989.4e12] * 2
    # 132 SMs, 4096 FLOP a clock, at the clocks of flash and of sdpa-math
    assert low["y"] == [132 * 4096 * 1713485519] * 2
    assert high["y"][0] == 132 * 4096 * value(run_of("all-d64-16k", "sdpa-math"), "clock")
    assert [one["line"]["dash"] for one in roofs] == ["solid", "solid", "solid", "dot", "dot"]


def test_no_mark_stands_above_its_roof_and_all_are_in_the_window() -> None:
    figure = roofline(sweep(*SWEEP))
    top = max(one["y"][0] for one in figure.data if "roof" in one["meta"] and one["y"][0] == one["y"][1])
    for axis, values in (("xaxis", "x"), ("yaxis", "y")):
        low, high = figure.layout[axis]["range"]
        for one in figure.data:
            if "look" in one["meta"]:
                assert all(low < math.log10(v) < high for v in one[values] if v is not None)
    assert all(y < top for one in figure.data if "look" in one["meta"] for y in one["y"] if y is not None)


def test_a_cpu_has_measured_ceilings() -> None:
    record = load(RECORDS / "all-d64-16k.json")
    figure = roofline(of(msgspec.structs.replace(record, backend="cpu")))
    assert "bf16, measured: 989 TFLOP/s" in [one["name"] for one in figure.data]
    assert "bf16, measured 989 TFLOP/s" in [one["text"] for one in figure.layout["annotations"]]


def test_roofs_of_two_dtypes_stand_side_by_side_and_equal_ones_are_one() -> None:
    record = load(RECORDS / "all-d64-16k.json")
    other = {"fp16": 1, "fp32": 5}  # sdpa-math is slow enough to be below the fp32 roof
    runs = list(record.runs)
    for dtype, at in other.items():
        runs[at] = msgspec.structs.replace(
            runs[at], workload=msgspec.structs.replace(runs[at].workload, dtype=dtype)
        )
    figure = roofline(of(msgspec.structs.replace(record, runs=tuple(runs))))
    names = [one["name"] for one in figure.data if one["meta"].get("roof") == "data sheet"]
    # bf16 and fp16 have one peak, fp32 that of the vector pipe
    assert names[2:] == [
        "bf16, fp16, data sheet: 989 TFLOP/s at 1830 MHz",
        "fp32, data sheet: 66.9 TFLOP/s at 1980 MHz",
    ]


def test_a_time_that_cannot_be_true_is_not_drawn() -> None:
    record = load(RECORDS / "all-d64-16k.json")
    numbers = dict(record.runs[1].numbers)
    numbers["time"] = msgspec.structs.replace(numbers["time"], value=1e-4)
    runs = (record.runs[0], msgspec.structs.replace(record.runs[1], numbers=numbers), *record.runs[2:])
    names = [one["name"] for one in roofline(of(msgspec.structs.replace(record, runs=runs))).data]
    assert "standard" in names
    assert "flash" not in names


def test_a_baseline_is_hollow_and_has_the_colour_of_its_implementation() -> None:
    report = sweep("all-d64-16k", baseline="fwd-d64-16k")
    figure = roofline(report)
    now, before = trace(figure, "flash"), trace(figure, "flash, baseline")
    assert before["marker"]["symbol"][:2] == ["square-open", "square-open-dot"]
    assert now["meta"]["hue"] == before["meta"]["hue"]
    assert before["y"][0] == value(run_of("fwd-d64-16k", "flash"), "flops_convention") / value(
        run_of("fwd-d64-16k", "flash"), "time"
    )
    assert before["y"][0] != now["y"][0]


def test_hover_tells_all_numbers_of_the_run() -> None:
    figure = roofline(sweep("all-d64-16k"))
    flash = trace(figure, "flash")
    assert flash["text"][0] == "at DRAM: 8143 FLOP/B, 135 MB"
    assert flash["text"][1] == "at SM&lt;-&gt;L2: 63.7 FLOP/B, 17.2 GB"
    text = figure.texts[flash["meta"]["texts"][0]]
    for line in (
        "<b>flash</b>",
        "batch 1, 16 heads, N 16k, d 64, bf16, full mask, forward",
        "time 2.30 ms (2.30 ms to 2.31 ms)",
        "achieved 477 TFLOP/s; bound: compute",
        "51.5 % of 926 TFLOP/s, run clock",
        "DRAM read 101 MB (model 101 MB*, at least 101 MB*)",
        "clock 1713 MHz, 665 W, 50 C, 1.73 J an op",
        "peak memory 34.6 MB, kernels 1",
        "error 2.23e-04, eager path 7.56e-04",
    ):
        assert line in text.split("<br>")


def modelled(*lengths: int) -> Record:
    op = find_op("attention")
    backend = ModelBackend(load_device("a100-80gb-sxm"), "no GPU here")
    workloads = [AttentionWorkload(seq_q=n, seq_k=n) for n in lengths]
    return run_session(op, workloads, op.implementations, backend, lambda *_: None)


def test_modelled_marks_stand_at_what_could_be_and_say_so() -> None:
    figure = roofline(of(modelled(4096)))
    flash = trace(figure, "flash")
    # compute-bound: the A100's 312 TFLOP/s
    assert flash["y"][0] == pytest.approx(312e12, rel=0.01)
    assert flash["marker"]["opacity"][0] < 1
    assert "<b>MODELLED</b>, not measured" in figure.texts[flash["meta"]["texts"][0]]
    assert flash["error_y"]["array"] == [0] * len(flash["x"])


# Against N


def charts(report: Report) -> dict[str, Figure]:
    (one,) = length_charts(report, looks(report))
    return {figure.id.rpartition("-")[2]: figure for figure in one.figures}


def test_one_length_gives_no_chart() -> None:
    report = sweep("fwd-d64-4k", "fwd-d128-16k", "bwd-d64-8k")
    assert length_charts(report, looks(report)) == ()


def test_times_and_bytes_against_n_are_those_of_the_record() -> None:
    found = charts(sweep(*SWEEP))
    runs = [run_of(name, "flash") for name in SWEEP]
    times = trace(found["time"], "flash")
    assert times["x"] == [2048, 4096, 8192]
    assert times["y"] == [value(run, "time") for run in runs]
    assert times["mode"] == "markers"
    for level in ("l2", "dram"):
        measured, model = trace(found[level], "flash"), trace(found[level], "flash, modelled")
        assert measured["y"] == [value(run, f"{level}_read") + value(run, f"{level}_write") for run in runs]
        assert model["line"]["dash"] == "dash"
        assert model["x"] == [2048, 4096, 8192]
        assert model["y"] == [
            value(run, f"{level}_read_modelled") + value(run, f"{level}_write_modelled") for run in runs
        ]
    least = [f.placement.least_s for subject in sweep(*SWEEP).studies for f in subject.findings]
    assert trace(found["time"], "flash, least time")["y"] == least[1::4]  # flash is the second of four
    assert list(found["time"].layout["xaxis"]["ticktext"]) == [short_count(n) for n in (2048, 4096, 8192)]


def test_the_model_of_flash_is_quadratic_and_its_floor_at_dram_linear() -> None:
    found = charts(of(modelled(16384, 32768)))
    l2 = trace(found["l2"], "flash, modelled")["y"]
    dram = trace(found["dram"], "flash, modelled")["y"]
    assert l2[1] / l2[0] == pytest.approx(4, rel=0.02)
    assert dram[1] / dram[0] == pytest.approx(2, rel=0.02)
    assert all(one["mode"] == "lines" for figure in found.values() for one in figure.data)


def test_what_the_tiles_are_secret_of_has_no_curve() -> None:
    assert "sdpa-flash, modelled" not in [one["name"] for one in charts(sweep(*SWEEP))["l2"].data]


def test_groups_are_workloads_that_differ_in_n_alone() -> None:
    report = sweep(*SWEEP, "bwd-d64-2k", "bwd-d64-4k", "fwd-d128-4k-causal")
    found = length_charts(report, looks(report))
    assert [one.title.rpartition(", ")[2] for one in found] == ["forward", "backward"]
    assert all("d 64" in one.title and "N " not in one.title for one in found)


def test_keys_alone_may_vary() -> None:
    """Decoding: one query, N_k from 4k to 8k; another number of queries is another chart."""
    op = find_op("attention")
    backend = ModelBackend(load_device("a100-80gb-sxm"), "no GPU here")
    shapes = ((1, 4096), (1, 8192), (16, 4096))
    workloads = [AttentionWorkload(seq_q=q, seq_k=k) for q, k in shapes]
    report = of(run_session(op, workloads, op.implementations, backend, lambda *_: None))
    (one,) = length_charts(report, looks(report))
    assert one.title.endswith("N_q 1")
    assert trace(one.figures[0], "flash, least time")["x"] == [4096, 8192]


def test_the_baseline_stands_hollow_beside_the_marks() -> None:
    found = charts(sweep("fwd-d64-2k", "fwd-d64-4k", baseline="fwd-d64-8k"))
    before = trace(found["time"], "flash, baseline")
    assert before["x"] == [8192]
    assert before["marker"]["symbol"] == "square-open"


def test_plotly_takes_every_figure() -> None:
    """plotly's own validators refuse what they do not know."""
    report = sweep(*SWEEP, baseline="fwd-d64-4k")
    sets = length_charts(report, looks(report))
    figures: list[Any] = [*rooflines(report, looks(report)), *(f for one in sets for f in one.figures)]
    assert len(figures) == 1 + 3
    assert len({figure.id for figure in figures}) == 4
    for figure in figures:
        made = go.Figure(data=figure.data, layout=figure.layout)
        assert len(made.data) == len(figure.data)
