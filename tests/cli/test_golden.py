"""Whole outputs at 80 columns. UPDATE_GOLDEN=1 writes them anew: look at the difference then."""

import os
import re
import sys
from pathlib import Path

import pytest

from perfkit import cli
from perfkit.measure import choose

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
RECORD = ROOT / "docs" / "examples" / "h200" / "all-d64-16k.json"

CASES = {
    "roofline-modelled": ["roofline"],
    "roofline-modelled-bwd": [
        "roofline",
        "--pass",
        "bwd",
        "--causal",
        "--head-dim",
        "128",
        "--device",
        "h100-80gb-sxm",
    ],
    "roofline-fake": ["roofline", "--device", "fake"],
    "roofline-fake-gqa": [
        "roofline",
        "--device",
        "fake",
        "--seq",
        "5000",
        "--kv-heads",
        "4",
        "--pass",
        "fwd-bwd",
    ],
    "roofline-refused": ["roofline", "--device", "t4", "--head-dim", "20", "--dtype", "fp16"],
    "show-h200": ["show", str(RECORD)],
}


def output(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `perfkit ARGUMENTS` prints on a machine without a GPU."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(choose, "gpu_driver_present", lambda: False)
    monkeypatch.setattr(sys, "argv", ["perfkit", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("name", CASES)
def test_whole_output(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = output(CASES[name], monkeypatch, capsys)
    assert max(map(len, found.splitlines())) <= 80
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()


def test_the_guide_shows_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guide's picture is what `show` prints of a record that is in the repository."""
    guide = (ROOT / "docs" / "roofline.md").read_text()
    picture = re.search(r"<!-- picture:begin -->(.*?)<!-- picture:end -->", guide, re.DOTALL)
    assert picture is not None
    shown = output(CASES["show-h200"], monkeypatch, capsys)
    lines = [line.rstrip() for line in picture[1].strip().splitlines() if not line.startswith("```")]
    assert lines == [line.rstrip() for line in shown.splitlines()][: len(lines)]
    assert len(lines) > 30


def test_readme_says_what_the_comparison_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = ROOT / "docs" / "examples" / "h200" / "compare-d64.json"
    words = re.search(r"```text\n(- flash.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert words is not None
    assert words[1] in output(["show", str(record)], monkeypatch, capsys)


def test_json_to_standard_output_is_nothing_but_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from perfkit.record import load

    text = output(["roofline", "--device", "fake", "--json", "-"], monkeypatch, capsys)
    path = tmp_path / "record.json"
    path.write_text(text)
    assert [run.impl for run in load(path).runs] == ["standard", "flash"]


def test_showing_a_saved_record_is_what_the_run_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "record.json")
    ran = output(["roofline", "--device", "fake", "--json", path], monkeypatch, capsys)
    assert output(["show", path], monkeypatch, capsys) == ran


def test_csv_has_a_row_for_every_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import csv
    import io

    text = output(["roofline", "--device", "fake", "--csv", "-"], monkeypatch, capsys)
    table = list(csv.DictReader(io.StringIO(text)))
    flash = {row["tag"]: row for row in table if row["impl"] == "flash"}
    # 16 heads: 256 warpgroups of 64 rows with 128 blocks of 128 keys, 2 beyond N with 1; 2 products.
    assert flash["flops_tensor"]["value"] == str((16 * 2 * (256 * 128 + 2) + 132 * 3) * 2 * 64 * 128 * 64)
    assert flash["l2_read_modelled"]["provenance"] == "modelled"
    assert {"intensity_dram", "efficiency_clock", "tile_height"} <= flash.keys()


def test_a_note_on_two_runs_stands_at_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words may be true of several implementations: none of them may lose its note."""
    arguments = ["roofline", "--device", "fake", "--impl", "flash,standard", "--seq", "16"]
    shown = output(arguments, monkeypatch, capsys)
    note = "DRAM read >= compulsory: undecided: too little traffic"
    assert all(f"  {impl}: {note}" in shown for impl in ("flash", "standard"))
