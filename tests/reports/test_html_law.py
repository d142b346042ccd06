"""The law in the HTML and Markdown reports: charts as data, tables, counted bytes, records without sweeps."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import msgspec
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from perfkit.analysis.law import FittedLaw, laws
from perfkit.analysis.onchip import on_chip
from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import study
from perfkit.analysis.sweeps import VARIABLES
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.model.units import short_count, show
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Moved
from perfkit.record import Record
from perfkit.reports.html.cells import CLASSES, MARKS
from perfkit.reports.html.figure import Figure, Trace
from perfkit.reports.html.law import Chart, law_chart
from perfkit.reports.html.law_tables import exponents, memory_table, points
from perfkit.reports.html.looks import looks
from perfkit.reports.html.page import as_html
from perfkit.reports.law import exponent_text
from perfkit.reports.law_plot import drawn
from perfkit.reports.markdown.page import as_markdown

MakeSwept = Callable[..., Record]
OP = find_op("attention")
ALL = ("standard", "flash1", "flash")
replace = msgspec.structs.replace


def of(*records: Record) -> Report:
    return Report(parts=tuple(Titled(name=f"io-{i}", study=study(one)) for i, one in enumerate(records)))


def html(*records: Record) -> str:
    return as_html(of(*records)).decode()


def chart(record: Record) -> Chart:
    return law_chart(laws(record), looks(of(record)), "record-1-law")


def figure(record: Record, variable: str) -> Figure:
    (found,) = [one for one in chart(record).figures if one.id == f"record-1-law-{variable}"]
    return found


def trace(figure: Figure, name: str) -> Trace:
    (found,) = [one for one in figure.data if one["name"] == name]
    return found


def of_law(record: Record, impl: str, source: str, variable: str) -> FittedLaw:
    """The fit of one sweep at the level of the law."""
    (one,) = [
        one
        for one in laws(record)
        if (one.sweep.impl, one.source, one.sweep.variable) == (impl, source, variable)
        and one.law is not None
    ]
    return one


def unswept() -> Record:
    w = AttentionWorkload(seq_q=4096, seq_k=4096)
    rows = [row for row in OP.implementations if row.name in ("standard", "flash")]
    return run_session(OP, [w], rows, FakeBackend(), lambda *_: None)


class Tables(HTMLParser):
    """Tables of a page: caption -> rows of (class, title, text)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[tuple[str, str, str]]]] = {}
        self._caption = ""
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "scroll" in given.get("class", ""):
            self._caption = given["aria-label"]
            self.found[self._caption] = []
        elif tag == "tr":
            self.found[self._caption].append([])
        elif tag in ("td", "th") and self._caption:
            self.found[self._caption][-1].append((given.get("class", ""), given.get("title", ""), ""))
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th", "tr", "tbody", "table")

    def handle_data(self, data: str) -> None:
        if self._open:
            kind, title, text = self.found[self._caption][-1][-1]
            self.found[self._caption][-1][-1] = (kind, title, (text + data).strip())


def texts(rows: list[list[tuple[str, str, str]]]) -> list[list[str]]:
    return [[text for _, _, text in row] for row in rows]


# Charts


def test_a_figure_for_each_variable_on_logarithmic_axes(swept: MakeSwept) -> None:
    record = swept(*ALL)
    found = chart(record)
    assert [one.id for one in found.figures] == [f"record-1-law-{variable}" for variable in VARIABLES]
    assert [one.title for one in found.figures] == [f"bytes against {variable}" for variable in VARIABLES]
    assert list(found.looks) == list(ALL)
    assert found.sources == ("measured",)
    for one in found.figures:
        assert one.layout["xaxis"]["type"] == one.layout["yaxis"]["type"] == "log"
        for axis, values in (("xaxis", "x"), ("yaxis", "y")):
            low, high = one.layout[axis]["range"]
            assert all(10**low < value < 10**high for data in one.data for value in data[values])
    assert figure(record, "M").layout["xaxis"]["title"]["text"] == "M (elements)"


def test_marks_are_the_points_that_were_fitted(swept: MakeSwept) -> None:
    record = swept(*ALL, counted=True)
    judged = drawn(laws(record))
    assert {one.source for one in judged} == {"measured", "counted"}
    for one in judged:
        marks = trace(figure(record, one.sweep.variable), f"{one.sweep.impl}, {one.source}")
        assert marks["mode"] == "markers"
        assert (marks["x"], marks["y"]) == (list(one.xs), list(one.traffic))
    drawn_traces = [data for one in chart(record).figures for data in one.data if data["mode"] == "markers"]
    assert len(drawn_traces) == len(judged)


