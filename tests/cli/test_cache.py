"""`perfkit cache`: whole outputs at 80 columns, files, and what is refused. UPDATE_GOLDEN=1 writes anew."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
TRACE = """arrival,prompt,generated,prefix,prefix_tokens
0,40,20,chat,32
0.05,50,8,chat,32
0.05,90,30,,
0.3,33,64,chat,32
9,10,1,,
"""
CASES = {
    "cache": [],
    "cache-prefix": ["--requests", "200", "--prefix-tokens", "500", "--page", "256,32", "--dtype", "fp8"],
    "cache-trace": [
        "--trace", "trace.csv", "--step-time", "0.025", "--max-len", "128", "--memory", "33m",
        "--page", "16",
    ],
}  # fmt: skip
SMALL = ["--requests", "20", "--page", "16"]

Perfkit = Callable[..., Any]


@pytest.mark.parametrize("name", CASES)
def test_whole_output(perfkit: Perfkit, tmp_path: Path, name: str) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    found = perfkit("cache", *CASES[name])
    assert (found.code, found.err) == (0, "")
    assert max(map(len, found.out.splitlines())) <= 80
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found.out)
    assert found.out == golden.read_text()


def test_the_guide_shows_what_is_printed(perfkit: Perfkit) -> None:
    guide = (ROOT / "docs" / "cache.md").read_text()
    shown = re.search(r"    perfkit (cache .*)\n\n```text\n(.*?)```", guide, re.DOTALL)
    assert shown is not None
    printed = perfkit(*shown[1].split()).out
    assert shown[2].rstrip() in printed
    assert len(shown[2].splitlines()) > 10


def test_one_token_in_one_slot_is_no_trouble(perfkit: Perfkit, tmp_path: Path) -> None:
    """The smallest trace there is: a timeline of one step."""
    (tmp_path / "trace.csv").write_text("arrival,prompt,generated\n0,1,1\n")
    found = perfkit("cache", "--trace", "trace.csv", "--max-len", "2", "--memory", "1m", "--page", "1")
    assert found.code == 0
    assert "All requests are done after 1 step with both." in found.out
    assert perfkit("cache", "--trace", "trace.csv", "--html", "c.html").code == 0


def test_json_has_everything_in_slots(perfkit: Perfkit) -> None:
    found = json.loads(perfkit("cache", *SMALL, "--json", "-").out)
    assert (found["schema"], found["requests"], found["max_len"]) == ("perfkit.cache/1", 20, 4096)
    assert found["shape"]["token_bytes"] == 2 * 32 * 8 * 128 * 2
    first, *_, last = found["outcomes"]
    assert (first["policy"], last["policy"]) == (
        {"kind": "contiguous", "page": None},
        {"kind": "paged", "page": 16},
    )
    for one in found["outcomes"]:
        parts = ("used", "reserved", "unused", "external", "free")
        assert sum(one[name] for name in parts) == pytest.approx(one["capacity"])
        assert one["capacity"] == (8 << 30) // (128 << 10)
        assert one["timeline"][0]["at"] == found["outcomes"][0]["timeline"][0]["at"]


def test_csv_has_a_row_for_every_number_in_bytes(perfkit: Perfkit) -> None:
    table = list(csv.DictReader(io.StringIO(perfkit("cache", *SMALL, "--csv", "-").out)))
    of = {(row["policy"], row["page"], row["number"]): (row["value"], row["unit"]) for row in table}
    assert len(of) == len(table) == 4 * 22
    assert of["paged", "16", "capacity"] == (str(8 << 30), "B")
    assert of["contiguous", "", "peak_batch"][1] == "requests"


def test_files_and_the_report(perfkit: Perfkit, tmp_path: Path) -> None:
    found = perfkit("cache", *SMALL, "--json", "c.json", "--csv", "c.csv", "--html", "c.html")
    assert (found.code, found.err) == (0, "wrote c.json\nwrote c.csv\nwrote c.html\n")
    assert found.out.startswith("K/V cache, contiguous and paged\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.csv", "c.html", "c.json"]
    assert perfkit("cache", *SMALL, "--csv", "c.csv").code == 2
    assert perfkit("cache", *SMALL, "--csv", "c.csv", "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--page", "0"], "--page must be a positive count such as 4096, 16k or 1m, not '0'"),
        (["--page", "16,"], "--page must be a positive count such as 4096, 16k or 1m, not ''"),
        (["--page", "257"], "--page must be from 1 to 256 tokens, not 257"),
        (["--max-len", "1.5k"], "--max-len must be a positive count such as 4096, 16k or 1m, not '1.5k'"),
        (["--memory", "40GB"], "--memory must be a positive count such as 4096, 16k or 1m, not '40GB'"),
        (["--memory", "1m"], "--memory holds 8 tokens, too few for one request of --max-len 4096"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--rate", "2"], "--rate must be from 0.001 to 1 request a step, not 2"),
        (["--requests", "1m"], "--requests must be at most 100,000, not 1,048,576"),
        (["--requests", "90k"], "the requests generate more than 20,000,000 tokens"),
        (["--prefix-tokens", "4095"], "a prefix of 4095 tokens leaves no room in 4096"),
        (["--step-time", "2"], "--step-time without --trace: a synthetic trace counts in steps"),
        (["--trace", "t.csv", "--seed", "0"], "--seed with --trace: a file says that itself"),
        (["--trace", "t.csv", "--step-time", "0"], "--step-time must be a time above 0, not 0"),
        (["--trace", "t.csv", "--step-time", "nan"], "--step-time must be a time above 0, not nan"),
        (["--trace", "nope.csv"], "cannot read the trace nope.csv: No such file or directory"),
        (
            ["--trace", "t.csv", "--max-len", "10"],
            "a request of 9 + 2 tokens is longer than --max-len 10",
        ),
        (["--trace", "bad.csv"], "bad.csv, line 3: prompt must be a whole number of tokens, not '-9'"),
        (["--json", "-", "--csv", "-"], "only one output can go to standard output"),
        (["--json", "t.csv"], "t.csv exists"),
    ],
)
def test_nonsense(perfkit: Perfkit, tmp_path: Path, arguments: list[str], error: str) -> None:
    (tmp_path / "t.csv").write_text("arrival,prompt,generated\n0,9,2\n")
    (tmp_path / "bad.csv").write_text("arrival,prompt,generated\n0,9,2\n0,-9,2\n")
    found = perfkit("cache", *arguments)
    assert (found.code, found.out) == (2, "")
    assert found.err.splitlines()[0] == f"error: {error}"


def test_nothing_heavy_is_loaded_without_html(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom perfkit.cli import main\n"
        "sys.argv = ['perfkit', 'cache', '--requests', '5', '--json', 'c.json']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([n for n in ('torch', 'triton', 'plotly', 'pandas', 'numpy', 'jinja2') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
