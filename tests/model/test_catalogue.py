"""The catalogue: every profile loads, and every bad file gets one line that names file and key."""

from importlib.resources import files

import pytest

from perfkit.errors import UsageError
from perfkit.model import catalogue
from perfkit.model.catalogue import load, names

GOOD = (files("perfkit.profiles") / "a100-40gb-sxm.toml").read_text()
BF16 = 'dtype = "bf16", pipe = "tensor", flop_per_s = 312e12, flop_per_clock_per_sm = 2048'


def test_names():
    assert names() == (
        "a10",
        "a100-40gb-pcie",
        "a100-40gb-sxm",
        "a100-80gb-pcie",
        "a100-80gb-sxm",
        "b200-180gb-sxm",
        "gh200-144gb",
        "gh200-96gb",
        "h100-80gb-pcie",
        "h100-80gb-sxm",
        "h100-94gb-nvl",
        "h200-141gb-sxm",
        "l4",
        "l40s",
        "mi300x",
        "rtx-3090",
        "rtx-4090",
        "rtx-5090",
        "t4",
        "v100-16gb-sxm2",
        "v100-32gb-sxm2",
    )


@pytest.mark.parametrize("name", names())
def test_every_profile_passes_its_own_checks(name):
    assert load(name).name == name
    assert load(name).match.names


def test_loading_one_profile_reads_one_file(monkeypatch):
    read = []
    real = catalogue._read
    monkeypatch.setattr(
        catalogue, "_read", lambda file, **named: read.append(file.name) or real(file, **named)
    )
    load("t4")
    assert read == ["t4.toml"]


