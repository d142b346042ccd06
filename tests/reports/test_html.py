"""The HTML report as text: its sections, its numbers against the record, escaping, size."""

import base64
import csv
import gzip
import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.analysis.comparison import compare
from perfkit.analysis.metrics import METRICS
from perfkit.analysis.report import Report, Titled, comparison_of
from perfkit.analysis.speed import THRESHOLD
from perfkit.analysis.study import Study, study
from perfkit.errors import UsageError
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load as load_device
from perfkit.model.units import show
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse
from perfkit.record import QUANTITIES, Record, Run, dump, load
from perfkit.reports.files import as_csv
from perfkit.reports.html.bars import bars
from perfkit.reports.html.cells import CLASSES, MARKS
from perfkit.reports.html.embed import script_json
from perfkit.reports.html.looks import DARK, LIGHT, SYMBOLS, looks
from perfkit.reports.html.page import as_html

RECORDS = Path(__file__).parents[2] / "docs" / "examples" / "h200"
HOSTILE = "</script><img src=x onerror=alert(1)><b>x</b>&amp;\u2028'\"`{{ 7 * 6 }}"


def part(name: str) -> Titled:
    return Titled(name=name, study=study(load(RECORDS / f"{name}.json")))


def of(record: Record, name: str = "record") -> Report:
    return Report(parts=(Titled(name=name, study=study(record)),))


def html(report: Report) -> str:
    return as_html(report).decode()


def compared(*lengths: int) -> Record:
    """What `perfkit compare` records of two implementations at several lengths."""
    op = find_op("attention")
    rows = [row for row in op.implementations if row.name in ("standard", "flash")]
    workloads = [AttentionWorkload(seq_q=n, seq_k=n) for n in lengths]
    return run_session(op, workloads, rows, FakeBackend(), lambda *_: None, baseline="standard")


def modelled() -> Record:
    op = find_op("attention")
    backend = ModelBackend(load_device("a100-80gb-sxm"), "no GPU here")
    workload = AttentionWorkload(seq_q=4096, seq_k=4096)
    rows = [row for row in op.implementations if not row.refusal(workload)]
    return run_session(op, [workload], rows, backend, lambda *_: None)


def changed_run(record: Record, at: int, **fields: Any) -> Record:
    """`record` with other fields in one run."""
    runs = list(record.runs)
    runs[at] = msgspec.structs.replace(runs[at], **fields)
    return msgspec.structs.replace(record, runs=tuple(runs))


