"""`perfkit report RECORD.json...`: saved records as one file."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def report(
    records: Annotated[list[str], typer.Argument(help="Records that --json wrote.", metavar="RECORD...")],
    html: Annotated[
        str | None,
        typer.Option("-o", "--html", help="Write one HTML file; - is standard output."),
    ] = None,
    md: o.Md = None,
    csv: o.Csv = None,
    baseline: Annotated[
        str | None, typer.Option(help="A record to hold them against: an overlay and a table of changes.")
    ] = None,
    threshold: o.Threshold = "1%",
    force: o.Force = False,
) -> None:
    """Turn saved records into an HTML file, a Markdown summary, or CSV, without measuring anything."""
    from perfkit.analysis.report import Report, Titled, changes
    from perfkit.analysis.study import study
    from perfkit.cli.output import check_targets, names_of, write_files
    from perfkit.errors import UsageError
    from perfkit.model.units import parse_percent
    from perfkit.record import load

    targets = {"html": html, "md": md, "csv": csv}
    if not any(targets.values()):
        raise UsageError(
            "nowhere to write to", "name a file: -o report.html, --md summary.md or --csv numbers.csv"
        )
    check_targets(targets, force)
    names = names_of([*records, *([baseline] if baseline else [])])
    parts = tuple(
        Titled(name=name, study=study(load(path))) for name, path in zip(names, records, strict=False)
    )
    base = Titled(name=names[-1], study=study(load(baseline))) if baseline else None
    subject = Report(parts=parts, baseline=base, threshold=parse_percent(threshold, "--threshold"))
    changes(subject)  # nothing in common is said before anything is written
    write_files(subject, targets)
