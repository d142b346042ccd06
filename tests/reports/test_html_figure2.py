"""Figure 2 in the HTML report: its charts as data against the record, its tables, its place in the page."""

import math
import re
from functools import cache
from typing import Any

import msgspec
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from perfkit.analysis.figure2 import Figure2, figure2, fit_line
from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import study
from perfkit.cli.figure2_cases import PANELS, cases
from perfkit.cli.io_cases import marked
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_cases
from perfkit.ops import find_op
from perfkit.record import Record, number
from perfkit.reports.html.cells import MARKS, Cell, Table
from perfkit.reports.html.figure import Figure, Trace
from perfkit.reports.html.figure2 import figure2_chart
from perfkit.reports.html.figure2_tables import figure2_tables
from perfkit.reports.html.law import Chart
from perfkit.reports.html.looks import looks
from perfkit.reports.html.page import as_html

OP = find_op("attention")
replace = msgspec.structs.replace


@cache
def record(*panels: str) -> Record:
    backend = FakeBackend()
    asked = cases(OP, panels or PANELS, backend.profile)
    runs = run_cases(OP, [(one.workload, [one.row]) for one in asked], backend, lambda *_: None)
    return marked(runs, asked)


def report(subject: Record) -> Report:
    return Report(parts=(Titled(name="record", study=study(subject)),))


def figure_of(subject: Record) -> Figure2:
    found = figure2(subject)
    assert found is not None
    return found


def chart(subject: Record) -> Chart:
    return figure2_chart(figure_of(subject), looks(report(subject)), "r")


def without_times() -> Record:
    """The record as a machine without a GPU makes it, but for the counts of one tile."""
    tags = {f"l2_{side}_counted": number(f"l2_{side}_counted", 1e9, "counted") for side in ("read", "write")}
    gone = ("time", "l2_read", "l2_write", "dram_read", "dram_write", "flops_tensor")
    runs = []
    for run in record().runs:
        kept = {tag: value for tag, value in run.numbers.items() if tag not in gone}
        counts = tags if run.impl in ("flash1", "flash") else {}
        runs.append(replace(run, numbers={**kept, **counts}))
    return replace(record(), runs=tuple(runs))


def panel(found: Chart, name: str) -> Figure:
    (one,) = [figure for figure in found.figures if figure.id == f"r-{name}"]
    return one


def trace(figure: Figure, name: str) -> Trace:
    (one,) = [one for one in figure.data if one["name"] == name]
    return one


# Charts


def test_every_panel_has_its_charts() -> None:
    found = chart(record())
    assert [one.id for one in found.figures] == [
        "r-left-bytes", "r-left-time", "r-middle-bytes", "r-middle-time", "r-right"
    ]  # fmt: skip
    assert list(found.looks) == ["gpt2", "standard", "flash", "flash1", "block-sparse"]
    assert found.sources == ("measured", "modelled")
    for one in found.figures:
        go.Figure(data=one.data, layout=one.layout)  # refuses what plotly does not know


def test_bars_of_the_left_panel_are_paper_formula_and_runs() -> None:
    bars = panel(chart(record()), "left-bytes").data
    assert [bar["y"][0] for bar in bars] == [
        "paper, standard", "formula, standard", "gpt2, modelled", "gpt2, measured", "standard, modelled",
        "standard, measured", "paper, flash", "formula, flash", "flash, modelled", "flash, measured",
    ]  # fmt: skip
    values = {bar["y"][0]: bar["x"][0] for bar in bars}
    assert (values["paper, standard"], values["paper, flash"]) == (40.3e9, 4.4e9)
    assert values["formula, standard"] == 18 * 2147483648 + 12 * 134217728
    assert values["gpt2, measured"] == record().runs[0].moved("DRAM")
    # The paper's bars have the colour of roofs, those of runs that of their implementation; pale is modelled.
    assert ["hue" in bar["meta"] for bar in bars] == [False] * 2 + [True] * 4 + [False] * 2 + [True] * 2
    assert [bar["marker"]["opacity"] for bar in bars] == [1, 0.5, 0.5, 1, 0.5, 1, 1, 0.5, 0.5, 1]
    times = panel(chart(record()), "left-time").data
    assert [(bar["y"][0], bar["text"][0]) for bar in times][:2] == [
        ("paper, standard", "41.7 ms"), ("gpt2, measured", "12.2 ms")
    ]  # fmt: skip


def test_bars_and_their_numbers_fit_the_axis() -> None:
    for name in ("left-bytes", "left-time"):
        one = panel(chart(record()), name)
        low, high = one.layout["xaxis"]["range"]
        assert low == 0
        assert all(bar["x"][0] < high / 1.2 for bar in one.data)


def test_marks_of_the_middle_panel_are_the_points() -> None:
    found, middle = chart(record()), figure_of(record()).middle
    for name, value in (("middle-bytes", "l2_measured"), ("middle-time", "time_s")):
        for impl in ("flash1", "flash"):
            marks = trace(panel(found, name), impl)
            points = [point for point in middle if point.impl == impl]
            assert marks["x"] == [point.block for point in points]
            assert marks["y"] == [getattr(point, value) for point in points]
    paper = trace(panel(found, "middle-bytes"), "paper")
    assert paper["y"] == pytest.approx([6.7108864e9, 3.489660928e9, 1.879048192e9, 1.073741824e9])
    assert "hue" not in paper["meta"]


def test_all_marks_are_in_their_windows() -> None:
    for one in chart(record()).figures[2:]:
        for axis, values in (("xaxis", "x"), ("yaxis", "y")):
            low, high = one.layout[axis]["range"]
            scale = math.log10 if one.layout[axis]["type"] == "log" else float
            assert all(low <= scale(value) <= high for found in one.data for value in found[values])