class Tables(HTMLParser):
    """Every table of a page: caption -> rows of (class, title, text). End tags of cells may be absent."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[tuple[str, str | None, str]]]]] = []
        self._caption = ""
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "scroll" in (given.get("class") or ""):
            self._caption = given.get("aria-label") or ""
        elif tag == "table":
            self.tables.append((self._caption, []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1][1][-1].append((given.get("class") or "", given.get("title"), ""))
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th", "tr", "tbody", "table")

    def handle_data(self, data: str) -> None:
        if self._open:
            kind, title, text = self.tables[-1][1][-1][-1]
            self.tables[-1][1][-1][-1] = (kind, title, (text + data).strip())

    def named(self, caption: str) -> list[list[tuple[str, str | None, str]]]:
        (rows,) = [rows for name, rows in self.tables if name == caption]
        return rows

    def texts(self, caption: str) -> list[list[str]]:
        return [[text for _, _, text in row] for row in self.named(caption)]


@pytest.fixture(scope="module")
def subject() -> Study:
    return part("all-d64-16k").study


@pytest.fixture(scope="module")
def page() -> str:
    return html(Report(parts=(part("all-d64-16k"),)))


def run_of(subject: Study, impl: str) -> Run:
    return next(run for run in subject.record.runs if run.impl == impl)


# What is there


def test_one_record_has_every_section_with_a_sentence_on_how_to_read_it(page: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>\s*<p class=\"how\">(.*?)</p>", page)
    assert [title for title, _ in titles] == [
        "Verdict", "Results", "Roofline", "Byte ledger", "Where the time went", "Memory and energy",
        "Correctness", "Kernels", "IO check", "Environment", "All numbers", "Provenance", "The data",
    ]  # fmt: skip
    assert all(how.endswith(".") and len(how) > 40 for _, how in titles)


def test_every_link_of_the_contents_leads_to_a_section() -> None:
    for report in (
        Report(parts=(part("fwd-d64-4k"),)),
        Report(parts=(part("fwd-d64-4k"), part("fwd-d64-8k"))),
    ):
        page = html(report)
        targets = re.findall(r'href="#([^"]+)"', page)
        assert len(targets) >= 8
        assert [name for name in targets if page.count(f'id="{name}"') != 1] == []


def test_the_verdict_says_what_was_measured_and_who_is_fastest(page: str) -> None:
    verdict = page[page.index('id="verdict"') : page.index('id="results"')]
    assert "attention on NVIDIA H200 141GB SXM" in page
    assert "are the fastest and cannot be told apart: sdpa-cudnn 2.29 ms" in verdict
    assert "<b>7</b> measured runs" in verdict
    assert "<b>22</b> IO checks hold" in verdict
    assert "banner" not in verdict


def test_several_records_fold_but_the_first_ones() -> None:
    names = ("fwd-d64-2k", "fwd-d64-4k", "fwd-d64-8k", "fwd-d64-64k")
    page = html(Report(parts=tuple(map(part, names))))
    assert page.count('<details class="record"') == 4
    assert page.count('<details class="record" id="record-1" open>') == 1
    assert page.count('<details class="record" id="record-3">') == 1
    assert "fwd-d64-64k: standard: refused: needs 276 GB" in page  # one of what must be looked at


def test_failures_and_impossible_times_stand_at_the_top(subject: Study) -> None:
    number = run_of(subject, "flash").numbers["time"]
    # 1.0995e12 FLOP in 0.5 ms are 2.2 PFLOP/s, over twice what 132 SMs can do at this clock
    fast = msgspec.structs.replace(number, value=0.5e-3)
    record = changed_run(subject.record, 1, numbers={**run_of(subject, "flash").numbers, "time": fast})
    record = changed_run(record, 0, status="failed", reason="a wheel came off", numbers={}, timing=None)
    page = html(of(record))
    verdict = page[page.index('id="verdict"') : page.index('id="results"')]
    assert "INVALID: flash is 2.37x above the compute roof" in verdict  # 0.001187 s / 0.0005 s
    assert "standard: failed: a wheel came off." in verdict
    assert "<b>1</b> INVALID" in verdict
    assert "<b>1</b> without a result" in verdict
    results = {row[0]: row[1:] for row in Tables(page).texts("Results") if row}
    assert results["flash"][1] == "INVALID"
    assert results["standard"][0] == "failed"


def test_nothing_measured_is_said_before_all_else() -> None:
    assert "MODELLED: no number here was measured" in html(of(modelled()))
    assert "FAKE: no number here was measured" in html(of(compared(1024)))
    mixed = Report(parts=(part("fwd-d64-4k"), *of(modelled()).parts))
    assert "MODELLED: 1 of 2 records hold no measured number" in html(mixed)


def test_a_record_without_runs_is_a_page(subject: Study) -> None:
    page = html(of(msgspec.structs.replace(subject.record, runs=())))
    assert "There is no run in this record" in page
    assert "there is nothing to draw" in page
    assert '<script type="text/plain" id="plotly">' not in page


# Numbers


def test_the_table_of_all_numbers_is_the_record(page: str, subject: Study) -> None:
    """Text, mark and class of every cell against the number that it shows."""
    header, *rows = Tables(page).named("All numbers")
    assert [text for _, _, text in header[1:]] == [run.impl for run in subject.record.runs]
    hints = {row.label: (row.tag, row.hint) for row in (*QUANTITIES, *METRICS)}
    seen = 0
    for (_, _, label), *cells in rows:
        tag, hint = hints[label]
        for (kind, _, text), finding in zip(cells, subject.findings, strict=True):
            number = finding.placement.run.numbers.get(tag) or finding.metrics.get(tag)
            assert number is not None
            assert kind == CLASSES[number.provenance]
            assert text == show(number.value, hint) + MARKS[number.provenance]
            seen += 1
    assert len(subject.record.runs) == 7
    assert seen == 7 * (len(subject.record.runs[0].numbers) + len(METRICS))


def test_results_of_one_run_by_hand(page: str) -> None:
    """Flash: 4 h N^2 d = 4 * 16 * 16384^2 * 64 FLOPs in 2.304256 ms; 100,689,152 + 34,338,816 B at DRAM."""
    (flash,) = [row for row in Tables(page).texts("Results") if row[0] == "flash"]
    assert pytest.approx(477.2e12, rel=1e-3) == 4 * 16 * 16384**2 * 64 / 2.304255962371826e-3
    assert flash == [
        "flash",
        "2.30 ms ±0.06%",
        "477 TFLOP/s",
        "51.5 %",
        "135 MB",
        "17.2 GB",
        "8143",
        "compute",
    ]


def test_modelled_numbers_are_marked_and_absent_ones_have_a_reason() -> None:
    page = html(of(modelled()))
    rows = Tables(page).named("Results")[1:]
    for name, time_s, rate, share, *_ in rows:
        assert time_s[0] == rate[0] == "f"
        assert time_s[2].endswith("*")
        assert share == ("u", "no time was measured", "-"), name
    assert "no GPU here (standard, " in page  # the footnote of the table of all numbers


def test_every_absent_number_has_a_title_or_a_footnote(page: str) -> None:
    footnoted = ("Byte ledger", "All numbers")
    cells = [
        (caption, title)
        for caption, rows in Tables(page).tables
        for row in rows
        for kind, title, _ in row
        if kind == "u"
    ]
    assert cells
    assert [caption for caption, title in cells if not title and caption not in footnoted] == []
    assert "the tiles of its matmul library are not known (standard: " in page


def test_marks_go_with_their_classes(page: str) -> None:
    marks = {"f": "*", "c": "#", "d": "§"}
    found = [(kind, text) for _, rows in Tables(page).tables for row in rows for kind, _, text in row]
    assert {kind for kind, _ in found} >= {"m", "f", "c", "d", "u"}
    for kind, text in found:
        if kind in marks:
            assert text.endswith(marks[kind])
        elif kind == "m":
            assert text[-1] not in "*#§"


def test_ledger_losses_kernels_and_verdicts_show_the_analysis(page: str, subject: Study) -> None:
    tables = Tables(page)
    ledger = tables.texts("Byte ledger")
    # FA2 Algorithm 1: 16384 / 64 = 256 passes over K, 16 heads * 16384 * 64 * 2 B each: 8.59 GB
    assert 256 * 16 * 16384 * 64 * 2 == 8_589_934_592
    assert ["", "", "K", "SM<->L2", "8.59 GB*", "-", "0 B*", "-"] in ledger
    kernels = sum(len(run.kernels) for run in subject.record.runs)
    assert len(tables.texts("Kernels")) == 1 + kernels
    verdicts = sum(len(finding.verdicts) for finding in subject.findings)
    assert len(tables.texts("IO check")) == 1 + verdicts
    (flash,) = [row for row in tables.texts("Where the time went") if row[0] == "flash"]
    # 1.0995e12 FLOP at 989.4e12 FLOP/s are 1.11 ms of 2.30 ms
    assert flash[1:3] == ["2.30 ms", "1.11 ms (48%)*"]
    (tile,) = [row for row in tables.texts("Tiles and compiled code") if row[1] == "flash_forward"]
    assert tile == ["flash", "flash_forward", "64 x 128", "4", "2", "154#", "0#", "72.0 KiB#"]  # 73,760 B


def test_zeros_by_tma_are_a_line_of_the_ledger() -> None:
    """The ledger's 8.52 GB and 2.84 of zeros are the 11.4 that the SM counted."""
    found = Tables(html(of(load(RECORDS / "hopper" / "fwd-d96-8k.json")))).texts("Byte ledger")
    (zeros,) = [at for at, row in enumerate(found) if row[2] == "zeros by TMA"]
    assert found[zeros] == ["", "", "zeros by TMA", "SM<->L2", "2.84 GB*", "-", "0 B*", "-"]
    assert found[zeros + 1][2:6] == ["all", "SM<->L2", "11.4 GB*", "11.4 GB"]


