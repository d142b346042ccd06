"""What the gate allows, and the file that says so."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from perfkit.analysis.gate.check import IGNORABLE
from perfkit.errors import UsageError
from perfkit.model.units import parse_percent

_SHARES = ("time", "traffic", "dram", "memory")
_KEYS = (*_SHARES, "strict", "ignore")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """By what share numbers may grow, and what is not looked at.

    `traffic`: bytes and FLOPs that are the same in every run. `dram`: measured DRAM bytes where they are not.
    `memory`: peak memory. `strict` makes warnings fail. `ignore` holds tags and `impl:NAME`.
    """

    time: float = 0.05
    traffic: float = 0.005
    dram: float = 0.05
    memory: float = 0.01
    strict: bool = False
    ignore: tuple[str, ...] = ()


def load_limits(path: str | Path) -> Limits:
    """The limits that a TOML file sets, the others as they are; UsageError names the file and the key."""
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    unknown = next((key for key in found if key not in _KEYS), None)
    if unknown is not None:
        raise UsageError(f"{path}: unknown key '{unknown}'", f"allowed: {', '.join(_KEYS)}")
    shares = {key: _share(found[key], f"{path}: {key}") for key in _SHARES if key in found}
    return Limits(
        **shares,
        strict=_strict(found.get("strict", False), path),
        ignore=_ignore(found.get("ignore", []), path),
    )


def _share(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{what} must be a share such as '5%' or 0.05, not {value!r}")
    return parse_percent(str(value), what)


def _strict(value: Any, path: str | Path) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{path}: strict must be true or false, not {value!r}")
    return value


def _ignore(value: Any, path: str | Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise UsageError(f"{path}: ignore must be a list of texts, not {value!r}")
    for entry in value:
        if entry not in IGNORABLE and not entry.startswith("impl:"):
            allowed = f"allowed: impl:NAME, {', '.join(IGNORABLE)}"
            raise UsageError(f"{path}: ignore: '{entry}' is not gated", allowed)
    return tuple(value)
