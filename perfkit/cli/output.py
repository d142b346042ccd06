"""What every reporting command does with a report: the terminal, and files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.analysis.report import Report, Titled, changes, comparison_of
from perfkit.analysis.speed import THRESHOLD
from perfkit.analysis.study import Study
from perfkit.errors import UsageError
from perfkit.reports.files import check_target, render, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

WIDTH = 80


def check_targets(targets: dict[str, str | None], force: bool) -> None:
    """Refuse bad targets before the work; only one of them may be standard output."""
    given = [path for path in targets.values() if path]
    if given.count("-") > 1:
        raise UsageError("only one output can go to standard output", "give the other one a path")
    if len({Path(path).resolve() for path in given}) < len(given):
        raise UsageError("two outputs cannot go to one file", "give each a path of its own")
    for path in given:
        check_target(path, force)


def names_of(paths: list[str]) -> list[str]:
    """What readers know the files by: their names, or the whole paths where two names are equal."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else paths


def titled(name: str, study: Study, threshold: float = THRESHOLD) -> Report:
    """The report of one study."""
    return Report(parts=(Titled(name=name, study=study),), threshold=threshold)


def write_files(report: Report, targets: dict[str, str | None]) -> None:
    """Write every target that was asked for."""
    for name, path in targets.items():
        if path:
            write(render(name, report), path)
            if path != "-":
                print(f"wrote {path}", file=sys.stderr)


def emit(report: Report, targets: dict[str, str | None]) -> None:
    """Write the files, and the terminal report unless standard output is taken."""
    write_files(report, targets)
    if "-" in targets.values():
        return
    from rich.console import Group

    print_plain(Group(*_rendered(report, terminal_width())))


def terminal_width() -> int:
    """Columns of a report: the terminal's, from 80 to 120; 80 where it goes elsewhere."""
    from rich.console import Console

    console = Console()
    return max(WIDTH, min(console.width, 120)) if console.is_terminal else WIDTH


def print_plain(what: "RenderableType") -> None:
    """Print to standard output without blanks at the ends of lines."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    with console.capture() as captured:
        console.print(what)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _rendered(report: Report, width: int) -> "Iterator[RenderableType]":
    """The report of its one study: a comparison where there is one."""
    (part,) = report.parts
    against = changes(report)
    found = against[0][1] if against else comparison_of(part.study, report.threshold)
    if found is not None:
        from perfkit.reports import comparison

        yield comparison.render(part.study, found, width)
    else:
        from perfkit.reports import terminal

        yield terminal.render(part.study, width)