def test_tiles_have_the_sides_that_there_are(subject: Study) -> None:
    """A kernel without a block of keys has rows, and one without a tile says so."""
    at = [run.impl for run in subject.record.runs].index("flash")
    uses = [
        KernelUse(kernel=kernel, block_m=m, block_n=n)
        for kernel, m, n in (
            ("flash_hopper_dq", 128, 64), ("flash_hopper_statistics", 64, 0), ("decode_combine", 8, 0),
            ("flash_hopper_sum_of_parts", 0, 0),
        )
    ]  # fmt: skip
    record = changed_run(subject.record, at, uses=tuple(uses))
    found = Tables(html(of(record))).named("Tiles and compiled code")[1:]
    tiles = [tile for _, kernel, tile, *_ in found if kernel[2] in {use.kernel for use in uses}]
    assert [text for _, _, text in tiles] == ["128 x 64", "64 rows", "8 shares", "-"]
    assert tiles[-1] == ("u", "this kernel has no tile", "-")


def test_bars_fill_their_tracks_also_where_a_part_is_a_gain(subject: Study) -> None:
    found = bars(subject, looks(Report(parts=(part("all-d64-16k"),))))
    assert [bar.impl for bar in found] == [run.impl for run in subject.record.runs]
    for bar in found:
        assert sum(float(piece.width) for piece in bar.pieces) == pytest.approx(100, abs=0.01)
    standard = found[0]  # ran at 1906 MHz, above the data sheet's 1830: 44.3 us less than ideal
    assert standard.pieces[0].note.startswith("ideal: 1.11 ms")
    # (1.1113 - 0.0443) ms of 12.438 ms
    assert float(standard.pieces[0].width) == pytest.approx(8.58, abs=0.01)
    assert [piece.slot for piece in standard.pieces] == [0, 3, 4, 5]


