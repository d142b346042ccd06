"""The decode map in the terminal, in Markdown and in the HTML report: whole outputs, what each says."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest
from rich.console import Console

from perfkit.analysis.decode_map import DecodeMap, decode_maps
from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import Backend, run_cases
from perfkit.model.catalogue import load
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, Run
from perfkit.reports.decode_map_words import (
    count_text,
    missing_words,
    place_text,
    rate_text,
    share_text,
    tokens_text,
    winner_words,
)
from perfkit.reports.html.cells import Table
from perfkit.reports.html.decode_map import decode_chart, decode_table
from perfkit.reports.html.looks import looks
from perfkit.reports.html.page import as_html
from perfkit.reports.markdown.decode_map import decode_text
from perfkit.reports.markdown.page import as_markdown
from perfkit.reports.terminal import render

OP = find_op("attention")
GOLDEN = Path(__file__).parents[1] / "golden"
BATCHES, CONTEXTS = (4, 16, 64), (4096, 16384, 65536)
SHAPE: dict[str, Any] = {"heads": 32, "kv_heads": 8, "seq_q": 1, "head_dim": 128}
replace = msgspec.structs.replace


def recorded(backend: Backend, batches: tuple[int, ...] = BATCHES, **more: Any) -> Record:
    row = OP.implementation("flash-decode")
    assert row is not None
    cases = [
        (AttentionWorkload(batch=batch, seq_k=context, **{**SHAPE, **more}), [row])
        for batch in batches
        for context in CONTEXTS
    ]
    return run_cases(OP, cases, backend, lambda *_: None)


@cache
def fake() -> Record:
    return recorded(FakeBackend())


@cache
def modelled() -> Record:
    return recorded(ModelBackend(load("h200-141gb-sxm"), "no NVIDIA GPU on this machine"), (1, 4, 16))


def slower(run: Run, impl: str, factor: float) -> Run:
    """The run as if another implementation had taken `factor` times as long."""
    assert run.timing is not None
    samples = [seconds * factor for seconds in run.timing.samples_s]
    timing = replace(run.timing, samples_s=samples, median_s=samples[0])
    numbers = {**run.numbers, "time": replace(run.numbers["time"], value=samples[0])}
    return replace(run, impl=impl, timing=timing, numbers=numbers)


@cache
def several() -> Record:
    """A peer that is faster at 64k, slower at 4k and the same between, one run that failed, and a note."""
    factors = {4096: 1.25, 16384: 1.0, 65536: 0.9}
    runs = list(fake().runs)
    runs += [slower(run, "sdpa-cudnn", factors[run.workload.seq_k]) for run in runs]
    runs[8] = replace(
        runs[8], status="out-of-memory", reason="17.2 GB were not free", numbers={}, timing=None
    )
    runs[4] = replace(runs[4], notes=("the clock fell",))
    runs[5] = replace(runs[5], clock_reasons=("power cap",))
    return replace(fake(), runs=tuple(runs))


def impossible() -> Record:
    """The fake run at batch 4 and 16k in a twentieth of its time."""
    runs = list(fake().runs)
    runs[1] = slower(runs[1], "flash-decode", 0.05)
    return replace(fake(), runs=tuple(runs))


def report(*records: Record) -> Report:
    return Report(parts=tuple(Titled(name=f"record {at}", study=study(r)) for at, r in enumerate(records)))


def maps(subject: Record) -> tuple[DecodeMap, ...]:
    return decode_maps(study(subject))


def text(subject: Record, width: int = 80) -> str:
    """What a terminal shows, without styles and the spaces at line ends."""
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(render(study(subject), width))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def golden(name: str, found: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def rows(found: str, start: str) -> list[list[str]]:
    """The words of the lines of the table below the title that starts so."""
    return [line.split() for line in found.split(f"\n{start}")[1].split("\n\n")[0].splitlines()[1:]]


# The terminal


@pytest.mark.parametrize("name", ["fake", "modelled", "several"])
def test_whole_output(name: str) -> None:
    found = text({"fake": fake, "modelled": modelled, "several": several}[name]())
    assert max(map(len, found.splitlines())) <= 80
    assert "…" not in found
    golden(f"decode-map-{name}.txt", found)


def test_numbers_by_hand() -> None:
    """Batch 64 at 4k: 1,073,741,824 B of K and V, with Q and O 1,074,790,400 B, in 1.25 times their time.

    So 80 % of 4.8 TB/s less a thousandth for Q and O; 64 tokens in 279.9 us, and in 223.9 us at best.
    """
    found = text(fake())
    read = rows(found, "K and V read")
    assert read[0] == ["batch", "N_k", "4k", "N_k", "16k", "N_k", "64k"]
    assert read[3][:4] == ["64", "3.84", "TB/s", "80%"]
    assert rows(found, "Tokens/s")[3][:6] == ["64", "229", "k", "of", "286", "k"]
    assert rows(found, "Bound")[3] == ["64", *["DRAM", "80%"] * 3]


def test_a_modelled_record_shows_the_least_time() -> None:
    """Batch 1 at 4k: 16.8 MB in the 5 us of two launches are 3.36 TB/s, and 200 k tokens/s."""
    found = text(modelled())
    assert rows(found, "K and V read")[1][:4] == ["1", "3.36", "TB/s", "70%*"]
    assert rows(found, "Tokens/s  at most")[1][:3] == ["1", "200", "k*"]
    assert rows(found, "Bound")[1] == ["1", "overhead", "DRAM", "DRAM"]
    assert "* modelled, not measured: of the least time" in found


def test_a_record_of_maps_alone_has_no_report_of_each_workload() -> None:
    for subject in (fake(), modelled(), several()):
        found = text(subject)
        for absent in ("Roofline  ", "Ceilings", "Where the time went", "Run conditions", "\nat "):
            assert absent not in found
        assert "--html and --csv have the rest of each run" in found
        assert len(found.splitlines()) < 45


def test_what_a_map_does_not_hold_keeps_its_report() -> None:
    row = OP.implementation("flash")
    assert row is not None
    w = AttentionWorkload(seq_q=4096, seq_k=4096)
    other = run_cases(OP, [(w, [row])], FakeBackend(), lambda *_: None)
    found = text(replace(fake(), runs=(*fake().runs, *other.runs)))
    assert found.index("Decode map  flash-decode") < found.index("Roofline  FLOP/s over FLOP/byte")
    assert "batch 1, 16 heads, N 4k, d 64, bf16, full mask, forward" in found
    assert found.count("Roofline  ") == 1
    assert text(other) == text(replace(other, runs=other.runs))
    assert "Decode map" not in text(other)


def test_runs_say_what_is_to_be_known_of_them() -> None:
    found = " ".join(text(several()).split())
    assert "flash-decode at batch 64, N_k 64k: out-of-memory: 17.2 GB were not free" in found
    assert "flash-decode at batch 16, N_k 16k: the clock fell" in found
    assert "flash-decode at batch 16, N_k 64k: clock limited by power cap" in found
    assert re.search(r"IO check: \d+ hold", found)


def test_an_invalid_time_is_no_number() -> None:
    """Batch 4 at 16k at 16 times the bandwidth."""
    found = text(impossible())
    for title in ("K and V read", "Tokens/s", "Bound"):
        assert rows(found, title)[1].count("INVALID") == 1
    assert "flash-decode at batch 4, N_k 16k: INVALID: 16.00x above the DRAM roof" in found


def test_others_stand_beside_the_first_shipped_one() -> None:
    found = text(several())
    words = " ".join(found.split())
    beside = rows(found, "Beside flash-decode")
    # 80 % of the bandwidth and a factor of 1.25 more time, the same time, a factor of 0.9 of it
    assert beside[3] == ["64", "64%", "0.80x", "80%", "~1.00x", "89%"]  # the first has no time at 64k
    assert beside[1][:3] == ["sdpa-cudnn", "4", "64%"]
    assert "fastest of 8 cells: flash-decode in 3, sdpa-cudnn in 2; flash-decode and sdpa-cudnn" in words
    assert found.count("Tokens/s  ") == 1


def test_contexts_without_room_stand_in_a_table_below() -> None:
    found = text(fake(), 45)
    assert max(map(len, found.splitlines())) <= 45
    read = rows(found, "Tokens/s")
    heads = [row for row in read if row[0] == "batch"]
    assert [row[1:] for row in heads] == [["N_k", "4k", "N_k", "16k"], ["N_k", "64k"]]


def test_families_stand_apart() -> None:
    other = recorded(FakeBackend(), head_dim=64)
    found = text(replace(fake(), runs=(*fake().runs, *other.runs)))
    assert found.count("Decode map  flash-decode") == 2
    assert "N_q 1, 32 heads over 8 K/V heads, d 128, " in found
    assert "N_q 1, 32 heads over 8 K/V heads, d 64, " in found


# Words


@pytest.mark.parametrize(
    ("share", "said"), [(None, ""), (0.764, "76%"), (0.0951, "9.5%"), (0.0995, "10%"), (1.2, "120%")]
)
def test_shares(share: float | None, said: str) -> None:
    assert share_text(share) == said


@pytest.mark.parametrize(("value", "said"), [(None, "-"), (512.3, "512"), (107374, "107 k"), (2e6, "2.00 M")])
def test_rates_of_tokens(value: float | None, said: str) -> None:
    assert count_text(value) == said


def test_holes_in_words() -> None:
    (one,) = maps(replace(fake(), runs=fake().runs[:7]))
    assert [rate_text(cell) for cell in one.cells[7:]] == ["-", "-"]
    assert list(missing_words(one)) == ["flash-decode at batch 64, N_k 16k and 64k: not run"]
    assert place_text(one.cells[2:5]) == "batch 4, N_k 64k; batch 16, N_k 4k and 16k"


def test_nobody_wins_alone() -> None:
    assert list(winner_words(maps(fake()))) == []


def test_a_bound_that_is_not_known_is_not_said() -> None:
    """Without FLOPs there is no floor, and a time is still a time."""
    runs = [
        replace(run, numbers={tag: n for tag, n in run.numbers.items() if tag != "flops_convention"})
        for run in fake().runs
    ]
    (one,) = maps(replace(fake(), runs=tuple(runs)))
    assert tokens_text(one.cells[6]) == "229 k"
    assert one.cells[6].bound is None


# Markdown


def test_markdown_has_a_table_for_each_kind_of_number() -> None:
    found = decode_text(maps(several()), "fake")
    tables = [block.splitlines() for block in found.split("\n\n") if block.startswith("|")]
    assert [len(lines) - 2 for lines in tables] == [3, 3, 3, 3]
    assert tables[0][4].startswith("| 64 | 3.84 TB/s 80% |")
    assert tables[1][4].startswith("| 64 | 229 k of 286 k |")
    assert tables[2][4].startswith("| 64 | DRAM 80% |")
    assert tables[3][4].startswith("| sdpa-cudnn | 64 | 64% 0.80x |")
    assert "out-of-memory: 17.2 GB were not free" in found
    assert "at most 1/L of it, without its matrices" in found
    assert found in as_markdown(report(several())).decode()


def test_markdown_without_a_map_says_nothing() -> None:
    assert decode_text((), "fake") == ""
    assert "Decode map" not in as_markdown(report(replace(fake(), runs=fake().runs[:3]))).decode()


# The HTML report


def table(subject: Record) -> Table:
    return decode_table(maps(subject), looks(report(subject)))


def test_a_field_of_shares_for_each_map() -> None:
    found = decode_chart(maps(several()), "r")
    assert [one.id for one in found.figures] == ["r-0", "r-1"]
    for one, drawn in zip(maps(several()), found.figures, strict=True):
        (field,) = drawn.data
        assert (field["x"], field["y"]) == (["4k", "16k", "64k"], ["4", "16", "64"])
        assert field["z"] == [[cell.share for cell in one.row(batch)] for batch in BATCHES]
        assert (field["zmin"], field["zmax"]) == (0, 1)
        assert drawn.layout["yaxis"]["autorange"] == "reversed"
        go.Figure(data=drawn.data, layout=drawn.layout)  # refuses what plotly does not know
    field = found.figures[0].data[0]
    assert field["text"][2] == ["3.84 TB/s<br>80%", "3.84 TB/s<br>80%", "-"]
    assert field["z"][2][2] is None
    assert field["hovertext"][2][2].endswith("out-of-memory: 17.2 GB were not free")


def test_hover_has_all_numbers_of_a_cell() -> None:
    said = decode_chart(maps(fake()), "r").figures[0].data[0]["hovertext"][2][0].split("<br>")
    assert said == [
        "<b>flash-decode</b>, batch 64, N_k 4k", "3.84 TB/s 80%", "tokens/s of one layer: 229 k of 286 k",
        "bound: DRAM 80%",
    ]  # fmt: skip


def test_the_table_has_a_row_for_each_cell() -> None:
    found = table(several())
    assert {len(row.cells) for row in found.rows} == {len(found.columns)}
    assert len(found.rows) == 18
    cells = [cell.text for cell in found.rows[6].cells]
    assert cells == [
        "", "64", "4k", "280 us", "3.84 TB/s", "79.9 %", "229 k", "286 k*", "DRAM", "80.0 %", ""
    ]  # fmt: skip
    rival = [cell.text for cell in found.rows[9].cells]
    assert (rival[0], rival[1], rival[-1]) == ("sdpa-cudnn", "4", "0.80x")
    assert found.rows[10].cells[-1].note == "the samples do not tell them apart"


def test_what_is_absent_says_why() -> None:
    missing = [cell for cell in table(several()).rows[8].cells if cell.text == "-"]
    assert len(missing) == 7
    assert {cell.note for cell in missing} == {"out-of-memory: 17.2 GB were not free"}
    bad = table(impossible()).rows[1].cells[3]
    assert (bad.text, bad.kind) == ("INVALID", "bad")
    assert bad.note is not None
    assert "above the DRAM roof" in bad.note


def test_modelled_numbers_are_marked() -> None:
    row = table(modelled()).rows[0].cells
    assert [cell.text for cell in row[3:9]] == [
        "5.00 us*",
        "3.36 TB/s*",
        "69.9 %*",
        "200 k*",
        "200 k*",
        "overhead",
    ]
    assert {cell.kind for cell in row[3:8]} == {"modelled"}
    assert decode_chart(maps(modelled()), "r").figures[0].data[0]["text"][0][0] == "3.36 TB/s<br>70%*"


def test_the_page_has_the_section() -> None:
    page = as_html(report(several())).decode()
    section = page.split('<section id="record-1-decode">')[1].split("</section>")[0]
    assert "<h2>Decode map</h2>" in section
    assert re.findall(r'<div class="area" id="([^"]+)"', section) == [
        "record-1-decode-0",
        "record-1-decode-1",
    ]
    assert "a model with L layers decodes at most 1/L of it, without its matrices." in section
    assert "Fastest of 8 cells: flash-decode in 3, sdpa-cudnn in 2;" in section
    assert 'class="keys' not in section  # colours are shares there, and no implementation's
    assert page.count("record-1-decode-1") == 2  # its place, and its data


def test_families_have_headings_and_titles() -> None:
    other = recorded(FakeBackend(), head_dim=64)
    both = replace(fake(), runs=(*fake().runs, *other.runs))
    headings = [row.heading for row in table(both).rows if row.heading]
    assert headings == [
        f"N_q 1, 32 heads over 8 K/V heads, d {d}, bf16, full mask, forward" for d in (128, 64)
    ]
    titles = [one.title for one in decode_chart(maps(both), "r").figures]
    assert titles == [f"flash-decode: K and V read, share of DRAM's bandwidth, {said}" for said in headings]


def test_other_records_have_no_such_section() -> None:
    page = as_html(report(replace(fake(), runs=fake().runs[:3]))).decode()
    assert "Decode map" not in page
    assert 'id="record-1-decode' not in page
