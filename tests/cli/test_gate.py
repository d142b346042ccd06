"""`perfkit gate` from the command line: whole outputs, exit codes, files, refusals, the example for CI."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
H200 = ROOT / "docs" / "examples" / "h200" / "all-d64-16k.json"
CI = ROOT / "docs" / "examples" / "ci"
Json = dict[str, Any]


Perfkit = Callable[..., Any]


def read(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def save(record: Json, name: str) -> str:
    """Write a record into the current folder; its name."""
    Path(name).write_text(json.dumps(record))
    return name


def scale(run: Json, tag: str, factor: float) -> None:
    run["numbers"][tag]["value"] *= factor


def lose(run: Json, tag: str, reason: str) -> None:
    run["numbers"][tag] |= {"value": None, "provenance": "unavailable", "reason": reason}


def slow(run: Json, factor: float) -> None:
    timing = run["timing"]
    timing["samples_s"] = [factor * sample for sample in timing["samples_s"]]
    timing["median_s"] *= factor


def planted() -> Json:
    """The H200's record with one change of every kind: what fails, what warns, what is better."""
    record = read(H200)
    runs = {run["impl"]: run for run in record["runs"]}
    scale(runs["standard"], "peak_memory", 1.02)
    scale(runs["flash"], "l2_read", 1.008)
    slow(runs["sdpa-flash"], 1.2)
    for tag in ("l2_read", "l2_write"):
        lose(runs["sdpa-cudnn"], tag, "counters are not permitted for this user")
    slow(runs["sdpa-efficient"], 0.8)
    scale(runs["sdpa-math"], "flops_exact", 0.5)
    runs["flex"] |= {"status": "failed", "reason": "RuntimeError: Triton said | <no>"}
    record["environment"]["driver"] = "590.10"
    return record


def golden(name: str, found: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_a_failure_in_whole(perfkit: Perfkit) -> None:
    ended = perfkit("gate", str(H200), save(planted(), "now.json"))
    assert max(map(len, ended.out.splitlines())) <= 80
    # flash's bytes, standard's memory, sdpa-flash's time, sdpa-math's work, flex.
    assert ended.out.startswith("FAIL: 5 of 133 checks, 2 warnings, 1 improved\n")
    assert (ended.code, ended.err) == (1, "")
    golden("gate-fail", ended.out)


def test_strict_with_ignored_checks_in_whole(perfkit: Perfkit) -> None:
    Path("gate.toml").write_text('strict = true\nignore = ["impl:flex", "flops_exact", "impl:fleks"]\n')
    ended = perfkit("gate", str(H200), save(planted(), "now.json"), "--config", "gate.toml")
    # Without sdpa-math and flex, but with the two warnings of sdpa-cudnn: 5 - 2 + 2.
    assert ended.out.startswith("FAIL: 5 of ")
    golden("gate-strict", ended.out)


def test_a_modelled_pass_in_whole(perfkit: Perfkit) -> None:
    ended = perfkit("gate", str(CI / "baseline.json"), str(CI / "baseline.json"))
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ended.code == 0
    # When the baseline was made says nothing.
    golden("gate-modelled", re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "TIME", ended.out))


def test_several_lengths_and_equal_runs_in_whole(perfkit: Perfkit) -> None:
    perfkit("compare", "flash", "flash", "--device", "fake", "--seq", "4k,8k", "--json", "lengths.json")
    record = read(Path("lengths.json"))
    assert [run["workload"]["seq_q"] for run in record["runs"]] == [4096, 4096, 8192, 8192]
    scale(record["runs"][1], "l2_write", 1.02)
    scale(record["runs"][2], "peak_memory", 0.5)
    scale(record["runs"][3], "l2_write", 0.98)
    ended = perfkit("gate", "lengths.json", save(record, "now.json"))
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ended.code == 1
    golden("gate-lengths", ended.out)


