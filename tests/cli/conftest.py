"""Running `perfkit ARGUMENTS` inside the tests."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from perfkit.cli import main


class Ended(NamedTuple):
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def perfkit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """Run `perfkit ARGUMENTS` in this process, in an empty folder, on a machine without a GPU."""
    from perfkit.measure import choose

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(choose, "gpu_driver_present", lambda: False)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["perfkit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, printed.out, printed.err)

    return run
