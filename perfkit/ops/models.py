"""The attention of published models: heads, width, layers and window, from their configurations."""

import difflib
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Final

import msgspec

from perfkit.errors import UsageError
from perfkit.model.dtype import DTYPE_BYTES

_FILE: Final = "models.toml"


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a model its attention depends on.

    `window` are the keys that a query sees in `windowed_layers` of its layers, None where it sees all;
    `context` the tokens that it was trained for; `note` what else a reader has to know.
    UsageError for shapes that mean nothing.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    window: int | None = None
    windowed_layers: int = 0
    context: int | None = None
    note: str | None = None
    source: str

    def __post_init__(self) -> None:
        sizes = (self.heads, self.kv_heads, self.head_dim, self.layers, self.window or 1, self.context or 1)
        if min(sizes) < 1 or self.heads % self.kv_heads:
            raise UsageError(f"{self.name}: sizes start at 1, and K/V heads divide heads")
        if (self.window is None) != (self.windowed_layers == 0) or self.windowed_layers > self.layers:
            raise UsageError(f"{self.name}: a window is that of 1 to {self.layers} layers")

    @property
    def kv_ratio(self) -> int:
        """h / h_kv: so many times smaller is the K/V cache than with a K/V head for each query head."""
        return self.heads // self.kv_heads

    def token_bytes(self, dtype: str = "bf16") -> int:
        """2 L h_kv d e: bytes of one token in the K/V cache, of all layers.

        Layers with a window count in full: they hold no more than `window` tokens, but each like the others.
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[dtype]


class Refused(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model whose attention cannot be represented, and why."""

    name: str
    refused: str
    source: str


@cache
def _tables() -> tuple[Model | Refused, ...]:
    found = tomllib.loads((files("perfkit.ops") / _FILE).read_text(encoding="utf-8"))
    return tuple(_read(name, table) for name, table in found.items())


def _read(name: str, table: dict[str, Any]) -> Model | Refused:
    """One table; a window is that of all layers where it says nothing else."""
    if "refused" in table:
        return msgspec.convert({"name": name, **table}, type=Refused)
    windowed = {"windowed_layers": table.get("layers")} if "window" in table else {}
    return msgspec.convert({"name": name, **windowed, **table}, type=Model)


def models() -> tuple[Model, ...]:
    """All models that can be represented, in the order of the table."""
    return tuple(one for one in _tables() if isinstance(one, Model))


def refused_models() -> tuple[Refused, ...]:
    """The models that cannot be represented."""
    return tuple(one for one in _tables() if isinstance(one, Refused))


def find_model(name: str) -> Model:
    """The model of that name, in upper or lower case.

    UsageError, in one line, for one that is not known, with what was probably meant, and for one that cannot
    be represented, with the reason.
    """
    found = next((one for one in _tables() if one.name == name.lower()), None)
    if isinstance(found, Refused):
        raise UsageError(f"{found.name} cannot be represented: {found.refused}", "perfkit models lists all")
    if found is None:
        known = [model.name for model in models()]
        close = difflib.get_close_matches(name.lower(), known, n=3)
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"no model is named '{name}'{meant}", f"allowed: {', '.join(known)}")
    return found
