"""How much of a K/V cache holds no token: requests played step by step against a way of handing out slots.

One decode step gives every active request one token. In each step, in this order: requests that have arrived
queue up; active requests grow, the oldest first, and where there is no page the newest is swapped out to the
head of the queue; unless that happened, requests are taken up in order of arrival as long as the first one
fits; the state is noted; requests with all their tokens leave. A request that is taken up brings its prompt,
or what it held when it was swapped out, and gets a token in the same step.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from perfkit.analysis.cache_slots import Cache, ContiguousCache, Held, PagedCache, Slots
from perfkit.analysis.cache_trace import Request
from perfkit.errors import UsageError

#: Largest page that is simulated; vLLM's default is 16.
MOST_PAGE: Final = 256
#: A longer trace would take minutes.
MOST_TOKENS: Final = 20_000_000

Kind = Literal["contiguous", "contiguous-pow2", "contiguous-exact", "paged"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How slots are handed out.

    contiguous: `max_len` slots a request (Orca Max in Kwon et al., section 6.1); contiguous-pow2: the prompt
    and the generated tokens rounded up to a power of two (Orca Pow2); contiguous-exact: what it will need,
    which only an oracle knows (Orca Oracle); paged: pages of `page` slots as tokens come.
    """

    kind: Kind
    page: int | None = None

    @property
    def name(self) -> str:
        """`paged 16`, or the kind alone."""
        return f"{self.kind} {self.page}" if self.page else self.kind

    def reserves(self, request: Request, max_len: int) -> int:
        """Slots of the region of a request; of contiguous policies only."""
        if self.kind == "contiguous":
            return max_len
        if self.kind == "contiguous-pow2":
            return min(request.prompt + (1 << (request.generated - 1).bit_length()), max_len)
        return request.tokens


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One decode step: the state after every active request got its token, and what happened.

    `preempted` requests were swapped out in it; `restored` are tokens that came back with such requests.
    """

    at: int
    slots: Slots
    active: int
    waiting: int
    preempted: int
    restored: int


def policies(pages: Sequence[int]) -> tuple[Policy, ...]:
    """The contiguous ones, and one a page size; UsageError for a size beyond 1 to 256."""
    wrong = next((page for page in pages if not 1 <= page <= MOST_PAGE), None)
    if wrong is not None:
        raise UsageError(f"--page must be from 1 to {MOST_PAGE} tokens, not {wrong}")
    contiguous = (Policy(kind="contiguous"), Policy(kind="contiguous-pow2"), Policy(kind="contiguous-exact"))
    return (*contiguous, *(Policy(kind="paged", page=page) for page in dict.fromkeys(pages)))


def make_cache(policy: Policy, capacity: int, max_len: int) -> Cache:
    """An empty cache of `capacity` slots."""
    if policy.page:
        return PagedCache(capacity, policy.page)
    return ContiguousCache(capacity, lambda request: policy.reserves(request, max_len))


def check(requests: Sequence[Request], policy: Policy, capacity: int, max_len: int) -> None:
    """UsageError where a request could never be served, or all of them would take too long."""
    longest = max(requests, key=lambda request: request.tokens)
    if longest.tokens > max_len:
        raise UsageError(
            f"a request of {longest.prompt} + {longest.generated} tokens is longer than --max-len {max_len}",
            f"--max-len {longest.tokens} or more",
        )
    if max_len > capacity:
        raise UsageError(
            f"--memory holds {capacity} tokens, too few for one request of --max-len {max_len}",
            "raise --memory or lower --max-len",
        )
    if policy.page and longest.tokens > capacity // policy.page * policy.page:
        raise UsageError(
            f"--memory holds {capacity // policy.page} pages of {policy.page} tokens, "
            f"too few for a request of {longest.tokens}",
            "raise --memory or take smaller pages",
        )
    if sum(request.generated for request in requests) > MOST_TOKENS:
        raise UsageError(
            f"the requests generate more than {MOST_TOKENS:,} tokens", "simulate a part of the trace"
        )


def simulate(requests: Sequence[Request], cache: Cache) -> Iterator[Step]:
    """Every step in which a request is active; steps without any are left out. `requests` by arrival.

    A request that fits into no empty cache would wait for ever: `check` refuses it.
    """
    coming = deque(Held(request=request, tokens=request.prompt) for request in requests)
    waiting: deque[Held] = deque()
    active: list[Held] = []
    at = 0
    while coming or waiting or active:
        if not waiting and not active:
            at = max(at, coming[0].request.step)
        while coming and coming[0].request.step <= at:
            waiting.append(coming.popleft())
        preempted = _grow(active, waiting, cache)
        restored = 0 if preempted else _admit(active, waiting, cache)
        yield Step(
            at=at,
            slots=cache.slots(waiting[0] if waiting else None),
            active=len(active),
            waiting=len(waiting),
            preempted=preempted,
            restored=restored,
        )
        active = list(_staying(active, cache))
        at += 1


def _grow(active: list[Held], waiting: deque[Held], cache: Cache) -> int:
    """A token for every active request; how many of the newest had to go."""
    done = preempted = 0
    while done < len(active):
        if cache.grow(active[done]):
            done += 1
            continue
        newest = active.pop()
        cache.release(newest)
        waiting.appendleft(newest)
        preempted += 1
    return preempted


def _admit(active: list[Held], waiting: deque[Held], cache: Cache) -> int:
    """Take up what fits, in order; the tokens that were brought back."""
    restored = 0
    while waiting:
        tokens = waiting[0].tokens
        if not cache.admit(waiting[0]):
            break
        held = waiting.popleft()
        active.append(held)
        restored += tokens if tokens > held.request.prompt else 0
    return restored


def _staying(active: Iterable[Held], cache: Cache) -> Iterator[Held]:
    for held in active:
        if held.tokens < held.request.tokens:
            yield held
        else:
            cache.release(held)
