"""The progress bar: which implementation is at which stage. On standard error, and only for people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, str], None]]:
    """Give the function to call with (implementation, stage); `total` implementations fill the bar."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _impl, _what: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(20),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        seen: list[str] = []

        def stage(impl: str, what: str) -> None:
            if impl not in seen:
                seen.append(impl)
            bar.update(task, completed=len(seen) - 1, description=f"{impl}: {what}")

        yield stage