def test_filled_is_measured_open_is_counted_and_pale_is_modelled(swept: MakeSwept) -> None:
    record = swept("flash", counted=True)
    measured, counted = (trace(figure(record, "N"), f"flash, {source}") for source in ("measured", "counted"))
    symbol = looks(of(record))["flash"].symbol
    assert (measured["marker"]["symbol"], counted["marker"]["symbol"]) == (symbol, f"{symbol}-open")
    assert measured["marker"]["opacity"] == counted["marker"]["opacity"] == 1
    assert counted["marker"]["size"] > measured["marker"]["size"]  # a ring where both are the same
    assert measured["meta"] == counted["meta"]  # one colour, one switch
    modelled = swept("flash", backend=ModelBackend(load("h200-141gb-sxm"), "no GPU"))
    assert trace(figure(modelled, "N"), "flash, modelled")["marker"]["opacity"] < 1
    assert chart(modelled).sources == ("modelled",)


@pytest.mark.parametrize(("variable", "slope"), [("N", 2), ("d", 2), ("M", -1)])
def test_lines_have_the_laws_slope_through_the_last_mark(variable: str, slope: int, swept: MakeSwept) -> None:
    record = swept("flash")
    one = of_law(record, "flash", "measured", variable)
    law = trace(figure(record, variable), "flash, measured, law")
    assert law["mode"] == "lines"
    assert law["x"] == [one.xs[0], one.xs[-1]]
    assert law["y"][1] == one.traffic[-1]
    assert law["y"][1] / law["y"][0] == pytest.approx((one.xs[-1] / one.xs[0]) ** slope)
    assert f"slope {slope}, fitted {exponent_text(one)}" in law["text"][0]


def test_hover_tells_who_where_and_how_many_bytes(swept: MakeSwept) -> None:
    record = swept("standard", "flash")
    one = of_law(record, "flash", "measured", "M")
    w, (rows, keys) = one.sweep.trials[0].workload, one.sweep.trials[0].tile or (0, 0)
    said = trace(figure(record, "M"), "flash, measured")["text"][0].split("<br>")
    assert said == [
        "<b>flash</b>, measured at SM&lt;-&gt;L2",
        f"N {short_count(w.seq_q)}, d 64, tile {rows} x {keys}, M {short_count(2 * 64 * rows)}",
        show(one.traffic[0], "bytes"),
    ]
    flat = trace(figure(record, "d"), "standard, measured")["text"][0]
    assert "at DRAM" in flat
    assert "tile" not in flat


def test_plotly_takes_every_figure(swept: MakeSwept) -> None:
    for one in chart(swept(*ALL, counted=True)).figures:
        assert len(go.Figure(data=one.data, layout=one.layout).data) == len(one.data) > 2


# Tables


def test_exponents_by_hand_and_with_their_verdicts(swept: MakeSwept) -> None:
    record = swept(*ALL, counted=True)
    found = laws(record)
    table = exponents(found, looks(of(record)))
    assert len(table.rows) == len(found)
    for row, one in zip(table.rows, found, strict=True):
        _, source, level, variable, _, exponent, law, constant, verdict = row.cells
        assert (source.text, variable.text) == (one.source, one.sweep.variable)
        assert level.text == ("SM<->L2" if one.level == "L2" else "DRAM")
        assert exponent.text == exponent_text(one) + MARKS[one.source]
        assert exponent.kind == one.source
        assert (verdict.text, verdict.kind, verdict.note) == (
            one.verdict.status, one.verdict.status, one.verdict.reason
        )  # fmt: skip
        if one.law is None:
            assert law.text == constant.text == "-"
            assert law.note == one.verdict.reason
        else:
            assert law.text == f"{one.law:g}"
    (flash,) = [
        row.cells
        for row, one in zip(table.rows, found, strict=True)
        if one == of_law(record, "flash", "modelled", "M")
    ]
    assert flash[6].text == "-1"
    # 4 N^2 d^2 / M, and 1 / T_r more for Q and O once: less than a hundredth
    assert float(flash[7].text.rstrip("*")) == pytest.approx(4, rel=0.01)


def test_every_mark_is_a_row_of_the_points(swept: MakeSwept) -> None:
    record = swept(*ALL, counted=True)
    table = points(laws(record), looks(of(record)))
    names = [column.name for column in table.columns]
    assert names[-3:] == ["modelled", "counted", "measured"]
    shown, last = set(), ""
    for row in table.rows:
        cells = dict(zip(names, (cell.text for cell in row.cells), strict=True))
        last = cells["implementation"] or last
        shown |= {(last, cells["varied"], cells["N"], cells["d"], cells[s]) for s in names[-3:]}
    for one in drawn(laws(record)):
        for trial, moved in zip(one.sweep.trials, one.traffic, strict=True):
            w, text = trial.workload, show(moved, "bytes") + MARKS[one.source]
            place = short_count(w.seq_q), str(w.head_dim)
            assert (one.sweep.impl, one.sweep.variable, *place, text) in shown


