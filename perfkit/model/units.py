"""Counts as people type them, and SI quantities as people read them.

Everything inside perfkit is in base units (second, byte, FLOP, hertz, watt, joule); prefixes appear
here and nowhere else. GB is 1e9 bytes; `16k` on the command line is 16 * 1024.
"""

from collections.abc import Callable
from typing import Final, Literal

from perfkit.errors import UsageError

#: How a number is to be shown. Renderers format by hint, never by the name of a metric.
Hint = Literal[
    "time", "bytes", "flop", "flop_rate", "byte_rate", "intensity", "ratio", "percent", "count",
    "hertz", "watt", "joule", "celsius", "error", "rows",
]  # fmt: skip

#: Longer counts are typing errors, and Python refuses to read thousands of digits.
MAX_DIGITS: Final = 15

_BINARY: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LARGE: Final = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (0.0, "ns"))


def parse_count(text: str, what: str) -> int:
    """A positive count from `text`: digits, or digits with k, m or g (powers of 1024), as in `16k`.

    Raises UsageError naming `what` for anything else, zero and negative numbers included.
    """
    body = text.strip().lower().replace("_", "")
    factor = _BINARY.get(body[-1:], 1)
    digits = body[:-1] if factor > 1 else body
    if not (digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS) or int(digits) == 0:
        raise UsageError(
            f"{what} must be a positive count such as 4096, 16k or 1m, not '{text}'",
            "k is 1024, m is 1024 * 1024",
        )
    return int(digits) * factor


def parse_percent(text: str, what: str) -> float:
    """A share of 0 or more, below 1, from `5%`, `0.5 %` or `0.05`; else UsageError naming `what`."""
    body = text.strip()
    factor = 0.01 if body.endswith("%") else 1.0
    try:
        value = float(body.removesuffix("%")) * factor
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"{what} must be a share such as 5% or 0.05, not '{text}'", "from 0% to below 100%")
    return value


def short_count(value: int) -> str:
    """`value` as people type it: 16384 is `16k`, 5000 stays `5000`."""
    for letter in ("g", "m", "k"):
        if value and value % _BINARY[letter] == 0:
            return f"{value // _BINARY[letter]}{letter}"
    return str(value)


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent, for numbers between 1e-3 and 1e6."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding: 9.996 is 10.0
    decimals = min(max(digits - 1 - exponent, 0), 6)
    return f"{value:.{decimals}f}"


def _prefixed(unit: str) -> Callable[[float], str]:
    def text(value: float) -> str:
        scale, prefix = next(((s, p) for s, p in _LARGE if abs(value) >= s * 0.9995), (1.0, ""))
        return f"{significant(value / scale)} {prefix}{unit}".rstrip()

    return text


def _time(value: float) -> str:
    scale, unit = next((s, u) for s, u in _SMALL if abs(value) >= s * 0.9995)
    return f"{significant(value / (scale or 1e-9))} {unit}"


_FORMATS: Final[dict[Hint, Callable[[float], str]]] = {
    "time": _time,
    "bytes": _prefixed("B"),
    "flop": _prefixed("FLOP"),
    "flop_rate": _prefixed("FLOP/s"),
    "byte_rate": _prefixed("B/s"),
    "intensity": lambda value: f"{significant(value)} FLOP/B",
    "ratio": lambda value: f"{significant(value, 4)}x",
    "percent": lambda value: f"{value * 100:.1f} %",
    "count": lambda value: f"{value:,.0f}",
    "hertz": lambda value: f"{value / 1e6:.0f} MHz",
    "watt": lambda value: f"{value:.0f} W",
    "joule": lambda value: f"{significant(value)} J",
    "celsius": lambda value: f"{value:.0f} C",
    "error": lambda value: f"{value:.2e}",
    "rows": lambda value: f"{value:.1f} rows",
}

#: The SI unit that a number with this hint is stored in.
UNITS: Final[dict[Hint, str]] = {
    "time": "s",
    "bytes": "B",
    "flop": "FLOP",
    "flop_rate": "FLOP/s",
    "byte_rate": "B/s",
    "intensity": "FLOP/B",
    "ratio": "1",
    "percent": "1",
    "count": "1",
    "hertz": "Hz",
    "watt": "W",
    "joule": "J",
    "celsius": "degC",
    "error": "1",
    "rows": "1",
}


def power_of_ten(value: float) -> str:
    """A power of ten for an axis: `10 T`, `1 P`."""
    scale, prefix = next(((s, p) for s, p in _LARGE if value >= s * 0.9995), (1.0, ""))
    return f"{value / scale:g} {prefix}".rstrip()


def show(value: float | None, hint: Hint) -> str:
    """`value` (base unit) for people, by its hint; an absent value is `-`."""
    return "-" if value is None else _FORMATS[hint](value)
