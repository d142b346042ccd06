"""The progress bar at a width of 80: what it says, and that nothing of it is left."""

import re

import pytest

from perfkit.cli.progress import progress

ALL = "flash and flash-triton and flash-hopper and sdpa-cudnn and sdpa-flash and sdpa-efficient and flex"


def frames(text: str) -> list[str]:
    """What stood in the line, one after the other, without escape sequences."""
    return [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", part).rstrip() for part in text.split("\r")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("terminal")
def test_count_time_and_stage_are_there_whatever_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(7) as stage:
        stage("flash-triton N 16k", "compiling flash_hopper_dkdv_wide")
        stage(ALL, "timing")
    text = capsys.readouterr().err
    shown = frames(text)
    assert max(map(len, shown)) <= 80
    assert any(re.fullmatch(r"━+ 0/7 \d:\d\d:\d\d flash-triton N 16k: compiling flash_hopper_dkdv_wide", one)
               for one in shown)  # fmt: skip
    assert any(
        re.fullmatch(r"[━╸╺]+ 1/7 \d:\d\d:\d\d flash and flash-triton .*…: timing", one) for one in shown
    )
    assert text.endswith("\x1b[1A\x1b[2K")  # the line is erased


def test_without_a_terminal_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(1) as stage:
        stage("flash", "timing")
    assert capsys.readouterr().err == ""