def test_correctness_shows_twice_the_eager_error(page: str) -> None:
    (flash,) = [row for row in Tables(page).texts("Correctness") if row[0] == "flash"]
    # twice 7.564337e-04 is 1.512867e-03
    assert flash[1:5] == ["2.23e-04", "7.56e-04", "1.51e-03", "correct"]


def test_an_incorrect_run_says_so(subject: Study) -> None:
    run = subject.record.runs[0]
    kept = {tag: run.numbers[tag] for tag in ("flops_convention", "exps")}
    record = changed_run(
        subject.record, 0, status="incorrect", reason="off by a mile", numbers=kept, timing=None
    )
    rows = Tables(html(of(record))).texts("Correctness")
    assert ["standard", "-", "-", "-", "incorrect", "off by a mile"] in rows


# Comparisons and changes


def test_a_comparison_has_its_table() -> None:
    record = compared(1024, 16384)
    page = html(of(record))
    rows = Tables(page).texts("Comparison")
    comparison = comparison_of(study(record))
    assert comparison is not None
    # the fake's times are 1.25 floors: at N 16k 34.5 GB over 4.8 TB/s against 1.10 TFLOP over 811 TFLOP/s
    assert ["N 16k, against standard"] in rows
    (flash,) = [row for row in rows if row[0] == "flash" and row[1] == "1.70 ms"]
    speedup = comparison.groups[1].contrasts[0].speedup
    assert speedup is not None
    assert speedup.value == pytest.approx((34.49e9 / 4.8e12) / (1.0995e12 / 811e12), rel=2e-3)
    assert flash[2:5] == [f"{speedup.value:.3f}x", f"[{speedup.low:.3f}, {speedup.high:.3f}]", "faster"]
    assert "flash is faster than standard at both lengths" in page


def test_a_comparison_of_a_real_record_shows_intervals(subject: Study) -> None:
    record = msgspec.structs.replace(subject.record, baseline="flash")
    rows = Tables(html(of(record))).texts("Comparison")
    wanted = compare(study(record), "flash", THRESHOLD).groups[0].contrasts
    candidates = [row for row in rows[3:] if row[0]]
    assert [row[0] for row in candidates] == [one.label for one in wanted]
    for row, one in zip(candidates, wanted, strict=True):
        assert one.speedup is not None
        assert row[2] == show(one.speedup.value, "ratio")
        low, high = map(float, row[3].strip("[]").split(", "))
        assert low <= one.speedup.value <= high
        assert row[4] == one.verdict.status