def written(tmp_path, text, name="a100-40gb-sxm"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return path


def test_a_users_file_is_loaded_by_path(tmp_path):
    path = written(tmp_path, GOOD.replace('"a100-40gb-sxm"', '"mine"'), "mine")
    assert load(str(path)).name == "mine"


def test_an_unknown_name_gets_close_matches():
    with pytest.raises(UsageError) as error:
        load("a100-40gb")
    assert error.value.message == (
        "no device profile is named 'a100-40gb';"
        " did you mean a100-40gb-sxm or a100-40gb-pcie or a100-80gb-sxm?"
    )
    assert error.value.hint == "perfkit devices lists them; a file of your own ends in .toml"


def test_a_name_like_nothing_gets_no_guess():
    with pytest.raises(UsageError) as error:
        load("toaster")
    assert error.value.message == "no device profile is named 'toaster'"


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.toml"
    with pytest.raises(UsageError) as error:
        load(str(path))
    assert error.value.message == f"cannot read the device profile {path}: No such file or directory"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        pytest.param('vendor = "NVIDIA"\n', "", "Object missing required field `vendor`", id="missing"),
        pytest.param(
            'vendor = "NVIDIA"',
            'vendor = "NVIDIA"\ncolour = "green"',
            "Object contains unknown field `colour`",
            id="unknown",
        ),
        pytest.param(
            "value = 108,",
            "value = 108.5,",
            "Expected `int`, got `float` - at `$.figures.sm_count.value`",
            id="type",
        ),
        pytest.param(
            '{ value = 108, source = "whitepaper" }',
            "{ value = 108 }",
            "Object missing required field `source` - at `$.figures.sm_count`",
            id="no source",
        ),
        pytest.param(
            "value = 108,",
            "value = 0,",
            "a figure must be positive and finite, not 0 - at `$.figures.sm_count`",
            id="zero",
        ),
        pytest.param(
            'power_limit_w          = { value = 400, source = "datasheet" }\n',
            "",
            "Object missing required field `power_limit_w` - at `$.figures`",
            id="power",
        ),
        pytest.param(
            BF16,
            BF16.replace("bf16", "bf8"),
            "unknown dtype 'bf8' (known: fp64, fp32, tf32, bf16, fp16, fp8, int8) - at `$.peaks[0]`",
            id="dtype",
        ),
        pytest.param(
            BF16,
            BF16.replace("bf16", "fp32"),
            "fp32 is a rate of the vector pipe and tf32 one of the tensor pipe - at `$.peaks[0]`",
            id="fp32 = TF32",
        ),
        pytest.param(
            BF16,
            BF16.replace('"tensor"', '"matrix"'),
            "Invalid enum value 'matrix' - at `$.peaks[0].pipe`",
            id="pipe",
        ),
        pytest.param(
            BF16,
            BF16.replace("312e12", "624e12"),
            "bf16 tensor: 108 SMs x 1.41e+09 Hz x 2048 FLOP/clock = 3.119e+14 FLOP/s,"
            " but flop_per_s is 6.24e+14 (a sparse rate?)",
            id="sparse",
        ),
        pytest.param(
            "value = 1.41e9,",
            "value = 1410,",
            "bf16 tensor: 108 SMs x 1410 Hz x 2048 FLOP/clock = 3.119e+08 FLOP/s,"
            " but flop_per_s is 3.12e+14 (a clock or a rate in the wrong unit?)",
            id="clock in MHz",
        ),
        pytest.param(
            BF16,
            BF16.replace("312e12", "0"),
            "a figure must be positive and finite, not 0.0 - at `$.peaks[0]`",
            id="no rate",
        ),
        pytest.param(BF16, BF16.replace("bf16", "fp16"), "two peaks for fp16 tensor", id="twice"),
        pytest.param(
            BF16,
            BF16.replace('"tensor"', '"tensor", clock = "tensor"'),
            "bf16 tensor is quoted at the tensor clock, and figures.tensor_hz is absent",
            id="no tensor clock",
        ),
        pytest.param(
            BF16,
            BF16.replace('"tensor"', '"tensor", accumulate = "fp16"'),
            "bf16 tensor (fp16 accumulate) needs its fp32-accumulate row beside it",
            id="fp16 accumulation alone",
        ),
        pytest.param(
            'value = 1.555e12, source = "datasheet"',
            'value = 1.555e12, source = "hearsay"',
            "source 'hearsay' is not in [sources]",
            id="unknown source",
        ),
        pytest.param(
            "[sources]\n",
            '[sources]\nblog = "A blog"\n',
            "[sources] has 'blog', which no figure uses",
            id="unused source",
        ),
        pytest.param(
            "bytes_per_s    =",
            "bytes_per_clock =",
            "memory.dram takes bytes_per_s only: the SM clock does not move DRAM",
        ),
        pytest.param(
            'bytes_per_clock = { value = 5120, source = "whitepaper" }',
            "",
            "memory.l2 needs one bandwidth, in byte/s or per clock, and has 0",
            id="no bandwidth",
        ),
        pytest.param(
            'compute_capability = "8.0"',
            'compute_capability = "sm_80"',
            "compute_capability must look like 9.0, not 'sm_80'",
            id="capability",
        ),
        pytest.param("166_912", "266_912", "shared_bytes_per_block is more than an SM has", id="shared"),
        pytest.param('vendor = "NVIDIA"', "vendor =", "Invalid value (at line 4, column 9)", id="not TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path, old, new, problem):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as error:
        load(str(path))
    assert error.value.message == f"{path} is not a device profile: {problem}"
    assert error.value.hint == "docs/devices.md says how to write one"


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "a100-40gb-sxm.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"a100-40gb-sxm\.toml is not a device profile: .*decode"):
        load(str(path))


def test_name_and_file_must_agree(tmp_path):
    path = written(tmp_path, GOOD, "other")
    with pytest.raises(UsageError) as error:
        load(str(path))
    assert error.value.message == (
        f"{path} is not a device profile: its name is 'a100-40gb-sxm', and its file's 'other'"
    )
    assert error.value.hint == "give both the same name"


def test_derived_is_not_for_files(tmp_path):
    path = written(tmp_path, GOOD.replace('vendor = "NVIDIA"', 'vendor = "NVIDIA"\nderived = true'))
    with pytest.raises(UsageError) as error:
        load(str(path))
    assert error.value.message == (
        f"{path} is not a device profile: derived belongs to profiles made from a driver"
    )
