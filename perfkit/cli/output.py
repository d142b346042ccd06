"""What every reporting command does with a study: terminal, JSON, CSV."""

import sys
from pathlib import Path

from perfkit.analysis.study import Study
from perfkit.errors import UsageError
from perfkit.reports.files import FORMATS, check_target, write

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


def emit(study: Study, targets: dict[str, str | None]) -> None:
    """Write the files, and the terminal report unless standard output is taken."""
    for name, path in targets.items():
        if path:
            write(FORMATS[name](study), path)
            if path != "-":
                print(f"wrote {path}", file=sys.stderr)
    if "-" in targets.values():
        return
    from rich.console import Console

    from perfkit.reports.terminal import render

    console = Console(highlight=False, soft_wrap=False)
    width = max(WIDTH, min(console.width, 120)) if console.is_terminal else WIDTH
    with console.capture() as captured:
        console.print(render(study, width))
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
