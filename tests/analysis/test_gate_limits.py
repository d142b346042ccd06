"""The limits of the gate and the file that sets them."""

from pathlib import Path

import pytest

from perfkit.analysis.gate.check import GATED
from perfkit.analysis.gate.limits import Limits, load_limits
from perfkit.errors import UsageError
from perfkit.model.units import parse_percent
from perfkit.record import BY_TAG


def written(folder: Path, text: str) -> Path:
    path = folder / "gate.toml"
    path.write_text(text)
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'time = "10%"\ntraffic = 0.001\ndram = "7.5 %"\nmemory = 0\nstrict = true\n'
        'ignore = ["peak_memory", "time", "io_check", "impl:flex"]\n',
    )
    assert load_limits(path) == Limits(
        time=0.1, traffic=0.001, dram=0.075, memory=0.0, strict=True,
        ignore=("peak_memory", "time", "io_check", "impl:flex"),
    )  # fmt: skip


def test_an_empty_file_leaves_the_defaults(tmp_path: Path) -> None:
    assert load_limits(written(tmp_path, "")) == Limits(
        time=0.05, traffic=0.005, dram=0.05, memory=0.01, strict=False, ignore=()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tme = 0.1", "unknown key 'tme'"),
        ('time = "fast"', "time must be a share such as 5% or 0.05, not 'fast'"),
        ("time = -0.1", "time must be a share such as 5% or 0.05, not '-0.1'"),
        ("time = 5", "time must be a share such as 5% or 0.05, not '5'"),
        ("time = nan", "time must be a share such as 5% or 0.05, not 'nan'"),
        ("dram = true", "dram must be a share such as '5%' or 0.05, not True"),
        ("dram = [1]", "dram must be a share such as '5%' or 0.05, not [1]"),
        ('strict = "yes"', "strict must be true or false, not 'yes'"),
        ("strict = 1", "strict must be true or false, not 1"),
        ('ignore = "energy"', "ignore must be a list of texts, not 'energy'"),
        ("ignore = [1]", "ignore must be a list of texts, not [1]"),
        ('ignore = ["energy"]', "ignore: 'energy' is not gated"),
        ('ignore = ["flex"]', "ignore: 'flex' is not gated"),
        ('ignore = ["run"]', "ignore: 'run' is not gated"),
    ],
)
def test_nonsense_is_an_error_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as wrong:
        load_limits(path)
    assert wrong.value.message == f"{path}: {message}"


def test_an_unknown_key_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as wrong:
        load_limits(written(tmp_path, "energy = 0.1"))
    assert wrong.value.hint == "allowed: time, traffic, dram, memory, strict, ignore"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none.toml: No such file"):
        load_limits(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="is not TOML"):
        load_limits(written(tmp_path, "time 5%"))
    (tmp_path / "latin.toml").write_bytes(b'time = "\xe9"')
    with pytest.raises(UsageError, match="is not TOML"):
        load_limits(tmp_path / "latin.toml")


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.5 %", 0.005), ("0.05", 0.05), ("0", 0.0)])
def test_shares_as_people_type_them(text: str, value: float) -> None:
    assert parse_percent(text, "--time") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "five", "-1%", "-0.05", "100%", "1", "nan", "inf", "5%%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="--time must be a share"):
        parse_percent(text, "--time")


def test_every_gated_tag_is_a_number_of_a_record() -> None:
    assert GATED.keys() <= BY_TAG.keys()
    assert BY_TAG.keys() - GATED.keys() == {
        "time", "time_low", "time_high", "clock", "power", "temperature", "energy", "sustained_time",
        "sustained_clock", "eager_error", "l2_zeros_modelled",
    }  # fmt: skip