def test_sources_that_there_are_not_have_no_column(swept: MakeSwept) -> None:
    record = swept("standard", "flash")
    assert [column.name for column in points(laws(record), {}).columns][-2:] == ["modelled", "measured"]


def test_on_chip_memory_is_that_of_the_analysis(swept: MakeSwept) -> None:
    record = swept("flash")
    found = on_chip(record)
    table = memory_table(found, looks(of(record)))
    assert len(table.rows) == len(found) > 3
    for row, one in zip(table.rows, found, strict=True):
        _, kernel, d, tile, by_law, shared, accumulators, registers, constant = (c.text for c in row.cells)
        assert (kernel, d, tile) == (one.kernel, str(one.head_dim), f"{one.block_m} x {one.block_n}")
        assert by_law == f"{show(2 * 2 * one.head_dim * one.block_m, 'bytes')}*"  # Q and O, 2 B an element
        assert shared == f"{show(one.shared_bytes, 'bytes')}*"
        assert accumulators == f"{show(4 * one.block_m * (one.head_dim + one.block_n), 'bytes')}*"
        assert registers == "-"  # nothing was compiled
        assert constant.endswith("*")


# The page


def test_the_page_has_the_section_and_its_charts(swept: MakeSwept) -> None:
    page = html(swept(*ALL, counted=True))
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles[titles.index("Byte ledger") + 1] == "The law"
    assert '<a href="#record-1-law">The law</a>' in page
    section = page[page.index('<section id="record-1-law">') :]
    section = section[: section.index("</section>")]
    assert re.findall(r'class="area" id="([^"]+)" role="img"', section) == [
        f"record-1-law-{variable}" for variable in VARIABLES
    ]
    assert section.count('<button type="button" data-look=') == 3
    assert re.findall(r'<p class="caption">(.*?)</p>', section) == ["Exponents", "Points", "On-chip memory"]
    ids = [one["id"] for one in json.loads(re.findall(r'(?s)id="figures">(.*?)</script>', page)[0])]
    assert ids[-3:] == [f"record-1-law-{variable}" for variable in VARIABLES]


def test_several_records_have_figures_of_their_own(swept: MakeSwept) -> None:
    page = html(swept("flash"), unswept(), swept("standard"))
    ids = [one["id"] for one in json.loads(re.findall(r'(?s)id="figures">(.*?)</script>', page)[0])]
    assert [name for name in ids if "-law-" in name] == [
        *(f"record-1-law-{variable}" for variable in "NdM"),
        *(f"record-3-law-{variable}" for variable in "Nd"),
    ]
    assert all(page.count(f'id="{name}"') == 1 for name in ids)
    assert page.count("<h3>The law</h3>") == 2


def test_marks_go_with_their_classes(swept: MakeSwept) -> None:
    found = Tables(html(swept(*ALL, counted=True))).found
    marks = {CLASSES[source]: MARKS[source] for source in ("modelled", "counted")}
    for name in ("Exponents", "Points", "On-chip memory", "Byte ledger"):
        for row in found[name][1:]:
            for kind, title, text in row:
                assert not marks.get(kind) or text.endswith(marks[kind])
                assert kind != "u" or title or name == "Byte ledger"


def test_the_same_report_gives_the_same_bytes(swept: MakeSwept) -> None:
    assert html(swept(*ALL)) == html(swept(*ALL))


def test_a_record_without_sweeps_is_as_it_was() -> None:
    page = html(unswept())
    assert "The law" not in page
    assert "-law" not in page
    assert "Points" not in Tables(page).found
    header = texts(Tables(page).found["Byte ledger"])[0]
    assert header[4:] == ["read, modelled", "read, measured", "write, modelled", "write, measured"]


def test_trials_have_no_place_among_what_was_asked_for(swept: MakeSwept) -> None:
    record = swept(*ALL)
    page = html(record)
    found = Tables(page).found
    assert [row[0] for row in texts(found["Results"])[1:]] == list(ALL)
    assert 'id="lengths"' not in page  # M varies at one N: a curve through all runs would be none of them
    names = texts(found["All numbers"])[0][1:]
    assert len(names) == len(record.runs) == len(set(names))  # none lost, and each told from the others
    verdict = page[page.index('id="verdict"') : page.index('id="results"')]
    assert f"{len(record.runs) - 3} more runs are trials of a series." in verdict


# Counted bytes in the ledger


