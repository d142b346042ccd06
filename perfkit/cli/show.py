"""`perfkit show RECORD.json`: render a record again, without measuring."""

from typing import Annotated

import typer


def show(
    record: Annotated[str, typer.Argument(help="A record that --json wrote.")],
    csv: Annotated[str | None, typer.Option(help="Write all numbers as CSV; - is standard output.")] = None,
    json: Annotated[str | None, typer.Option(help="Write the record again; - is standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Show a saved record again, without measuring anything."""
    from perfkit.analysis.study import study
    from perfkit.cli.output import check_targets, emit
    from perfkit.record import load

    targets = {"json": json, "csv": csv}
    check_targets(targets, force)
    emit(study(load(record)), targets)
