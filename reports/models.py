"""Published models for the terminal: all of them as a table, or one with its source."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfkit.model.units import short_count, show
from perfkit.ops.models import Model, Refused
from perfkit.reports.grid import Column, Row, grid
from perfkit.reports.lines import note, title

_BYTES = (
    "bytes a token: K and V of all layers in bf16, 2 L h_kv d e; a layer with a window needs no more tokens "
    "than it has keys"
)


def catalogue(models: Sequence[Model], refused: Sequence[Refused], width: int) -> RenderableType:
    """A line for each model, and why others are not there."""
    names = ("model", "heads", "K/V heads", "d", "layers", "window", "bytes a token")
    columns = [Column(name=name, justify="right" if at else "left") for at, name in enumerate(names)]
    rows = [Row(cells=_cells(model)) for model in models]
    notes = (_BYTES, *(f"{one.name} is refused: {one.refused}" for one in refused))
    return Group(grid(columns, rows, width), *map(note, notes))


def _cells(model: Model) -> tuple[str, ...]:
    numbers = (model.heads, model.kv_heads, model.head_dim, model.layers)
    return (model.name, *map(str, numbers), _window(model), show(model.token_bytes(), "bytes"))


def _window(model: Model) -> str:
    """Its keys, and in how many layers where some have none."""
    if model.window is None:
        return "-"
    partly = model.windowed_layers < model.layers
    return f"{short_count(model.window)}{f' in {model.windowed_layers} layers' if partly else ''}"


def one_model(model: Model) -> RenderableType:
    """Everything about one model."""
    facts = {
        "query heads": str(model.heads),
        "K/V heads": f"{model.kv_heads}, h/h_kv {model.kv_ratio}",
        "head dim": str(model.head_dim),
        "layers": str(model.layers),
        "window": _window(model),
        "context": short_count(model.context) if model.context else "-",
        "K and V": f"{show(model.token_bytes(), 'bytes')} a token in bf16",
        "note": model.note or "",
        "source": model.source,
    }
    table = Table.grid(padding=(0, 2))
    for name, text in facts.items():
        if text:
            table.add_row(Text(name), Text(text))
    return Group(title(model.name), table)
