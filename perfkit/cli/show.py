"""`perfkit show RECORD.json`: render a record again, without measuring."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def show(
    record: Annotated[str, typer.Argument(help="A record that --json wrote.")],
    csv: o.Csv = None,
    json: Annotated[str | None, typer.Option(help="Write the record again; - is standard output.")] = None,
    md: o.Md = None,
    html: o.Html = None,
    threshold: o.Threshold = "1%",
    force: o.Force = False,
) -> None:
    """Show a saved record again, without measuring anything."""
    from pathlib import Path

    from perfkit.analysis.study import study
    from perfkit.cli.output import check_targets, emit, titled
    from perfkit.model.units import parse_percent
    from perfkit.record import load

    targets = {"json": json, "csv": csv, "md": md, "html": html}
    check_targets(targets, force)
    least = parse_percent(threshold, "--threshold")
    emit(titled(Path(record).stem, study(load(record)), least), targets)
