"""Nonsense on the command line: exit code 2, one `error:` line, a `hint:` that names what is allowed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

#: Never measures: no GPU is touched, wherever the tests run.
MODEL = ["roofline", "--device", "h200-141gb-sxm", "--seq", "1k"]
COUNT = "must be a positive count such as 4096, 16k or 1m, not"
KILO = "k is 1024, m is 1024 * 1024"
IMPLS = (
    "all, standard, flash, flash-triton, flash-hopper, flash1, gpt2, square, flash-decode, block-sparse, "
    "block-sparse1, sdpa-flash, sdpa-cudnn, sdpa-efficient, sdpa-math, flex, gathered, sdpa, reference, "
    "mha, gqa, mqa"
)


Perfkit = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--seq", "0"], f"--seq {COUNT} '0'", KILO),
        (["--seq", "-5"], f"--seq {COUNT} '-5'", KILO),
        (["--seq", "many"], f"--seq {COUNT} 'many'", KILO),
        (["--seq", ""], f"--seq {COUNT} ''", KILO),
        (["--seq-k", "1.5k"], f"--seq-k {COUNT} '1.5k'", KILO),
        (["--batch", "0"], f"--batch {COUNT} '0'", KILO),
        (["--heads", "0"], f"--heads {COUNT} '0'", KILO),
        (["--kv-heads", "x"], f"--kv-heads {COUNT} 'x'", KILO),
        (["--head-dim", "1e2"], f"--head-dim {COUNT} '1e2'", KILO),
        (
            ["--heads", "7", "--kv-heads", "2"],
            "kv-heads must divide heads: 7 heads cannot share 2 K/V heads",
            "allowed for 7 heads: 1, 7",
        ),
        (["--dtype", "fp9"], "unknown dtype 'fp9'", "allowed: bf16, fp16, fp32"),
        (["--pass", "sideways"], "unknown pass 'sideways'", "allowed: fwd, bwd, fwd-bwd"),
        (
            ["--op", "nope"],
            "unknown op 'nope'",
            "allowed: attention, decode-attention, paged-decode-attention, sliding-window-attention",
        ),
        (["--impl", "nope"], "unknown implementation 'nope' of attention", f"allowed: {IMPLS}"),
        (["--impl", "flash,"], "unknown implementation '' of attention", f"allowed: {IMPLS}"),
        (["--impl", "flash,nope"], "unknown implementation 'nope' of attention", f"allowed: {IMPLS}"),
        (
            ["--device", "nope"],
            "no device profile is named 'nope'",
            "perfkit devices lists them; a file of your own ends in .toml",
        ),
        (
            ["--device", "a100"],
            None,
            "perfkit devices lists them; a file of your own ends in .toml",
        ),
        (
            ["--json", "-", "--csv", "-"],
            "only one output can go to standard output",
            "give the other one a path",
        ),
        (["--json", "there.json"], "there.json exists", "choose another name, or overwrite it with --force"),
        (["--csv", "there.json"], "there.json exists", "choose another name, or overwrite it with --force"),
        (["--json", "nowhere/r.json"], "nowhere is not a folder", "create it first"),
    ],
)
def test_nonsense(
    perfkit: Perfkit, tmp_path: Path, arguments: list[str], error: str | None, hint: str
) -> None:
    (tmp_path / "there.json").write_text("precious")
    found = perfkit(*MODEL, *arguments)
    assert found.code == 2
    assert found.out == ""
    lines = found.err.splitlines()
    assert len(lines) == 2, found.err
    assert lines[0].startswith("error: ")
    assert lines[1] == f"hint:  {hint}"
    if error is not None:
        assert lines[0] == f"error: {error}"
    assert (tmp_path / "there.json").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def test_a_name_that_is_nearly_right_is_suggested(perfkit: Perfkit) -> None:
    assert "did you mean h200-141gb-sxm" in perfkit("devices", "h200-141gb-smx").err


HEAD_DIM = "head-dim is the width of one head, at most 1024, not 2048"


def test_an_error_without_anything_to_add_has_no_hint(perfkit: Perfkit) -> None:
    assert perfkit(*MODEL, "--head-dim", "2k") == (2, "", f"error: {HEAD_DIM}\n")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Input data was truncated"),
        (b"not json", "JSON is malformed: invalid character (byte 4)"),
        (b"{}", "Object missing required field `op`"),
        (b'{"schema": "perfkit.record/99"}', "Invalid value 'perfkit.record/99' - at `$.schema`"),
    ],
)
def test_show_garbage(perfkit: Perfkit, tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    assert perfkit("show", "bad.json") == (
        2,
        "",
        f"error: bad.json is not a perfkit record: {problem}\n"
        "hint:  this perfkit reads schema perfkit.record/1\n",
    )


def test_show_missing(perfkit: Perfkit) -> None:
    found = perfkit("show", "nope.json")
    assert (found.code, found.out) == (2, "")
    assert found.err.splitlines()[0] == "error: cannot read record nope.json: No such file or directory"


def test_devices_nope(perfkit: Perfkit) -> None:
    assert perfkit("devices", "nope").code == 2
    assert perfkit("devices", "nope.toml").err.startswith(
        "error: cannot read the device profile nope.toml: No such file or directory"
    )


def test_show_refuses_targets_before_it_reads(perfkit: Perfkit, tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    assert perfkit("show", "nope.json", "--csv", "there.csv").err.startswith("error: there.csv exists")


def test_two_reports_into_one_file_are_refused(perfkit: Perfkit) -> None:
    assert perfkit(*MODEL, "--json", "same", "--csv", "same").code == 2


def test_a_folder_is_no_target(perfkit: Perfkit, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert perfkit(*MODEL, "--json", "folder", "--force").code == 2


# What typer refuses.


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["roofline", "--nope"], "--nope"),
        (["nope"], "nope"),
        (["roofline", "--seq"], "--seq"),
        (["roofline", "--time-limit", "0"], "0.1"),
        (["roofline", "--time-limit", "soon"], "--time-limit"),
        (["roofline", "extra"], "extra"),
        (["show"], "record"),
    ],
)
def test_usage_errors_of_the_parser(perfkit: Perfkit, arguments: list[str], names: str) -> None:
    found = perfkit(*arguments)
    assert found.code == 2
    assert names in found.err.lower()
    assert "Traceback" not in found.err


# What is allowed stays allowed.


def test_force_overwrites(perfkit: Perfkit, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    found = perfkit(*MODEL, "--json", "there.json", "--force")
    assert (found.code, found.err) == (0, "wrote there.json\n")
    assert json.loads((tmp_path / "there.json").read_text())["schema"] == "perfkit.record/1"
    assert perfkit("show", "there.json").code == 0


def test_one_output_on_standard_output_is_all_there_is(perfkit: Perfkit) -> None:
    found = perfkit(*MODEL, "--csv", "-")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("source,op,device,impl,status,")


def test_version_and_help(perfkit: Perfkit) -> None:
    from perfkit import __version__

    assert perfkit("--version").out == f"perfkit {__version__}\n"
    for arguments in (
        ["-h"],
        ["roofline", "-h"],
        ["show", "--help"],
        ["devices", "--help"],
        ["doctor", "-h"],
    ):
        assert perfkit(*arguments).code == 0


# The program itself.


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["roofline", "--seq", "0"], 2, f"error: --seq {COUNT} '0'\nhint:  {KILO}\n"),
        (["roofline", "--nope"], 2, None),
        (["show", "nope.json"], 2, None),
        (["--version"], 0, ""),
    ],
)
def test_the_program(arguments: list[str], code: int, error: str | None, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "perfkit", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if error is not None:
        assert done.stderr == error
