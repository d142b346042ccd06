"""`perfkit devices [NAME]`: the device profiles that perfkit knows."""

from typing import Annotated

import typer


def devices(
    name: Annotated[str | None, typer.Argument(help="A profile's name, or the path of a .toml file.")] = None,
) -> None:
    """List all device profiles, or show one with its ridge points and the source of every number."""
    from rich.console import Console

    from perfkit.model.catalogue import load, names
    from perfkit.reports.devices import catalogue, profile

    Console().print(profile(load(name)) if name else catalogue([load(known) for known in names()]))
