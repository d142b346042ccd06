"""Two ways of handing out a K/V cache, exact to the slot. A slot holds K and V of one token in all layers.

Contiguous: a region of one address space for each request, found by first fit. Paged: pages of P slots, taken
as tokens come, whole pages of a common prefix only once. Kwon et al., arXiv 2309.06180, sections 3.1 and 4.
"""

import bisect
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from perfkit.analysis.cache_trace import Request

#: An entry of a block table is a 32-bit page number.
ENTRY_BYTES: Final = 4


class Held(msgspec.Struct):
    """A request on its way: the tokens that it holds or, while it waits, comes back with; its region."""

    request: Request
    tokens: int
    start: int = 0
    size: int = 0


class Slots(msgspec.Struct, frozen=True, kw_only=True):
    """What the slots are doing: used + reserved + unused + free = capacity; `external` is part of `free`.

    `used` hold a token, those of shared pages counted once; `reserved` will hold one before their request
    ends; `unused` are taken and never will. `external` is free memory that is of no use because the request
    that waits fits into no hole of it; `scattered` is as much of it as would be enough if it lay together.
    `saved` are the copies of tokens that sharing spares, `entries` those of all block tables.
    """

    capacity: int
    used: int
    reserved: int
    unused: int
    external: int
    scattered: int
    saved: int
    entries: int

    @property
    def allocated(self) -> int:
        """Slots that are handed out."""
        return self.used + self.reserved + self.unused

    @property
    def free(self) -> int:
        """Slots that are not."""
        return self.capacity - self.allocated

    @property
    def wasted(self) -> int:
        """The three kinds of waste: reserved, never used, and external fragmentation."""
        return self.reserved + self.unused + self.external

    @property
    def table_bytes(self) -> int:
        """Bytes of all block tables; one table serves all layers."""
        return self.entries * ENTRY_BYTES


class Cache(Protocol):
    """What the simulation asks of a cache."""

    def admit(self, held: Held) -> bool:
        """Take up a request with its tokens and one more; False, and nothing changed, where it cannot."""

    def grow(self, held: Held) -> bool:
        """One more token; False, and nothing changed, where there is no slot for it."""

    def release(self, held: Held) -> None:
        """Free all that it holds, but for what others share."""

    def slots(self, waiting: Held | None) -> Slots:
        """The state, seen by the request that waits first."""


class ContiguousCache:
    """Regions of `reserve(request)` slots, each in the first hole that is large enough."""

    def __init__(self, capacity: int, reserve: Callable[[Request], int]) -> None:
        self._capacity, self._reserve = capacity, reserve
        self._holes = [(0, capacity)]  # (start, size), by start; neighbours are never adjacent
        self._used = self._taken = self._unused = 0

    def admit(self, held: Held) -> bool:
        """See Cache."""
        size = self._reserve(held.request)
        at = next((i for i, hole in enumerate(self._holes) if hole[1] >= size), None)
        if at is None:
            return False
        start, room = self._holes.pop(at)
        if room > size:
            self._holes.insert(at, (start + size, room - size))
        held.start, held.size = start, size
        held.tokens += 1
        self._used += held.tokens
        self._taken += size
        self._unused += size - held.request.tokens
        return True

    def grow(self, held: Held) -> bool:
        """See Cache. Always True: the slot was reserved."""
        held.tokens += 1
        self._used += 1
        return True

    def release(self, held: Held) -> None:
        """See Cache."""
        self._used -= held.tokens
        self._taken -= held.size
        self._unused -= held.size - held.request.tokens
        start, end = held.start, held.start + held.size
        at = bisect.bisect(self._holes, (start, 0))
        if at < len(self._holes) and self._holes[at][0] == end:
            end += self._holes.pop(at)[1]
        if at and sum(self._holes[at - 1]) == start:
            at -= 1
            start = self._holes.pop(at)[0]
        self._holes.insert(at, (start, end - start))

    def slots(self, waiting: Held | None) -> Slots:
        """See Cache."""
        free = self._capacity - self._taken
        largest = max((size for _, size in self._holes), default=0)
        asked = self._reserve(waiting.request) if waiting else 0
        return Slots(
            capacity=self._capacity,
            used=self._used,
            reserved=self._taken - self._used - self._unused,
            unused=self._unused,
            external=free if asked > largest else 0,
            scattered=free if free >= asked > largest else 0,
            saved=0,
            entries=0,
        )


class PagedCache:
    """Pages of `page` slots through block tables; what does not make a whole page of `capacity` is not used.

    Whole pages of a prefix are shared as long as a request with it is in the cache. The page in which the
    prefix ends is copied for each request: its own first token would be written into it.
    """

    def __init__(self, capacity: int, page: int) -> None:
        self._page, self._pages = page, capacity // page
        self._free = self._pages
        self._sharers: dict[tuple[str | None, int], int] = {}
        self._used = self._unused = self._saved = self._entries = 0

    def admit(self, held: Held) -> bool:
        """See Cache."""
        shared = self._shared(held.request)
        pages = self._pages_of(held.tokens + 1)
        new = pages - sum(key in self._sharers for key in shared)
        if new > self._free:
            return False
        held.tokens += 1
        for key in shared:
            sharers = self._sharers.get(key, 0)
            self._sharers[key] = sharers + 1
            self._saved += self._page if sharers else 0
        self._free -= new
        self._entries += pages
        self._used += held.tokens
        self._unused += self._never(held, pages)
        return True

    def grow(self, held: Held) -> bool:
        """See Cache."""
        if held.tokens % self._page == 0:
            if not self._free:
                return False
            self._free -= 1
            self._entries += 1
            self._unused += self._never(held, held.tokens // self._page + 1)
        held.tokens += 1
        self._used += 1
        return True

    def release(self, held: Held) -> None:
        """See Cache."""
        shared, pages = self._shared(held.request), self._pages_of(held.tokens)
        self._free += pages - len(shared)
        for key in shared:
            left = self._sharers[key] - 1
            if left:
                self._sharers[key] = left
                self._saved -= self._page
            else:
                del self._sharers[key]
                self._free += 1
        self._entries -= pages
        self._used -= held.tokens
        self._unused -= self._never(held, pages)

    def slots(self, waiting: Held | None) -> Slots:  # noqa: ARG002
        """See Cache. Any free page serves any request that grows, so none of them is of no use."""
        used, taken = self._used - self._saved, (self._pages - self._free) * self._page
        return Slots(
            capacity=self._pages * self._page,
            used=used,
            reserved=taken - used - self._unused,
            unused=self._unused,
            external=0,
            scattered=0,
            saved=self._saved,
            entries=self._entries,
        )

    def _shared(self, request: Request) -> list[tuple[str | None, int]]:
        return [(request.prefix, at) for at in range(request.prefix_tokens // self._page)]

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self._page)

    def _never(self, held: Held, pages: int) -> int:
        """Slots of the last page that its request will not reach."""
        return max(pages * self._page - held.request.tokens, 0)
