"""Titles, indented lines and notes: what every output in the terminal is put together from."""

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text


def title(text: str, rest: str = "") -> Text:
    """A bold title, and behind it what the part shows."""
    return Text.assemble((text, "bold"), (f"  {rest}" if rest else "", "dim"))


def line(text: str | Text, style: str = "") -> RenderableType:
    """Text that is indented, its folded lines too."""
    return Padding(Text(text, style) if isinstance(text, str) else text, (0, 0, 0, 2), expand=False)


def note(text: str) -> RenderableType:
    """What one should know but need not read first: indented and dim."""
    return line(text, "dim")
