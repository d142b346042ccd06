"""`perfkit models [NAME]`: published models whose attention perfkit knows."""

from typing import Annotated

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="A model's name, such as llama-3-8b.")] = None,
) -> None:
    """List published models with their heads, width, layers and window, or show one with its source."""
    from perfkit.cli.output import print_plain, terminal_width
    from perfkit.ops.models import find_model, models, refused_models
    from perfkit.reports.models import catalogue, one_model

    if name is not None:
        print_plain(one_model(find_model(name)))
    else:
        print_plain(catalogue(models(), refused_models(), terminal_width()))
