"""Markdown as GitHub reads it, from strings that may hold anything: escaping, tables, lists, folded parts.

What is cut to keep a report short is counted where it was cut.
"""

from collections.abc import Iterable, Sequence
from typing import Final

#: Bytes of one text after escaping, at most about: a reason from a library may be a page long.
LONGEST: Final = 480
MOST_ROWS: Final = 100
MOST_ITEMS: Final = 40
#: Columns of words; all others hold numbers.
_WORDS: Final = (
    "N", "workload", "impl", "check", "bound", "verdict", "bytes", "level", "varied", "range", "number",
    "source",
)  # fmt: skip
# A comment breaks what would be a mention, a reference or an automatic link, and shows nothing.
_HTML: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@<!-- -->", "#": "#<!-- -->"}
_MARKDOWN: Final = {**_HTML, **{c: f"\\{c}" for c in "\\`*_{}[]|~"}}


def escape(text: str) -> str:
    """`text` on one line, meaning nothing but itself to GitHub: no markup, no HTML, no mention, no link."""
    return _escaped(text, _MARKDOWN)


def escape_html(text: str) -> str:
    """`text` on one line inside an element of HTML, where Markdown means nothing."""
    return _escaped(text, _HTML)


def _escaped(text: str, special: dict[str, str]) -> str:
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    found: list[str] = []
    size = 0
    for character in flat:
        found.append(special.get(character, character))
        size += len(found[-1].encode())
        if size > LONGEST:
            found.append("...")
            break
    return "".join(found).replace("://", ":<!-- -->//").replace("www.", "www<!-- -->.")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all cells are escaped here."""
    rule = "|".join("---" if name in _WORDS else "---:" for name in columns)
    lines = [f"| {' | '.join(escape(name) for name in columns)} |", f"|{rule}|"]
    lines += [f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows[:MOST_ROWS]]
    more = len(rows) - MOST_ROWS
    return "\n".join(lines) + (f"\n\n{more} more rows are not shown.\n" if more > 0 else "\n")


def bullets(items: Iterable[str]) -> str:
    """A list; items are escaped here."""
    found = list(items)
    lines = [f"- {escape(item)}" for item in found[:MOST_ITEMS]]
    more = len(found) - MOST_ITEMS
    return "\n".join([*lines, *([f"- {more} more are not shown."] if more > 0 else [])]) + "\n"


def folded(summary: str, body: str) -> str:
    """A part that opens on a click; the summary is escaped here."""
    return f"<details>\n<summary>{escape_html(summary)}</summary>\n\n{body.rstrip()}\n\n</details>\n"
