"""The Markdown report: whole outputs, what is in it, escaping, and its length."""

import os
import re
from pathlib import Path

import msgspec
import pytest

from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load as profile
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import load
from perfkit.reports import files
from perfkit.reports.markdown import page
from perfkit.reports.markdown.page import LIMIT, as_markdown
from perfkit.reports.markdown.text import LONGEST, MOST_ITEMS, MOST_ROWS, bullets, escape, folded, table

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
H200 = ROOT / "docs" / "examples" / "h200"
OP = find_op("attention")
replace = msgspec.structs.replace


def session(lengths, backend=None, baseline="standard"):
    workloads = [AttentionWorkload(seq_q=n, seq_k=n) for n in lengths]
    rows = [OP.implementation(name) for name in ("standard", "flash")]
    return study(run_session(OP, workloads, rows, backend or FakeBackend(), lambda *_: None, baseline))


def saved(name):
    return Titled(name=name, study=study(load(H200 / f"{name}.json")))


def alone(subject, name="run"):
    return Report(parts=(Titled(name=name, study=subject),))


def changed(subject, impl, **change):
    """The study with the first run of `impl` changed."""
    runs = list(subject.record.runs)
    index = next(i for i, run in enumerate(runs) if run.impl == impl)
    runs[index] = replace(runs[index], **change)
    return study(replace(subject.record, runs=tuple(runs)))


def text(report):
    return as_markdown(report).decode()