def test_the_right_panel_has_marks_line_and_dense_attention() -> None:
    figure, one = figure_of(record()), panel(chart(record()), "right")
    marks = trace(one, "block-sparse")
    assert marks["x"] == [point.share for point in figure.right]
    assert marks["y"] == [point.time_s for point in figure.right]
    line = fit_line(figure.right)
    assert line is not None
    assert trace(one, "fitted line")["y"] == [line.intercept_s, line.intercept_s + line.slope_s]
    assert trace(one, "flash, dense")["y"] == [figure.dense_s] * 2


def test_what_nothing_measured_is_counted_or_modelled() -> None:
    found = chart(without_times())
    assert [one.id for one in found.figures] == ["r-left-bytes", "r-left-time", "r-middle-bytes", "r-right"]
    assert found.sources == ("counted", "modelled")
    middle = trace(panel(found, "middle-bytes"), "flash")
    assert middle["marker"]["symbol"].endswith("-open")
    assert middle["y"] == [2e9] * 4
    right = panel(found, "right")
    assert right.title == "SM<->L2 bytes, modelled, against the share of blocks"
    assert [one["name"] for one in right.data] == ["block-sparse"]
    assert right.data[0]["marker"]["opacity"] == 0.5


def test_runs_without_any_number_draw_nothing() -> None:
    runs = tuple(replace(run, numbers={}, status="refused", reason="not here") for run in record().runs)
    found = chart(replace(record(), runs=runs))
    assert [one.id for one in found.figures] == ["r-left-bytes", "r-left-time"]
    assert {bar["y"][0].split(",")[0] for one in found.figures for bar in one.data} == {"paper", "formula"}


# Tables


def table(subject: Record, start: str) -> Table:
    found = figure2_tables(figure_of(subject), looks(report(subject)))
    (one,) = [one for one in found if one.caption.startswith(start)]
    return one


def texts(one: Table) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in one.rows]


def test_every_row_has_a_cell_for_each_column() -> None:
    for subject in (record(), without_times()):
        tables = figure2_tables(figure_of(subject), looks(report(subject)))
        assert len(tables) == 6
        for one in tables:
            assert {len(row.cells) for row in one.rows} == {len(one.columns)}


def test_numbers_carry_their_provenance() -> None:
    rows = texts(table(record(), "Left"))
    assert rows[0][:4] == ["FLOPs", "printed", "66.6 GFLOP", "75.2 GFLOP"]
    assert rows[4] == ["", "modelled", "", "", "40.3 GB*", "4.43 GB*", "46.7 GB*", "32.2 GB*", "2.84 GB*"]
    assert rows[5] == ["", "measured", "", "", "", "", "46.7 GB", "32.2 GB", "2.84 GB"]
    counted = texts(table(without_times(), "Middle"))
    assert counted[0] == [
        "flash1", "64", "64 x 64", "6.71 GB*", "11.4 GB*", "2.00 GB#", "-", "8.81 GB*", "-", "-"
    ]  # fmt: skip


def test_what_is_absent_says_why() -> None:
    def cells() -> Any:
        for one in figure2_tables(figure_of(without_times()), looks(report(without_times()))):
            yield from (cell for row in one.rows for cell in row.cells)

    absent: list[Cell] = [cell for cell in cells() if cell.text == "-"]
    assert len(absent) > 50
    assert all(cell.note and cell.kind == "unavailable" for cell in absent)
    steps = table(record(), "GPT-2's pipeline").rows
    assert {row.cells[1].note for row in steps} == {"no kernels were counted"}


def test_only_what_fits_is_said_to() -> None:
    rows = table(record(), "What explains").rows
    fits = [(row.cells[2].text, row.cells[4].kind) for row in rows if row.cells[4].text == "yes"]
    assert fits == [
        ("18 N^2 + 12 u", "good"), ("(1 + 3 T_c) u + (4 + 4 T_c) u", "good"),
        ("6 x 2 N^2 d B + 14 N^2 h B", "good"), ("7 x 2 N^2 d B + 14 N^2 h B", "good"),
    ]  # fmt: skip
    assert sum(row.cells[4].text == "no" for row in rows) == len(rows) - 4
    assert all(row.cells[3].text.endswith(MARKS["modelled"]) for row in rows)


# The page


def test_the_page_has_the_section_and_its_charts() -> None:
    page = as_html(report(record())).decode()
    section = page.split('<section id="record-1-figure2">')[1].split("</section>")[0]
    assert "<h2>Figure 2 of FlashAttention</h2>" in section
    assert re.findall(r'<div class="area" id="([^"]+)"', section) == [
        f"record-1-figure2-{name}"
        for name in ("left-bytes", "left-time", "middle-bytes", "middle-time", "right")
    ]
    assert "the paper on A100 40 GB, its formula, or the fitted line</li>" in section
    assert "SM&lt;-&gt;L2 bytes fall by 70.5 %" in section
    assert page.count("record-1-figure2-right") == 2  # its place, and its data


def test_a_panel_alone_has_its_charts_only() -> None:
    page = as_html(report(record("right"))).decode()
    assert re.findall(r'id="record-1-figure2-([a-z-]+)"', page) == ["right"]


def test_other_records_have_no_such_section() -> None:
    other = replace(record(), runs=record().runs[1:3])  # standard and flash at GPT-2 medium's shape
    assert "Figure 2 of FlashAttention</h2>" not in as_html(report(other)).decode()
