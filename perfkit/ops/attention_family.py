"""The ops beside plain attention: decoding over a K/V cache, in pages too, and sliding windows.

Each has attention's workload with defaults of its own, and those implementations that people choose among.
"""

from typing import Any, Final

import msgspec

from perfkit.errors import UsageError
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_variants import variants
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Op


def _row(name: str, /, **changed: Any) -> Implementation:
    """A row of `attention`, with changes."""
    found = ATTENTION.implementation(name)
    assert found is not None, name
    return msgspec.structs.replace(found, **changed)


_PEERS: Final = tuple(_row(f"sdpa-{name}") for name in ("flash", "cudnn", "efficient", "math"))
_DECODE: Final = _row("flash-decode", named_only=False)


def _in_one_piece(asked: AttentionWorkload) -> AttentionWorkload:
    """The same cache without pages, in which no prefix can be shared."""
    return msgspec.structs.replace(asked, page=0, prefix=0)


def _causal(asked: AttentionWorkload) -> AttentionWorkload:
    return msgspec.structs.replace(asked, pattern=None, causal=True)


def _needs_pages(w: AttentionWorkload) -> str | None:
    if not w.page:
        return "the cache has no pages: give --page"
    return _DECODE.refuses(w) if _DECODE.refuses else None


def _needs_window(asked: AttentionWorkload) -> AttentionWorkload:
    if asked.pattern is None:
        raise UsageError("there is no window", "give --window, such as --window 4096")
    return asked


DECODE: Final = msgspec.structs.replace(
    ATTENTION,
    name="decode-attention",
    defaults={"seq_q": 1},
    cached=True,
    implementations=(
        _DECODE,
        *variants(_DECODE),
        _row("standard"),
        _row("flash", named_only=True),
        _row("flash-triton"),
        *_PEERS,
        _row("gathered"),
        _row("flex"),
        _row("sdpa"),
        _row("reference"),
    ),
)

PAGED: Final = msgspec.structs.replace(
    ATTENTION,
    name="paged-decode-attention",
    defaults={"seq_q": 1, "page": 16},
    cached=True,
    implementations=(
        msgspec.structs.replace(
            _DECODE,
            name="paged-decode",
            description="flash-decode over a cache in pages",
            refuses=_needs_pages,
        ),
        msgspec.structs.replace(
            _DECODE,
            description="the same cache in one piece for each sequence",
            shaped=_in_one_piece,
        ),
        _row("gathered", named_only=False),
        *(msgspec.structs.replace(row, shaped=_in_one_piece, named_only=True) for row in _PEERS[:2]),
        _row("reference"),
    ),
)

WINDOW: Final = msgspec.structs.replace(
    ATTENTION,
    name="sliding-window-attention",
    defaults={"pattern": "window:4096"},
    implementations=(
        _row("block-sparse", named_only=False, shaped=_needs_window),
        _row("flash", name="full", description="all earlier keys, by flash", named_only=True, shaped=_causal),
        _row("flex"),
        _row("sdpa-math"),
        _row("sdpa"),
        _row("reference"),
    ),
)

FAMILY: Final[tuple[Op, ...]] = (DECODE, PAGED, WINDOW)