def test_a_baseline_gives_a_table_of_changes() -> None:
    report = Report(parts=(part("all-d64-16k"),), baseline=part("fwd-d64-16k"))
    page = html(report)
    rows = Tables(page).texts("all-d64-16k")
    # times of fwd-d64-16k, then of all-d64-16k, and the ratio of their medians
    (flash,) = [row for row in rows if row[0] == "flash"]
    assert flash[1:3] == ["2.23 ms", "2.30 ms"]
    assert flash[3] == "0.9697x"
    assert flash[5] == "undecided"  # by the clock: slower in time and not in cycles
    assert [row[0] for row in rows[1:]] == ["standard", "flash", "sdpa-flash", "sdpa-cudnn"]
    assert "fwd-d64-16k, the baseline" in page


def test_a_part_without_anything_in_common_has_no_changes() -> None:
    report = Report(parts=(part("fwd-d64-4k"), part("fwd-d64-8k")), baseline=part("fwd-d64-8k"))
    page = html(report)
    changes = page[page.index('id="changes"') : page.index('id="results"')]
    assert re.findall(r"<h3>(.*?)</h3>", changes) == ["fwd-d64-8k"]
    # a record beside itself: the same times, ratios of exactly 1
    rows = Tables(page).texts("fwd-d64-8k")
    assert [row[3:6] for row in rows[1:]] == [["1.000x", row[4], "same"] for row in rows[1:]]
    assert all(row[6:] == ["1.00x"] * 5 for row in rows[1:])


def test_a_baseline_with_nothing_in_common_is_an_error() -> None:
    with pytest.raises(UsageError, match="no implementation and workload in common"):
        as_html(Report(parts=(part("fwd-d64-2k"),), baseline=part("fwd-d64-4k")))


# What is carried inside


def unpacked(page: str, name: str) -> bytes:
    (packed,) = re.findall(
        rf'download="{name}\.gz" data-name="{name}" href="data:application/gzip;base64,([^"]+)"', page
    )
    return gzip.decompress(base64.b64decode(packed))


def test_the_data_are_in_the_file() -> None:
    names = ("fwd-d64-4k", "fwd-d64-8k")
    report = Report(parts=tuple(map(part, names)), baseline=part(names[1]))
    page = html(report)
    records = msgspec.json.decode(unpacked(page, "perfkit.json"), type=list[Record])
    assert records == [part(name).study.record for name in (*names, names[1])]
    table = unpacked(page, "perfkit.csv")
    assert table == as_csv(report)
    assert len(list(csv.DictReader(io.StringIO(table.decode())))) > 100


def test_samples_are_nowhere_but_in_the_packed_files(page: str, subject: Study) -> None:
    timing = subject.record.runs[1].timing
    assert timing is not None
    assert not any(repr(sample) in page for sample in timing.samples_s[:50])


def test_the_same_report_gives_the_same_bytes(page: str) -> None:
    assert html(Report(parts=(part("all-d64-16k"),))) == page


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    markup = re.sub(r'(?s)<script type="text/plain".*?</script>', "", page)
    assert re.findall(r'(?:src|srcset|action|poster)="', markup) == []
    assert set(re.findall(r'href="(\w+:|#)', markup)) == {"#", "data:"}
    assert "@import" not in markup
    assert "default-src 'none'" in page
    assert re.findall(r"url\(", markup) == []


def test_the_licence_of_plotly_is_named(page: str) -> None:
    assert re.search(
        r"plotly\.js v[\d.]+ Copyright 2012-\d+, Plotly, Inc\..* Licensed under the MIT license", page
    )


def test_fifty_records_stay_below_six_megabytes_and_five_seconds() -> None:
    names = sorted(path.stem for path in RECORDS.glob("*.json"))
    assert len(names) == 29
    parts = tuple(map(part, names)) * 2
    began = time.process_time()
    page = as_html(Report(parts=parts[:50]))
    assert time.process_time() - began < 5
    assert len(page) < 6_000_000
    assert page.count(b'<details class="record"') == 50