REPORTS = {
    "markdown-fake": lambda: alone(session([4096, 16384])),
    "markdown-h200": lambda: Report(parts=(saved("bwd-d64-64k"),)),
    "markdown-changes": lambda: Report(parts=(saved("fwd-d64-16k"),), baseline=saved("all-d64-16k")),
    "markdown-several": lambda: Report(
        parts=tuple(saved(f"fwd-d64-{n}") for n in ("4k", "8k", "32k", "64k"))
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_whole_output(name):
    found = text(REPORTS[name]())
    path = GOLDEN / f"{name}.md"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def cells(line):
    """The cells of a row of a table: what stands between bars that are not escaped."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("name", REPORTS)
def test_tables_and_folds_are_whole(name):
    found = text(REPORTS[name]())
    for block in found.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(cells(line)) for line in lines}) <= 1, block
        if lines:
            assert set(lines[1]) == set("|-:") or set(lines[1]) == set("|-")
    assert found.count("<details>") == found.count("</details>") == found.count("<summary>")
    assert found.endswith("\n")
    assert "\n\n\n\n" not in found


def test_the_verdict_is_above_the_numbers():
    found = text(alone(session([16384])))
    assert found.startswith("# perfkit: attention on NVIDIA H200 141GB SXM\n")
    assert found.index("- flash is the fastest: 1.70 ms") < found.index("| impl | time |")
    assert (
        "- flash is 5.30x faster than standard (5.30 to 5.30), certain, with 255x fewer DRAM bytes." in found
    )
    # See test_words for these numbers.
    assert "| flash | 1.70 ms ±1.0% | 649 TFLOP/s | 80.0 % | 135 MB | 5.84 GB | 8128 | compute |" in found
    assert "Environment: NVIDIA H200 141GB SXM, profile h200-141gb-sxm, backend fake, driver 0" in found


def test_a_record_of_one_roofline_has_no_comparison():
    found = text(alone(session([16384], baseline=None)))
    assert "Compared with" not in found
    assert "speed-up" not in found


def test_modelled_reports_say_so_and_mark_every_number():
    backend = ModelBackend(profile("a100-80gb-sxm"), "no GPU")
    found = text(alone(session([16384], backend)))
    assert "- MODELLED: nothing was measured" in found
    # 3.52 ms: 1.0995 TFLOP / 312 TFLOP/s; marks are escaped, or they would set words in italics
    assert r"| flash | 3.52 ms\* | 312 TFLOP/s\* | - | 135 MB\* | 8.66 GB\* | 8128 | compute |" in found
    assert "| 4.80x\\* | 255x fewer\\* |" in found
    assert "modelled, not measured" in found


def test_violations_are_spelled_out_and_what_holds_is_counted():
    found = text(REPORTS["markdown-h200"]())
    assert "- violated: flash, DRAM read = L2 model: expected 1.36 GB, measured 1.68 GB: " in found
    assert "<summary>IO check: 9 hold</summary>" in found
    held = found.split("<summary>IO check")[1].split("</details>")[0]
    assert len(re.findall(r"^\| (?:flash|sdpa-\w+) \|", held, re.MULTILINE)) == 9


def test_failures_have_their_reason():
    found = text(REPORTS["markdown-h200"]())
    assert "- standard: refused: needs 551 GB, and 150 GB of device memory are free." in found


def test_what_went_wrong_in_any_of_several_records_is_on_top():
    found = text(Report(parts=(saved("fwd-d64-4k"), saved("bwd-d64-64k"))))
    top = found.split("## fwd-d64-4k")[0]
    assert "- 8 runs: 7 measured, 1 refused; 0 INVALID." in top
    assert "- VIOLATED: bwd-d64-64k, flash, DRAM read = L2 model: " in top
    assert "- refused: bwd-d64-64k, standard: needs 551 GB" in top
    assert "IO check: 25 hold, 1 VIOLATED." in top  # 16 and 9


def test_changes_against_a_baseline():
    found = text(REPORTS["markdown-changes"]())
    section = found.split("## Changes against all-d64-16k\n")[1].split("## Results")[0]
    # 12.438 ms before, 12.383 ms now: 0.45 % is within 1 %
    assert "- standard fwd-d64-16k is as fast as standard all-d64-16k within 1 % (1.004 to 1.005)" in section
    assert "- sdpa-math is in all-d64-16k only" in section


def test_many_records_are_folded_with_a_sentence_in_sight():
    found = text(REPORTS["markdown-several"]())
    assert "<summary>fwd-d64-4k: sdpa-cudnn is the fastest: 155 us, " in found
    assert found.count("\n<summary>fwd-d64-") == 4


def test_invalid_runs_are_on_top_and_have_no_rate():
    whole = session([16384])
    numbers = whole.record.runs[1].numbers
    impossible = {tag: replace(numbers[tag], value=1e-6) for tag in ("time", "time_low", "time_high")}
    numbers = {**numbers, **impossible}
    found = text(alone(changed(whole, "flash", numbers=numbers)))
    assert "- INVALID: flash is 1356.33x above the compute roof" in found
    assert "| flash | 1.00 us ±0.0% | INVALID | - |" in found


HOSTILE = "a|b `c` <script>alert(1)</script>\n## head\x1b[31m *x* _y_ [z](http://e.org) @octocat #12 \\ &amp;"


def test_strings_of_records_mean_nothing_to_github():
    whole = changed(session([4096]), "flash", status="failed", reason=HOSTILE, numbers={}, timing=None)
    subject = study(replace(whole.record, notes=(HOSTILE,)))
    found = text(alone(subject, name=HOSTILE))
    assert "<script" not in found
    assert "\n## head" not in found
    assert "\x1b" not in found
    assert "@octocat" not in found
    assert "http://" not in found
    assert r"a\|b \`c\` &lt;script&gt;alert(1)&lt;/script&gt; #<!-- -->#<!-- --> head" in found


def test_hostile_names_stay_in_their_headings_and_summaries():
    parts = tuple(Titled(name=HOSTILE, study=session([4096])) for _ in range(5))
    found = text(Report(parts=parts, baseline=Titled(name=HOSTILE, study=session([4096]))))
    assert "<script" not in found
    assert len(re.findall(r"^<summary>a\|b `c` &lt;script&gt;.*</summary>$", found, re.MULTILINE)) == 10


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        ("a|b", r"a\|b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("one\r\ntwo\tthree", "one two three"),
        ("`x*_[]~{}`\\", r"\`x\*\_\[\]\~\{\}\`\\"),
        ("@me #1", "@<!-- -->me #<!-- -->1"),
        ("https://a www.b", "https:<!-- -->//a www<!-- -->.b"),
        ("±1.0%", "±1.0%"),
    ],
)
def test_escape(raw, safe):
    assert escape(raw) == safe


def test_long_texts_are_cut_with_a_mark():
    assert escape("x" * 10_000) == "x" * (LONGEST + 1) + "..."
    assert len(escape("@" * 10_000)) < LONGEST + 20


def test_cut_tables_and_lists_say_how_much_is_missing():
    shown = table(("impl",), [(str(i),) for i in range(MOST_ROWS + 7)])
    assert shown.count("\n| ") == MOST_ROWS
    assert shown.endswith("\n7 more rows are not shown.\n")
    listed = bullets(str(i) for i in range(MOST_ITEMS + 3))
    assert listed.endswith("- 3 more are not shown.\n")
    assert listed.count("\n") == MOST_ITEMS + 1


def test_a_fold_is_a_block_of_its_own():
    assert folded("a < b", "x\n") == "<details>\n<summary>a &lt; b</summary>\n\nx\n\n</details>\n"


def test_fifty_records_are_shorter_than_a_comment_may_be():
    names = sorted(path.stem for path in H200.glob("*.json"))
    parts = [saved(name) for name in names]
    report = Report(parts=tuple((parts * 2)[:50]))
    found = as_markdown(report)
    assert len(found) < LIMIT
    assert found.count(b"\n<summary>") == 50  # all are there, without their IO checks
    assert found.decode().endswith("comparisons, IO checks and environments are not shown.\n")


def test_what_does_not_fit_is_counted():
    part = saved("all-d64-16k")
    found = text(Report(parts=(part,) * 200, baseline=part))
    assert len(found.encode()) < LIMIT
    shown = found.count("\n<summary>")
    assert 20 < shown < 200
    assert f"\n{200 - shown} of 200 records are not shown: 60,000 bytes hold no more.\n" in found
    assert "1400 same" in found  # 200 records of 7 runs, each beside itself


def test_even_hostile_records_do_not_burst_the_limit(monkeypatch):
    monkeypatch.setattr(page, "MANY", 1)
    bad = changed(session([4096]), "flash", status="failed", reason="@" * 5000, numbers={}, timing=None)
    found = as_markdown(Report(parts=tuple(Titled(name="|" * 5000, study=bad) for _ in range(60))))
    assert len(found) < LIMIT


def test_the_format_is_in_the_table_of_formats():
    assert files.render("md", alone(session([4096]))).startswith(b"# perfkit: attention on ")
