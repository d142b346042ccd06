"""`benchmarks/sanitize.py` with a compute-sanitizer that says what the test tells it to."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sanitize

INVALID = "========= Invalid __global__ read of size 16 bytes"
CLEAN = "echo ========= ERROR SUMMARY: 0 errors"
PLANTED = f'[[ "$*" == *planted* ]] && echo "{INVALID}" && exit 86'
Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(body of the tool, options) -> exit code and lines printed."""

    def called(body: str, *options: str) -> tuple[int, list[str]]:
        tool = tmp_path / "compute-sanitizer"
        tool.write_text(f'#!/bin/bash\n[[ "$1" == --help ]] && echo --kernel-name && exit 0\n{body}\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(sys, "argv", ["sanitize.py", *options])
        code = sanitize.main()
        return code, capsys.readouterr().out.splitlines()

    return called


def test_every_tool_on_every_shape(run: Run) -> None:
    code, lines = run(f"{PLANTED}\n{CLEAN}")
    assert (code, lines[0]) == (0, "memcheck found the planted error")
    assert len(lines) == 1 + 3 * len(sanitize.SHAPES)
    assert lines[1].startswith("memcheck   hopper d64 130x300 2/1 heads causal bfloat16: clean (")


def test_what_the_tool_is_asked(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(
        f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" >> {log}\n{PLANTED}',
        *("--paths", "flash", "--tools", "racecheck", "--jobs", "1"),
    )
    first, *others = log.read_text().splitlines()
    assert first.startswith("1 --tool memcheck --error-exitcode 86 --target-processes application-only")
    assert len(others) == 3
    assert all("--tool racecheck" in line and "--kernel-name kns=flash" in line for line in others)
    flash = [str(at) for at, shape in enumerate(sanitize.SHAPES) if shape.path == "flash"]
    assert [line.split()[-1] for line in others] == flash


def test_every_kernel_of_the_hopper_path_is_run() -> None:
    """Tiles of 64, 96, 128, 192 and 256 columns, the backward above 128 with and without a mask."""
    masks: dict[int, set[bool]] = {}
    for shape in sanitize.SHAPES:
        if shape.path == "hopper":
            masks.setdefault(shape.head_dim, set()).add(shape.causal)
    assert sorted(masks) == [64, 96, 128, 192, 256]
    assert all(masks[head_dim] == {False, True} for head_dim in (64, 96, 192, 256))


def test_errors_are_shown_and_fail(run: Run) -> None:
    hazards = "echo ========= Error: Race reported; echo '========= RACECHECK SUMMARY: 2 hazards'; exit 86"
    code, lines = run(
        f'{PLANTED}\n[[ "$*" == *racecheck* ]] && {{ {hazards}; }}\n{CLEAN}', "--paths", "flash"
    )
    assert code == 1
    at = next(at for at, line in enumerate(lines) if line.startswith("racecheck"))
    assert "causal bfloat16: errors (" in lines[at]
    assert lines[at + 1 : at + 3] == [
        "    ========= Error: Race reported", "    ========= RACECHECK SUMMARY: 2 hazards"
    ]  # fmt: skip
    assert all("clean" in line for line in lines if line.startswith(("memcheck  ", "synccheck")))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo ========= ERROR SUMMARY: 3 errors; exit 1", "errors ("),  # the context is gone: torch fails
        ("echo ModuleNotFoundError; exit 1", "failed with 1 ("),
    ],
)
def test_a_child_that_dies(run: Run, body: str, words: str) -> None:
    code, lines = run(f"{PLANTED}\n{body}", "--paths", "flash", "--tools", "memcheck")
    assert code == 1
    assert words in lines[1]


def test_a_timeout_decides_nothing(run: Run) -> None:
    options = ("--paths", "flash", "--tools", "racecheck", "--patience", "1")
    code, lines = run(f"{PLANTED}\nsleep 20\nexit 0", *options)
    assert code == 0
    assert [line.split(": ")[1] for line in lines[1:]] == ["timeout after 1 s"] * 3


def test_a_tool_that_finds_nothing_is_not_believed(run: Run) -> None:
    code, lines = run(CLEAN)
    assert code == 1
    assert lines[0].startswith(
        "memcheck did not find the planted error, so no `clean` can be believed: clean"
    )


def test_without_the_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    monkeypatch.setattr(sys, "argv", ["sanitize.py"])
    assert sanitize.main() == 2
    assert capsys.readouterr().out.startswith("compute-sanitizer is not installed")


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert sanitize.find_sanitizer([f"{tmp_path}/cuda*/bin"]) is None
    for version in ("cuda-12.8", "cuda-13.0"):
        tool = tmp_path / version / "bin" / "compute-sanitizer"
        tool.parent.mkdir(parents=True)
        tool.touch(mode=0o755)
    assert sanitize.find_sanitizer([f"{tmp_path}/cuda*/bin"]) == str(tool)


def line_of(text: str) -> str:
    """Where a text first stands in the kernels for Hopper, as racecheck names it."""
    return next(
        f"access at kernel+0x10 in {path.name}:{number}"
        for path in sorted(sanitize.KERNELS.glob("flash_hopper*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if text in line
    )


def report(*races: tuple[str, ...]) -> str:
    lines = []
    for first, *others in races:
        lines += [
            f"Error: Race reported between Read {first}",
            *(f"and Write {one} [2 hazards]" for one in others),
        ]
    return "\n".join([*lines, "RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)"])


NUMBER = ("batch = gl.max(numbers", "full([1], batch")


def test_hazards_that_barriers_order_are_explained() -> None:
    number = tuple(map(line_of, NUMBER))
    weights = line_of("weights_tile.store("), line_of("weights_tile.load(")
    kernels = [line_of(f"def flash_hopper_{name}(") for name in ("forward", "dkdv", "dkdv_wide", "dq")]
    races = [(*number, number[1]), weights, weights[::-1], *((kernel, kernel) for kernel in kernels)]
    assert sanitize.explained(report(*races)) == 8


def test_one_other_hazard_is_an_error() -> None:
    number = tuple(map(line_of, NUMBER))
    steps, dispatch = line_of("weights = gl.convert_layout(exps"), line_of("def flash_hopper_forward(")
    weights = line_of("weights_tile.store(")
    short, long = (f"access at kernel+0x10 in standard.py:{line}" for line in (7, 300))  # of Triton
    wrong = [(steps, number[1]), (number[0], steps), (number[0], dispatch), (dispatch, weights)]
    for one in (*wrong, (short, dispatch), (dispatch, short), (dispatch, long)):
        assert sanitize.explained(report(number, one)) == 0
    assert sanitize.explained("RACECHECK SUMMARY: 3 hazards displayed") == 0
