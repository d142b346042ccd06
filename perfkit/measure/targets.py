"""Finding what a lazy "module:function" target names, and a clear word where a package is missing."""

import importlib
from functools import partial
from typing import Any

from perfkit.errors import EnvironmentMissing
from perfkit.ops.base import Implementation

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


def bound(row: Implementation) -> Any:
    """The function of an implementation, with its options."""
    function = resolve(row.target)
    return partial(function, **row.options) if row.options else function
