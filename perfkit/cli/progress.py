"""The progress bar: which implementation is at which stage. On standard error, and only for people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: Columns that the bar, the count and the time keep, whatever there is to say.
KEPT: Final = 24


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, str], None]]:
    """Give the function to call with (implementation, stage); `total` implementations fill the bar."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _impl, _what: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns = (
        BarColumn(20),
        TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        seen: list[str] = []

        def stage(impl: str, what: str) -> None:
            if impl not in seen:
                seen.append(impl)
            what = what[: max(0, console.width - KEPT)]
            room = max(0, console.width - KEPT - len(what))
            named = impl if len(impl) <= room else f"{impl[: max(0, room - 1)]}…"
            # At once: a compiler may hold Python's lock, and the bar's own thread wait for it.
            bar.update(task, completed=len(seen) - 1, description=f"{named}: {what}", refresh=True)

        yield stage
