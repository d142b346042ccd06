"""The environment record: what it holds, and what it keeps to itself."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

import perfkit
from perfkit.measure.environment import (
    Environment,
    command_line,
    cpu_model,
    cudnn_version,
    environment,
    version_of,
)


def test_environment_of_this_process() -> None:
    seen = environment(with_torch=False)
    assert seen.perfkit == perfkit.__version__
    assert seen.python == platform.python_version()
    assert seen.torch == version_of("torch")
    assert (seen.cuda_runtime, seen.cudnn) == (None, None)
    when = datetime.fromisoformat(seen.timestamp)
    assert when.tzinfo == UTC
    assert abs((datetime.now(UTC) - when).total_seconds()) < 60


def test_environment_survives_json() -> None:
    seen = environment(with_torch=False)
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Environment) == seen


def test_environment_without_torch_does_not_import_it() -> None:
    program = (
        "import sys; from perfkit.measure.environment import environment; environment(with_torch=False); "
        "print(sorted({'torch', 'triton', 'pandas'} & set(sys.modules)))"
    )
    root = Path(perfkit.__file__).parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root
    )
    assert ran.stdout == "[]\n"


def test_environment_works_where_torch_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import raises ImportError
    assert environment().cuda_runtime is None


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/venv/bin/perfkit", "run", "attention"], ["perfkit", "run", "attention"]),
        (["x", "--out=/home/ada/runs/a.json"], ["x", "--out=~/runs/a.json"]),
        (["x", "/srv/work/ada/a.json"], ["x", "~/a.json"]),
        (["x", "/srv/work/adam/a.json"], ["x", "/srv/work/adam/a.json"]),
        (["x", "/Users/ada", "/root/b"], ["x", "~", "~/b"]),
        (["x", "data/home/ada", "/rooted"], ["x", "data/home/ada", "/rooted"]),
        ([], [""]),
    ],
)
def test_command_line_names_no_home(argv: list[str], expected: list[str]) -> None:
    assert command_line(argv, "/srv/work/ada") == expected


def test_cpu_model() -> None:
    text = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)   Platinum 8480C \nmodel name\t: other\n"
    assert cpu_model(text) == "Intel(R) Xeon(R) Platinum 8480C"
    assert cpu_model("processor : 0\nBogoMIPS : 50.00\n") is None


@pytest.mark.parametrize(("number", "text"), [(91900, "9.19.0"), (90101, "9.1.1"), (8902, "8.9.2")])
def test_cudnn_version(number: int, text: str) -> None:
    assert cudnn_version(number) == text


def test_version_of_a_package_that_is_not_there() -> None:
    assert version_of("no-such-package-of-perfkit") is None