def test_an_invalid_measurement_in_whole(perfkit: Perfkit) -> None:
    perfkit("roofline", "--device", "fake", "--impl", "flash", "--seq", "4k", "--json", "base.json")
    record = read(Path("base.json"))
    scale(record["runs"][0], "time", 0.1)
    ended = perfkit("gate", "base.json", save(record, "now.json"))
    assert ended.code == 4
    assert ended.out.startswith("INVALID: 1 of ")
    golden("gate-invalid", ended.out)


def test_warnings_alone_exit_with_0_and_with_strict_1(perfkit: Perfkit) -> None:
    record = read(H200)
    lose(record["runs"][1], "l2_read", "no counters")
    name = save(record, "now.json")
    assert perfkit("gate", str(H200), name).code == 0
    assert perfkit("gate", str(H200), name, "--strict").code == 1
    Path("gate.toml").write_text("strict = true\n")
    assert perfkit("gate", str(H200), name, "--config", "gate.toml").code == 1
    assert perfkit("gate", str(H200), name, "--config", "gate.toml", "--no-strict").code == 0


def test_options_go_before_the_file(perfkit: Perfkit) -> None:
    record = read(H200)
    slow(record["runs"][0], 1.08)
    name = save(record, "now.json")
    Path("gate.toml").write_text('time = "10%"\n')
    assert perfkit("gate", str(H200), name).code == 1
    assert perfkit("gate", str(H200), name, "--config", "gate.toml").code == 0
    assert perfkit("gate", str(H200), name, "--config", "gate.toml", "--time", "7%").code == 1
    shown = perfkit("gate", str(H200), name, "--time", "0.1", "--traffic", "1 %", "--memory", "2%").out
    assert "allowed: time 10%, traffic and FLOPs 1%, DRAM re-reads 5%, peak memory 2%" in shown


def test_files_are_written_and_not_over_others(perfkit: Perfkit) -> None:
    arguments = ("gate", str(H200), str(H200), "--md", "gate.md", "--junit", "gate.xml")
    ended = perfkit(*arguments)
    assert (ended.code, ended.err) == (0, "wrote gate.md\nwrote gate.xml\n")
    assert ended.out.startswith("PASS: 153 checks\n")
    assert Path("gate.md").read_text().startswith("### perfkit gate: PASS: 153 checks\n")
    assert ET.parse("gate.xml").getroot().get("tests") == "153"
    again = perfkit(*arguments)
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith("error: gate.md exists\n")
    assert perfkit(*arguments, "--force").code == 0


def test_standard_output_holds_nothing_but_the_file(perfkit: Perfkit) -> None:
    name = save(planted(), "now.json")
    xml = perfkit("gate", str(H200), name, "--junit", "-")
    assert (xml.code, xml.err) == (1, "")
    assert ET.fromstring(xml.out).get("failures") == "5"
    text = perfkit("gate", str(H200), name, "--md", "-", "--junit", "gate.xml")
    assert text.out.startswith("### perfkit gate: FAIL: 5 of 133 checks")
    assert text.out.endswith("</details>\n")
    both = perfkit("gate", str(H200), name, "--md", "-", "--junit", "-")
    assert (both.code, both.out) == (2, "")
    assert both.err.startswith("error: only one output can go to standard output\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--time", "fast"], "--time must be a share such as 5% or 0.05, not 'fast'"),
        (["--traffic=-1%"], "--traffic must be a share such as 5% or 0.05, not '-1%'"),
        (["--memory", "2"], "--memory must be a share such as 5% or 0.05, not '2'"),
        (["--config", "none.toml"], "cannot read none.toml: No such file or directory"),
        (["--junit", "none/gate.xml"], "none is not a folder"),
    ],
)
def test_nonsense_is_refused(perfkit: Perfkit, arguments: list[str], error: str) -> None:
    ended = perfkit("gate", str(H200), str(H200), *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[0] == f"error: {error}"


def test_records_that_cannot_be_compared_are_refused(perfkit: Perfkit) -> None:
    ended = perfkit("gate", str(CI / "baseline.json"), str(H200))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: the device profiles differ: a100-80gb-sxm in the baseline, h200-141gb-sxm in the "
        "current record\n"
        "hint:  gate like against like: make the baseline anew in the way of the current record\n"
    )