def counted_flash(off: int = 0, extra: tuple[Moved, ...] = ()) -> Record:
    """One run of flash whose count is `off` bytes of Q beyond its ledger."""
    row = OP.implementation("flash")
    assert row is not None
    assert row.io is not None
    w = AttentionWorkload(heads=1, kv_heads=1, seq_q=4096, seq_k=4096)
    record = run_session(OP, [w], [row], FakeBackend(), lambda *_: None)
    (run,) = record.runs
    first, *rest = row.io.ledger(w, run.uses)
    assert first.tensor == "Q"
    more = replace(first, traffic=first.traffic + Traffic(read_bytes=off, write_bytes=0))
    return replace(record, runs=(replace(run, counted=(more, *rest, *extra)),))


def ledger_of(record: Record) -> list[dict[str, tuple[str, str, str]]]:
    header, *rows = Tables(html(record)).found["Byte ledger"]
    return [dict(zip((text for _, _, text in header), row, strict=True)) for row in rows]


def test_counted_bytes_stand_between_modelled_and_measured() -> None:
    rows = ledger_of(counted_flash())
    names = list(rows[0])
    assert names[4:7] == ["read, modelled", "read, counted", "read, measured"]
    assert names[7:] == ["write, modelled", "write, counted", "write, measured"]
    assert [row["tensor"][2] for row in rows] == ["Q", "K", "V", "O", "LSE", "all"]
    for row in rows:
        for side in ("read", "write"):
            kind, title, text = row[f"{side}, counted"]
            assert (kind, title) == ("c", "")
            assert text.rstrip("#") == row[f"{side}, modelled"][2].rstrip("*")
    # 4096 rows of 64, 2 B each: Q 524,288 B once
    assert rows[0]["read, counted"][2] == "524 kB#"


def test_a_count_that_differs_says_so() -> None:
    rows = ledger_of(counted_flash(off=-12))
    assert rows[0]["read, counted"] == (
        "n bad", "DIFFERS: -12 B from the model, and nothing explains it", "524 kB#"
    )  # fmt: skip
    assert [row["read, counted"][0] for row in rows[1:]] == ["c"] * 5


def test_a_difference_that_is_known_has_its_reason() -> None:
    index = Moved(kernel="mask", tensor="index", traffic=Traffic(read_bytes=64, write_bytes=0))
    (row,) = [row for row in ledger_of(counted_flash(extra=(index,))) if row["tensor"][2] == "index"]
    kind, title, text = row["read, counted"]
    assert (kind, text) == ("c", "64.0 B#")
    assert (
        title
        == "+64 B from the model: the two index vectors that the mask is made from are not in the ledger"
    )
    assert row["read, modelled"][2] == "-"


# Markdown


def test_markdown_has_a_row_for_each_exponent_that_was_seen(swept: MakeSwept) -> None:
    record = swept("standard", "flash")
    text = as_markdown(of(record)).decode()
    section = text[text.index("**The law**") :].split("\n\n")[1].splitlines()
    assert section[0] == "| impl | bytes | level | varied | range | exponent | law | constant | verdict |"
    assert len(section) == 2 + 2 + 3  # standard has N and d, flash M too; modelled ones are not shown
    one = of_law(record, "flash", "measured", "M")
    first, last = (short_count(int(one.xs[at])) for at in (0, -1))
    start = f"| flash | measured | SM&lt;-&gt;L2 | M | {first}-{last} | {exponent_text(one)} | -1 | 4.0"
    assert section[-1].startswith(start)
    assert section[-1].endswith(" | holds |")
    results = text[text.index("| impl | time |") :].split("\n\n")[0]
    assert results.count("\n| standard |") == results.count("\n| flash |") == 1


def test_markdown_shows_modelled_exponents_where_there_are_no_others(swept: MakeSwept) -> None:
    record = swept("flash", backend=ModelBackend(load("h200-141gb-sxm"), "no GPU"))
    text = as_markdown(of(record)).decode()
    assert text.count("| flash | modelled | SM&lt;-&gt;L2 |") == 3


def test_markdown_without_sweeps_has_no_law() -> None:
    assert "The law" not in as_markdown(of(unswept())).decode()


def test_a_violated_law_is_in_every_report(swept: MakeSwept) -> None:
    record = swept("flash")
    at = max(range(1, len(record.runs)), key=lambda i: (record.runs[i].workload.seq_k, -i))
    numbers: dict[str, Any] = dict(record.runs[at].numbers)
    numbers["l2_read"] = replace(numbers["l2_read"], value=8 * numbers["l2_read"].value)
    runs = (*record.runs[:at], replace(record.runs[at], numbers=numbers), *record.runs[at + 1 :])
    changed = replace(record, runs=runs)
    assert "VIOLATED: the law, measured bytes of flash against N" in as_markdown(of(changed)).decode()
    page = html(changed)
    assert "VIOLATED: the law, measured bytes of flash against N" in page
    rows = [row for row in Tables(page).found["Exponents"][1:] if row[-1][2] == "violated"]
    assert [rows[0][-1][0], rows[0][1][2], rows[0][3][2]] == ["violated", "measured", "N"]
