"""Counts as typed and quantities as shown: every hint, and where digits and prefixes turn over."""

from typing import get_args

import pytest

from perfkit.errors import UsageError
from perfkit.model.units import UNITS, Hint, parse_count, power_of_ten, short_count, show, significant


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("4096", 4096),
        ("16k", 16 * 1024),
        ("16K", 16 * 1024),
        ("1m", 1024 * 1024),
        ("2g", 2 * 1024 * 1024 * 1024),
        ("16_384", 16384),
        (" 128 ", 128),
        ("007", 7),
        ("9" * 15, 10**15 - 1),
    ],
)
def test_parse_count(text: str, count: int) -> None:
    assert parse_count(text, "--seq") == count


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "0k", "-1", "-16k", "+5", "k", "1.5k", "1e3", "16kk", "16 k", "0x10", "nan",
     "inf", "²", "٣", "1t", "9" * 16, "9" * 5000],
)  # fmt: skip
def test_parse_count_refuses_everything_else(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_count(text, "--heads")
    assert refused.value.message == f"--heads must be a positive count such as 4096, 16k or 1m, not '{text}'"
    assert refused.value.hint == "k is 1024, m is 1024 * 1024"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (1024, "1k"),
        (5000, "5000"),
        (16384, "16k"),
        (1536, "1536"),  # 1.5k is not something that parse_count reads
        (1024**2, "1m"),
        (1024**2 + 1024, "1025k"),
        (3 * 1024**3, "3g"),
    ],
)
def test_short_count(value: int, text: str) -> None:
    assert short_count(value) == text
    if value:
        assert parse_count(text, "count") == value


@pytest.mark.parametrize(
    ("value", "three", "four"),
    [
        (0, "0", "0"),
        (1, "1.00", "1.000"),
        (9.994, "9.99", "9.994"),
        (9.996, "10.0", "9.996"),  # rounding gains a digit: decimals go down with it
        (99.96, "100", "99.96"),
        (999.4, "999", "999.4"),
        (999.95, "1000", "1000"),
        (0.9994, "0.999", "0.9994"),
        (0.9996, "1.00", "0.9996"),
        (0.0996, "0.0996", "0.09960"),
        (0.001, "0.00100", "0.001000"),
        (123456, "123456", "123456"),
        (-5.5, "-5.50", "-5.500"),
        (-9.996, "-10.0", "-9.996"),
        (4e-7, "0.000000", "0.000000"),  # six decimals at most
    ],
)
def test_significant(value: float, three: str, four: str) -> None:
    assert significant(value) == three
    assert significant(value, 4) == four


@pytest.mark.parametrize("exponent", range(-3, 6))
@pytest.mark.parametrize("lead", [1.0, 1.004, 1.005, 9.949, 9.951, 9.994])
def test_three_digits_are_three_digits(lead: float, exponent: int) -> None:
    text = significant(lead * 10.0**exponent)
    assert len(text.replace(".", "").lstrip("0")) == max(3, exponent + 1)
    assert float(text) == pytest.approx(lead * 10.0**exponent, rel=0.005)


@pytest.mark.parametrize(
    ("value", "hint", "text"),
    [
        # Prefixes turn over where three digits would round up to 1000.
        (999.4, "bytes", "999 B"),
        (999.95, "bytes", "1.00 kB"),
        (0, "bytes", "0 B"),
        (0.5, "bytes", "0.500 B"),
        (-2048, "bytes", "-2.05 kB"),
        (8_623_489_024, "bytes", "8.62 GB"),
        (3e18, "bytes", "3000 PB"),
        (1_099_511_627_776, "flop", "1.10 TFLOP"),
        (0, "flop", "0 FLOP"),
        (989.4e12, "flop_rate", "989 TFLOP/s"),
        (999.95e12, "flop_rate", "1.00 PFLOP/s"),
        (-1e12, "flop_rate", "-1.00 TFLOP/s"),
        (4.8e12, "byte_rate", "4.80 TB/s"),
        (999.95e9, "byte_rate", "1.00 TB/s"),
        (0, "time", "0 ns"),
        (4e-12, "time", "0.00400 ns"),
        (999.4e-9, "time", "999 ns"),
        (999.95e-9, "time", "1.00 us"),
        (2.5e-6, "time", "2.50 us"),
        (999.95e-6, "time", "1.00 ms"),
        (-0.002, "time", "-2.00 ms"),
        (0.99995, "time", "1.00 s"),
        (999.95, "time", "1000 s"),
        (999.95, "intensity", "1000 FLOP/B"),
        (0, "intensity", "0 FLOP/B"),
        (999.95, "ratio", "1000x"),
        (1.0078, "ratio", "1.008x"),
        (-1, "ratio", "-1.000x"),
        (0.99951, "percent", "100.0 %"),
        (9.9996, "percent", "1000.0 %"),
        (0, "percent", "0.0 %"),
        (-0.012, "percent", "-1.2 %"),
        (999.95, "count", "1,000"),
        (1_234_567, "count", "1,234,567"),
        (0, "count", "0"),
        (-5, "count", "-5"),
        (1.98e9, "hertz", "1980 MHz"),
        (0, "hertz", "0 MHz"),
        (999.95, "watt", "1000 W"),
        (0, "watt", "0 W"),
        (999.95, "joule", "1000 J"),
        (0.25, "joule", "0.250 J"),
        (999.95, "celsius", "1000 C"),
        (-3, "celsius", "-3 C"),
        (9.7e-4, "error", "9.70e-04"),
        (0, "error", "0.00e+00"),
        (128, "rows", "128.0 rows"),
        (999.95, "rows", "1000.0 rows"),
    ],
)  # fmt: skip
def test_show(value: float, hint: Hint, text: str) -> None:
    assert show(value, hint) == text


@pytest.mark.parametrize("hint", get_args(Hint))
def test_every_hint_has_a_unit_and_shows_any_number(hint: Hint) -> None:
    assert UNITS[hint]
    assert show(None, hint) == "-"
    for value in (0, 0.0, -1.0, 1e-12, 999.95, 1e18):
        assert show(value, hint)


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (10, "10"), (1e3, "1 k"), (1e13, "10 T"), (1e15, "1 P"), (0.1, "0.1")]
)
def test_power_of_ten(value: float, text: str) -> None:
    assert power_of_ten(value) == text