def test_a_record_of_another_schema_is_refused_by_name(perfkit: Perfkit) -> None:
    record = read(H200)
    record["schema"] = "perfkit.record/2"
    ended = perfkit("gate", str(H200), save(record, "newer.json"))
    assert (ended.code, ended.out) == (2, "")
    error, hint = ended.err.splitlines()
    assert error.startswith("error: newer.json is not a perfkit record: ")
    assert "perfkit.record/2" in error
    assert hint == "hint:  this perfkit reads schema perfkit.record/1"


def test_a_record_that_is_not_there_is_refused(perfkit: Perfkit) -> None:
    ended = perfkit("gate", "none.json", str(H200))
    assert (ended.code, ended.err) == (2, "error: cannot read record none.json: No such file or directory\n")


# The example for CI.


def script(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run gate.sh as a CI job would, in `folder`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    environment |= {"PERFKIT": f"{sys.executable} -m perfkit", **variables}
    return subprocess.run(
        [str(CI / "gate.sh")], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_script_passes_as_it_stands(tmp_path: Path) -> None:
    """The baseline in the repository is what the code models today; if it fails, was the change meant?"""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    done = script(tmp_path, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "perfkit-gate"
    assert {path.name for path in out.iterdir()} == {"current.json", "report.html", "gate.md", "gate.xml"}
    assert "\nPASS: 66 checks\n" in done.stdout
    assert summary.read_text() == "before\n" + (out / "gate.md").read_text()


def test_the_script_fails_with_the_gate_and_writes_all_the_same(tmp_path: Path) -> None:
    record = read(CI / "baseline.json")
    scale(record["runs"][1], "l2_read_modelled", 0.98)
    (tmp_path / "older.json").write_text(json.dumps(record))
    out = tmp_path / "reports"
    out.mkdir()
    (out / "gate.md").write_text("of the last job")
    done = script(tmp_path, BASELINE="older.json", OUT="reports", GATE="--traffic 1% --strict")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (out / "gate.md").read_text().startswith("### perfkit gate: FAIL: 1 of 66 checks")
    assert ET.parse(out / "gate.xml").getroot().get("failures") == "1"
    assert (out / "report.html").stat().st_size > 0


def test_the_script_stops_where_there_is_no_record(tmp_path: Path) -> None:
    done = script(tmp_path, MEASURE="roofline --seq 0")
    assert done.returncode == 2
    assert "error: --seq must be a positive count" in done.stderr
    assert list((tmp_path / "perfkit-gate").iterdir()) == []


@pytest.mark.parametrize("name", ["github-actions.yml", "github-actions-gpu.yml"])
def test_workflows_name_files_and_variables_that_exist(name: str) -> None:
    text = (CI / name).read_text()
    variables = set(re.findall(r"^ {10}([A-Z_]+):", text, re.MULTILINE))
    known = set(re.findall(r"\$\{([A-Z]+)[:-]", (CI / "gate.sh").read_text()))
    assert variables <= known - {"BASH"}
    assert len(variables) >= 4
    baseline = re.search(r"BASELINE: (\S+)", text)
    run = re.search(r"run: (docs/\S+)", text)
    assert baseline
    assert run
    assert (ROOT / baseline[1]).is_file()
    assert os.access(ROOT / run[1], os.X_OK)
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", used) for used in re.findall(r"uses: (\S+)", text))


def test_the_page_on_the_example_explains_every_variable() -> None:
    text = (CI / "README.md").read_text()
    variables = set(re.findall(r"^#   ([A-Z]+) ", (CI / "gate.sh").read_text(), re.MULTILINE))
    assert variables == {"PERFKIT", "BASELINE", "MEASURE", "DEVICE", "GATE", "OUT"}
    assert [name for name in variables if f"| `{name}` |" not in text] == []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert (CI / target).exists(), target
