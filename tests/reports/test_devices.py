"""`perfkit devices` as it stands on a terminal of 80 columns, whole."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from perfkit.cli.devices import devices
from perfkit.errors import UsageError
from perfkit.model.catalogue import load, names
from perfkit.model.identify import derive
from perfkit.reports.devices import catalogue, profile

GOLDEN = Path(__file__).parents[1] / "golden"


def text(renderable):
    """What an 80-column terminal shows, without styles and the spaces at line ends."""
    console = Console(width=80, file=io.StringIO(), color_system=None, force_terminal=False)
    console.print(renderable)
    return "".join(line.rstrip() + "\n" for line in console.file.getvalue().splitlines())


def test_all_devices():
    shown = text(catalogue([load(name) for name in names()]))
    assert shown == (GOLDEN / "devices.txt").read_text()


@pytest.mark.parametrize("name", ["a100-40gb-sxm", "h100-94gb-nvl", "rtx-4090", "mi300x"])
def test_one_device(name):
    assert text(profile(load(name))) == (GOLDEN / f"devices-{name}.txt").read_text()


def test_a_device_that_no_profile_describes():
    unknown = derive(
        "NVIDIA Z900 [early]", 84, 48 << 30, "13.7", 1.8e9, None, None, 6 << 20, 100 << 10, 99 << 10, None
    )
    assert text(profile(unknown)) == (GOLDEN / "devices-derived.txt").read_text()


@pytest.mark.parametrize("name", names())
def test_nothing_is_cut_off_at_80_columns(name):
    shown = text(profile(load(name)))
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert all(key in shown for key in load(name).sources)


def test_the_command_lists_or_shows(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    devices()
    assert "h200-141gb-sxm   132" in capsys.readouterr().out
    devices("t4")
    assert capsys.readouterr().out.startswith("NVIDIA T4 (t4)\nTuring, TU104, compute capability 7.5\n")
    with pytest.raises(UsageError, match="no device profile is named 'h300'"):
        devices("h300")