def test_samples_that_would_make_the_file_too_large_are_left_out_and_said() -> None:
    """fwd-d64-2k has 40,000 samples: fifty of it would take 9 MB packed."""
    page = as_html(Report(parts=(part("fwd-d64-2k"),) * 50))
    assert len(page) < 6_000_000
    assert b"without raw samples: all of them would make this file too large" in page
    alone = as_html(Report(parts=(part("fwd-d64-2k"),)))
    assert b"the records themselves with all samples" in alone


# Hostile and odd input


def hostile() -> Record:
    """A real record with a string that ends scripts and attributes wherever a string may be."""
    raw = json.loads((RECORDS / "fwd-d64-4k.json").read_text())
    raw["environment"] |= {"cpu": HOSTILE, "gpu": HOSTILE, "command": [HOSTILE], "timestamp": HOSTILE}
    raw["notes"] = [HOSTILE]
    raw["device"] |= {"model": HOSTILE, "name": HOSTILE}
    raw["device"]["sources"] = dict.fromkeys(raw["device"]["sources"], HOSTILE)
    for at, run in enumerate(raw["runs"]):
        run |= {"impl": f"{HOSTILE}{at}", "notes": [HOSTILE], "clock_reasons": [HOSTILE]}
        for number in run["numbers"].values():
            number["reason"] = HOSTILE
        for kernel in run["kernels"]:
            kernel["name"] = HOSTILE
            kernel["values"][HOSTILE] = 1.0
        for use in run["uses"]:
            use["kernel"] = HOSTILE
    raw["runs"][0] |= {"status": "failed", "reason": HOSTILE, "timing": None, "numbers": {}}
    return msgspec.json.decode(json.dumps(raw), type=Record)


class Tags(HTMLParser):
    """The names of all elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_strings_are_text_everywhere() -> None:
    title = Titled(name=HOSTILE, study=study(hostile()))
    page = html(Report(parts=(title, title), baseline=title))
    assert "<img" not in page
    assert "{{" not in re.sub(r"7 \* 6", "", page).replace("{{  }}", "")
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 100
    found = Tags(page)
    assert "img" not in found.tags
    assert not {name for name in found.attributes if name.startswith("on")}
    assert page.count("<script") == page.count("</script>") == 3
    figures = json.loads(re.findall(r'(?s)id="figures">(.*?)</script>', page)[0])
    strings = json.dumps([[one["data"], one["layout"], one["texts"]] for one in figures])
    assert "<img" not in strings
    assert "&lt;img src=x onerror=alert(1)&gt;" in strings  # inert in plotly too


def test_json_for_a_script_cannot_end_it() -> None:
    text = '</script><!-- & \u2028\u2029 \\ " é'
    made = script_json({"x": [text, 0.1, None]})
    assert not set("<>&\u2028\u2029") & set(made)
    assert json.loads(made) == {"x": [text, 0.1, None]}


def test_a_file_name_that_is_no_text_is_shown_all_the_same() -> None:
    """Bytes of a name that are no UTF-8 arrive as lone surrogates, which no encoding takes."""
    only = part("fwd-d64-4k")
    page = html(Report(parts=(msgspec.structs.replace(only, name="a\udcff.json"), only)))
    assert "a?.json" in page


# Looks


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, "#12161b")])
def test_every_hue_stands_out_from_its_paper(colours: tuple[str, ...], paper: str, page: str) -> None:
    assert f"--paper: {paper};" in page
    for colour in colours:
        light, dark = sorted((luminance(colour), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_seventy_two_implementations_look_different(subject: Study) -> None:
    run = subject.record.runs[0]
    runs = tuple(msgspec.structs.replace(run, impl=f"impl-{i}") for i in range(72))
    found = looks(of(msgspec.structs.replace(subject.record, runs=runs)))
    assert len({(look.hue, look.symbol) for look in found.values()}) == 72 == len(LIGHT) * len(SYMBOLS)
    assert len(DARK) == len(LIGHT)


def test_the_record_of_the_download_is_what_json_writes() -> None:
    only = part("fwd-d64-4k")
    page = html(Report(parts=(only,)))
    assert unpacked(page, "perfkit.json") == b"[" + dump(only.study.record).strip() + b"]\n"
