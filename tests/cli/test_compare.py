"""`perfkit compare` and `perfkit report` from the command line, without a GPU."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit.record import load

H200 = Path(__file__).parents[2] / "docs" / "examples" / "h200"
FAKE = ["compare", "standard", "flash", "--device", "fake"]


Perfkit = Callable[..., Any]


def test_every_length_is_compared_and_saved(perfkit: Perfkit) -> None:
    found = perfkit(*FAKE, "--seq", "1k,4k,1k", "--json", "c.json", "--md", "c.md", "--html", "c.html")
    assert found.code == 0
    assert max(map(len, found.out.splitlines())) <= 80
    record = load("c.json")
    assert record.baseline == "standard"
    assert [(run.impl, run.workload.seq_q) for run in record.runs] == [
        ("standard", 1024), ("flash", 1024), ("standard", 4096), ("flash", 4096),
    ]  # fmt: skip
    assert perfkit("show", "c.json").out == found.out
    assert "flash is faster than standard" in Path("c.md").read_text()
    assert Path("c.html").read_bytes().startswith(b"<!doctype html>")


def test_the_baseline_may_be_any_of_them(perfkit: Perfkit) -> None:
    # 1.25 floors each: 34.5 GB at 4.8 TB/s against 1.10 TFLOP at 811 TFLOP/s, 5.30 times.
    out = perfkit(*FAKE, "--baseline", "flash").out
    assert "standard is 5.30x slower than flash" in out


def test_an_implementation_beside_itself_is_the_same(perfkit: Perfkit) -> None:
    assert (
        "flash is as fast as flash within 1 %" in perfkit("compare", "flash", "flash", "--device", "fake").out
    )


def test_without_a_gpu_it_is_modelled_and_says_so(perfkit: Perfkit) -> None:
    found = perfkit("compare", "standard", "flash", "--seq", "1k,16k")
    assert found.code == 0
    assert "MODELLED: no number here was measured" in found.out


def test_two_records_are_compared_as_they_are(perfkit: Perfkit) -> None:
    old, new = str(H200 / "all-d64-16k.json"), str(H200 / "fwd-d64-16k.json")
    found = perfkit("compare", old, new, "--csv", "numbers.csv")
    assert found.code == 0
    assert "flash all-d64-16k" in found.out
    assert {row["source"] for row in csv.DictReader(io.StringIO(Path("numbers.csv").read_text()))} == {
        "fwd-d64-16k"
    }


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["compare", "flash"], "there is nothing to compare with", "name two or more of: standard, flash"),
        (
            [*FAKE, "--baseline", "sdpa"],
            "the baseline 'sdpa' is not compared",
            "choose one of: standard, flash",
        ),
        (
            ["compare", "flash", "nope"],
            "unknown implementation 'nope' of attention",
            "allowed: all, standard",
        ),
        (
            [*FAKE, "--threshold", "lots"],
            "--threshold must be a share such as 5% or 0.05, not 'lots'",
            "from 0% to below 100%",
        ),
        ([*FAKE, "--threshold", "-1%"], "--threshold must be a share", "from 0%"),
        ([*FAKE, "--seq", "1k,,4k"], "--seq must be a positive count such as 4096", "k is 1024"),
        (["compare", "a.json"], "two records are compared", "perfkit compare old.json new.json"),
        (["compare", "a.json", "b.json", "--baseline", "a"], "two records are compared", "perfkit compare"),
        (
            ["compare", "a.json", "b.json", "--json", "c.json"],
            "--json writes a record, and comparing records makes none",
            "use",
        ),
        (["compare", "a.json", "b.json"], "cannot read record a.json", ""),
        (
            ["compare", str(H200 / "fwd-d64-2k.json"), str(H200 / "fwd-d64-4k.json")],
            "fwd-d64-2k and fwd-d64-4k have no implementation and workload in common",
            "compare records of the same workload",
        ),
        (["report", str(H200 / "fwd-d64-2k.json")], "nowhere to write to", "name a file: -o report.html"),
        (["report", "a.json", "-o", "r.html"], "cannot read record a.json", ""),
        (
            [
                "report",
                str(H200 / "fwd-d64-2k.json"),
                "-o",
                "r.html",
                "--baseline",
                str(H200 / "fwd-d64-4k.json"),
            ],
            "fwd-d64-4k and fwd-d64-2k have no implementation and workload in common",
            "compare records",
        ),
    ],
)
def test_nonsense(perfkit: Perfkit, tmp_path: Path, arguments: list[str], error: str, hint: str) -> None:
    found = perfkit(*arguments)
    assert (found.code, found.out) == (2, "")
    lines = found.err.splitlines()
    assert lines[0].startswith(f"error: {error}")
    assert len(lines) == (2 if hint else 1)
    if hint:
        assert lines[1].startswith(f"hint:  {hint}")
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_several_records_in_every_format(perfkit: Perfkit) -> None:
    records = [str(H200 / name) for name in ("fwd-d64-2k.json", "fwd-d64-16k.json")]
    base = str(H200 / "all-d64-16k.json")
    found = perfkit("report", *records, "-o", "r.html", "--md", "r.md", "--csv", "r.csv", "--baseline", base)
    assert (found.code, found.out) == (0, "")
    assert found.err.splitlines() == ["wrote r.html", "wrote r.md", "wrote r.csv"]
    sources = {row["source"] for row in csv.DictReader(io.StringIO(Path("r.csv").read_text()))}
    assert sources == {"fwd-d64-2k", "fwd-d64-16k"}
    again = perfkit("report", *records, "-o", "r.html")
    assert (again.code, again.err.splitlines()[0]) == (2, "error: r.html exists")
