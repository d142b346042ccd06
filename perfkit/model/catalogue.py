"""The device profiles that come with perfkit, by name, and the user's own, by path."""

import difflib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import msgspec

from perfkit.errors import UsageError
from perfkit.model.device import DeviceProfile

_PACKAGE: Final = "perfkit.profiles"
_SUFFIX: Final = ".toml"


def names() -> tuple[str, ...]:
    """The names that `load` knows, in alphabetical order."""
    return tuple(
        sorted(f.name.removesuffix(_SUFFIX) for f in files(_PACKAGE).iterdir() if f.name.endswith(_SUFFIX))
    )


def load(name_or_path: str) -> DeviceProfile:
    """The profile of that name, or the one in the file at that path (it ends in .toml).

    Reads that one file only. Raises UsageError, in one line, for an unknown name or a file that is not a
    profile, names the file and the key, and suggests what was probably meant.
    """
    if name_or_path.endswith(_SUFFIX):
        path = Path(name_or_path)
        return _read(path, shown=name_or_path, name=path.stem)
    known = names()
    if name_or_path not in known:
        close = difflib.get_close_matches(name_or_path.lower(), known, n=3)
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(
            f"no device profile is named '{name_or_path}'{meant}",
            "perfkit devices lists them; a file of your own ends in .toml",
        )
    file = name_or_path + _SUFFIX
    return _read(files(_PACKAGE) / file, shown=file, name=name_or_path)


def _read(file: Traversable, *, shown: str, name: str) -> DeviceProfile:
    try:
        profile = msgspec.toml.decode(file.read_bytes(), type=DeviceProfile)
    except OSError as error:
        raise UsageError(f"cannot read the device profile {shown}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{shown} is not a device profile: {error}", "docs/devices.md says how to write one"
        ) from None
    if profile.derived:
        raise UsageError(f"{shown} is not a device profile: derived belongs to profiles made from a driver")
    if profile.name != name:
        raise UsageError(
            f"{shown} is not a device profile: its name is '{profile.name}', and its file's '{name}'",
            "give both the same name",
        )
    return profile
