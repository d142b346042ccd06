"""Finding what a lazy "module:function" target names, and a clear word where a package is missing."""

import importlib
from typing import Any

from perfkit.errors import EnvironmentMissing

HOW_TO_INSTALL = "in a checkout of perfkit: pip install -e '.[measure]'"


def resolve(target: str) -> Any:
    """The object that "module:name" names. EnvironmentMissing names a package that is not installed."""
    module, name = target.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            f"{error.name} is not installed, and {target} needs it", HOW_TO_INSTALL
        ) from error
