"""The simulation of a K/V cache: small cases by hand, invariants, allocators against counting."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import msgspec
import pytest

from perfkit.analysis.cache_outcome import POINTS, CacheStudy, Shape, cache_study, outcome
from perfkit.analysis.cache_slots import ContiguousCache, Held, PagedCache, Slots
from perfkit.analysis.cache_synthetic import synthetic_trace
from perfkit.analysis.cache_trace import Request
from perfkit.analysis.cache_waste import Policy, Step, check, make_cache, policies, simulate
from perfkit.errors import UsageError

CONTIGUOUS, POW2, EXACT = policies([])
SHAPE = Shape(layers=2, kv_heads=3, head_dim=8, dtype="bf16")


def request(
    arrival: float, prompt: int, generated: int, prefix: str | None = None, shared: int = 0
) -> Request:
    return Request(arrival=arrival, prompt=prompt, generated=generated, prefix=prefix, prefix_tokens=shared)


def paged(page: int) -> Policy:
    return Policy(kind="paged", page=page)


def played(requests: Sequence[Request], policy: Policy, capacity: int, max_len: int) -> list[Step]:
    return list(simulate(requests, make_cache(policy, capacity, max_len)))


def kinds(steps: Sequence[Step]) -> list[tuple[int, int, int, int]]:
    return [(s.slots.used, s.slots.reserved, s.slots.unused, s.slots.external) for s in steps]


#: A holds 6, 7, 8 tokens in the steps 0, 1, 2; B holds 3, 4 in the steps 1, 2.
TWO = (request(0, 5, 3), request(1, 2, 2))


def test_two_requests_in_a_contiguous_cache() -> None:
    steps = played(TWO, CONTIGUOUS, capacity=32, max_len=16)
    assert kinds(steps) == [
        (6, 2, 8, 0),  # A will hold 8 of its 16: 2 come later, 8 never
        (7 + 3, 1 + 1, 8 + 12, 0),  # B will hold 4 of its 16
        (8 + 4, 0, 8 + 12, 0),
    ]
    assert [s.slots.free for s in steps] == [16, 0, 0]
    assert [s.active for s in steps] == [1, 2, 2]
    found = outcome(TWO, CONTIGUOUS, 32, 16)
    # used 6 + 10 + 12 = 28, reserved 2 + 2 + 0 = 4, unused 8 + 20 + 20 = 48
    assert found.waste == (4 + 48) / (28 + 4 + 48)
    assert (found.used, found.reserved, found.unused) == (28 / 3, 4 / 3, 48 / 3)
    assert (found.peak_waste, found.peak_used, found.peak_allocated) == (22, 12, 32)
    assert (found.batch, found.peak_batch, found.steps, found.throughput) == (5 / 3, 2, 3, 5 / 3)
    assert found.peak_table_bytes == found.preempted == found.wait == 0


def test_two_requests_in_pages_of_four() -> None:
    steps = played(TWO, paged(4), capacity=32, max_len=16)
    assert kinds(steps) == [
        (6, 2, 0, 0),  # A: 2 pages of 4, its last 2 slots come later
        (10, 1 + 1, 0, 0),  # A: 7 of 8, B: 3 of 4
        (12, 0, 0, 0),
    ]
    found = outcome(TWO, paged(4), 32, 16)
    assert found.waste == 4 / (28 + 4)
    assert found.peak_table_bytes == 3 * 4  # 2 pages of A and 1 of B, 4 bytes each
    assert found.free == pytest.approx(32 - (8 + 12 + 12) / 3)


def test_the_end_of_a_last_page_is_never_used() -> None:
    # 5 tokens, then 6, in 2 pages of 4: the 8th slot and the 7th are never reached.
    assert kinds(played([request(0, 4, 2)], paged(4), 8, 8)) == [(5, 1, 2, 0), (6, 0, 2, 0)]


def test_what_each_contiguous_policy_reserves() -> None:
    one = request(0, 100, 25)  # 25 tokens are rounded up to 32
    assert [p.reserves(one, 2048) for p in (CONTIGUOUS, POW2, EXACT)] == [2048, 132, 125]
    assert POW2.reserves(request(0, 100, 33), 140) == 140  # 164, but never beyond max_len
    assert [POW2.reserves(request(0, 1, n), 99) - 1 for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]


def test_holes_that_are_too_small_one_by_one_are_external_fragmentation() -> None:
    # [0, 4) and [8, 12) leave after step 0, [4, 8) stays for 3 steps; then 8 slots are asked for.
    requests = [request(0, 3, 1), request(0, 1, 3), request(0, 3, 1), request(0, 7, 1)]
    steps = played(requests, EXACT, capacity=12, max_len=12)
    assert [s.slots.external for s in steps] == [0, 8, 8, 0]  # full at first; then free, in two halves
    assert [s.slots.scattered for s in steps] == [0, 8, 8, 0]  # 8 would have been enough
    assert [s.slots.free for s in steps] == [0, 8, 8, 4]
    assert [s.waiting for s in steps] == [1, 1, 1, 0]  # the holes grow together after step 2
    # Two pages that do not lie together are as good: the last one is taken up in step 1.
    assert [s.active for s in played(requests, paged(4), 12, 12)] == [3, 2, 1]


def test_free_memory_that_is_too_little_is_of_no_use_but_not_scattered() -> None:
    steps = played([request(0, 4, 2), request(0, 4, 1)], EXACT, capacity=10, max_len=10)
    assert [(s.slots.free, s.slots.external, s.waiting) for s in steps] == [(4, 4, 1), (4, 4, 1), (5, 0, 0)]
    assert {s.slots.scattered for s in steps} == {0}


def test_first_fit_takes_the_first_hole_not_the_best() -> None:
    cache = ContiguousCache(20, lambda r: r.tokens)
    first, second, third, fourth = (Held(request=request(0, n - 1, 1), tokens=n - 1) for n in (8, 4, 4, 4))
    assert all(cache.admit(one) for one in (first, second, third, fourth))
    cache.release(first)  # [0, 8) is free
    cache.release(third)  # and [12, 16), which would fit exactly
    late = Held(request=request(0, 3, 1), tokens=3)
    assert cache.admit(late)
    assert (late.start, late.size) == (0, 4)


def test_who_finds_no_page_is_swapped_out_and_comes_back() -> None:
    # 6 slots: A holds 3, 4, 5 tokens; B 2, then nothing until A has left, then 3 and 4.
    steps = played([request(0, 2, 3), request(0, 1, 3)], paged(1), capacity=6, max_len=6)
    assert [s.slots.used for s in steps] == [5, 4, 5, 3, 4]
    assert [s.active for s in steps] == [2, 1, 1, 1, 1]
    assert [s.waiting for s in steps] == [0, 1, 1, 0, 0]
    assert [s.preempted for s in steps] == [0, 1, 0, 0, 0]
    assert [s.restored for s in steps] == [0, 0, 0, 2, 0]  # its prompt of 1, and the 1 that it had generated


def test_the_newest_makes_room_for_the_oldest() -> None:
    # 6 slots are full after step 0: 4 of A and 2 of B. A grows, so B has to go.
    steps = played([request(0, 3, 3), request(0, 1, 3)], paged(1), capacity=6, max_len=6)
    assert [(s.slots.used, s.preempted) for s in steps[:2]] == [(6, 0), (5, 1)]


def test_nobody_overtakes() -> None:
    # The second does not fit beside the first; the third would, and waits behind the second all the same.
    requests = [request(0, 5, 2), request(0, 6, 1), request(0, 1, 1)]
    for policy in (EXACT, paged(1)):
        assert [s.active for s in played(requests, policy, 9, 9)] == [1, 1, 2]


def test_whole_pages_of_a_prefix_are_there_once() -> None:
    # A prefix of 10 has 2 whole pages of 4; its last 2 tokens lie in a page of each request's own.
    requests = [request(0, 11, 1, "s", 10), request(0, 10, 2, "s", 10)]
    first, second = played(requests, paged(4), capacity=32, max_len=16)
    # 12 and 11 tokens, 8 of them common: 15 held in 2 + 1 + 1 pages; the tables have 3 entries each.
    assert (first.slots.used, first.slots.saved, first.slots.allocated) == (12 + 11 - 8, 8, 16)
    assert first.slots.table_bytes == 6 * 4
    # The first has left; the common pages stay for the second.
    assert (second.slots.used, second.slots.saved, second.slots.allocated) == (12, 0, 12)
    contiguous = played(requests, EXACT, 32, 16)[0].slots
    assert (contiguous.used, contiguous.saved) == (23, 0)


def test_prefixes_of_other_names_and_lengths() -> None:
    # Pages of 2: "a" with 4 and 6 tokens have 2 pages in common; "b" has none with them.
    requests = [request(0, 7, 2, name, n) for name, n in (("a", 4), ("a", 6), ("a", 6), ("b", 6))]
    slots = played(requests, paged(2), capacity=99, max_len=16)[0].slots
    # a, a, a: pages 0 and 1 by three (2 copies spared each), page 2 by two (1 spared): 5 pages of 2.
    assert (slots.saved, slots.used) == (10, 4 * 8 - 10)


def test_idle_steps_are_left_out_but_counted() -> None:
    requests = [request(10.5, 2, 2), request(1_000_000, 2, 3)]
    steps = played(requests, paged(16), 64, 16)
    assert [s.at for s in steps] == [11, 12, 1_000_000, 1_000_001, 1_000_002]
    found = outcome(requests, paged(16), 64, 16)
    assert (found.busy, found.steps, found.batch) == (5, 1_000_003 - 11, 1.0)
    assert found.throughput == 5 / found.steps


def test_waiting_is_counted_in_steps() -> None:
    # One region: the second arrives at 0 and waits 3 steps for the first.
    assert outcome([request(0, 1, 3), request(0, 1, 1)], CONTIGUOUS, 8, 8).wait == 3 / 2


# Invariants.

TRACES = {
    "crowded": synthetic_trace(60, 1, 1.0, 300),
    "sparse": synthetic_trace(30, 2, 0.002, 300),
    "prefix": synthetic_trace(60, 3, 0.5, 300, prefix_tokens=37),
    "odd": tuple(
        request(i // 3, 1 + i * 7 % 50, 1 + i * 13 % 70, "ab"[i % 2], 1 + i * 3 % (1 + i * 7 % 50))
        for i in range(80)
    ),
}  # fmt: skip


@pytest.mark.parametrize("policy", policies([1, 3, 16, 100, 256]), ids=lambda policy: policy.name)
@pytest.mark.parametrize("name", TRACES)
def test_invariants(name: str, policy: Policy) -> None:
    requests, capacity, max_len = TRACES[name], 1111, 300
    cache = make_cache(policy, capacity, max_len)
    steps = list(simulate(requests, cache))
    for step in steps:
        slots = step.slots
        assert 0 <= slots.used <= slots.allocated <= slots.capacity <= capacity
        assert min(slots.reserved, slots.unused, slots.saved) >= 0
        assert 0 <= slots.scattered <= slots.external <= slots.free
        assert slots.wasted == slots.reserved + slots.unused + slots.external
        if policy.page:
            assert slots.allocated % policy.page == 0
            assert slots.wasted <= (policy.page - 1) * step.active  # below one page a sequence
            assert slots.external == 0
            assert slots.entries * policy.page >= slots.used + slots.saved
        else:
            assert slots.saved == slots.entries == 0
    # Every policy generates the same tokens, whoever was swapped out: one a step and active request.
    assert sum(step.active for step in steps) == sum(r.generated for r in requests)
    assert steps[-1].at + 1 >= max(r.step + r.generated for r in requests)
    left = cache.slots(None)
    assert (left.allocated, left.saved, left.entries, left.unused) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", TRACES)
def test_pages_of_one_token_waste_nothing(name: str) -> None:
    assert {step.slots.wasted for step in played(TRACES[name], paged(1), 1111, 300)} == {0}


def test_an_oracle_reserves_nothing_that_is_never_used() -> None:
    assert {step.slots.unused for step in played(TRACES["crowded"], EXACT, 1111, 300)} == {0}


def test_the_crowded_traces_are_crowded() -> None:
    """The invariants are of states that are hard to keep: requests wait, are swapped out, and leave holes."""
    for name in ("crowded", "prefix", "odd"):
        assert outcome(TRACES[name], paged(16), 1111, 300).preempted > 5
    assert outcome(TRACES["crowded"], POW2, 1111, 300).scattered > 10
    assert outcome(TRACES["prefix"], paged(16), 1111, 300).saved > 100
    assert outcome(TRACES["sparse"], paged(16), 1111, 300).busy < TRACES["sparse"][-1].arrival


def test_room_for_all_at_once_is_the_same_for_all() -> None:
    """With memory enough nobody waits: all policies take the same steps."""
    found = [outcome(TRACES["crowded"], policy, 60 * 300, 300) for policy in policies([1, 16])]
    assert {(one.steps, one.batch, one.wait, one.preempted) for one in found} == {
        (found[0].steps, found[0].batch, 0.0, 0)
    }
    assert len({one.used for one in found}) == 1


# The allocators against counting slot by slot.


def test_the_paged_cache_against_counting_pages() -> None:
    random, page = Random(5), 4
    cache, active = PagedCache(203, page), list[Held]()
    for _ in range(4000):
        move = random.random()
        if move < 0.3:
            shared = random.choice([0, 3, 8, 13])
            new = request(
                0, shared + 1 + int(random.random() * 9), 9, random.choice("xy") if shared else None, shared
            )
            held = Held(request=new, tokens=new.prompt)
            before = cache.slots(None)
            if cache.admit(held):
                active.append(held)
            else:
                assert (cache.slots(None), held.tokens) == (before, new.prompt)
        elif active and move < 0.8:
            held = random.choice(active)
            if held.tokens < held.request.tokens:
                cache.grow(held)
        elif active:
            cache.release(active.pop(int(random.random() * len(active))))
        assert cache.slots(None) == counted(active, page, 203 // page)


def counted(active: Sequence[Held], page: int, pages: int) -> Slots:
    """The state by listing every slot: (owner, position), where common pages belong to their prefix."""
    taken, filled, later, entries, tokens = set(), set(), set(), 0, 0
    for at, held in enumerate(active):
        whole = held.request.prefix_tokens // page * page
        table = -(-held.tokens // page)
        entries += table
        tokens += held.tokens
        for slot in range(table * page):
            key = (held.request.prefix if slot < whole else at, slot)
            taken.add(key)
            if slot < held.tokens:
                filled.add(key)
            elif slot < held.request.tokens:
                later.add(key)
    return Slots(
        capacity=pages * page,
        used=len(filled),
        reserved=len(later),
        unused=len(taken) - len(filled) - len(later),
        external=0,
        scattered=0,
        saved=tokens - len(filled),
        entries=entries,
    )


def test_the_contiguous_cache_against_an_array_of_slots() -> None:
    random, capacity = Random(6), 97
    cache, active = ContiguousCache(capacity, lambda r: r.tokens), list[Held]()
    owner: list[int | None] = [None] * capacity
    for turn in range(4000):
        if random.random() < 0.55:
            size = 2 + int(random.random() * 19)
            held = Held(request=request(0, size - 1, 1), tokens=size - 1)
            room = (
                at
                for at in range(capacity - size + 1)
                if not any(o is not None for o in owner[at : at + size])
            )
            start = next(room, None)
            waits = cache.slots(held)
            free = owner.count(None)
            assert waits.free == free
            assert waits.external == (free if start is None else 0)
            assert waits.scattered == (free if start is None and free >= size else 0)
            assert cache.admit(held) == (start is not None)
            if start is not None:
                assert held.start == start
                owner[start : start + size] = [turn] * size
                active.append(held)
        elif active:
            held = active.pop(int(random.random() * len(active)))
            cache.release(held)
            owner[held.start : held.start + held.size] = [None] * held.size


# What cannot be.


def test_pages_from_1_to_256() -> None:
    assert [p.name for p in policies([16, 1, 16])] == [
        "contiguous", "contiguous-pow2", "contiguous-exact", "paged 16", "paged 1",
    ]  # fmt: skip
    for wrong in (0, 257):
        with pytest.raises(UsageError, match=f"--page must be from 1 to 256 tokens, not {wrong}"):
            policies([16, wrong])


def test_what_could_never_be_served_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a request of 5 \+ 3 tokens is longer than --max-len 7"):
        check(TWO, CONTIGUOUS, 100, 7)
    with pytest.raises(UsageError, match="--memory holds 15 tokens, too few for one request of --max-len 16"):
        check(TWO, paged(4), 15, 16)
    with pytest.raises(UsageError, match="--memory holds 2 pages of 3 tokens, too few for a request of 8"):
        check(TWO, paged(3), 8, 8)
    check(TWO, paged(4), 8, 8)
    assert [s.slots.used for s in played(TWO, paged(4), 8, 8)] == [6, 7, 8, 3, 4]  # one after the other
    with pytest.raises(UsageError, match="generate more than 20,000,000 tokens"):
        check([request(0, 1, 10_000_001)] * 2, CONTIGUOUS, 1 << 40, 1 << 30)


# The study.


def test_bytes_of_a_token() -> None:
    assert SHAPE.token_bytes == 2 * 2 * 3 * 8 * 2  # K and V, 2 layers, 3 heads, d 8, 2 bytes
    assert msgspec.structs.replace(SHAPE, dtype="fp8").token_bytes == 96
    # OPT-13B: 800 KB a token (Kwon et al., section 3).
    assert Shape(layers=40, kv_heads=40, head_dim=128, dtype="fp16").token_bytes == 800 * 1024
    with pytest.raises(UsageError, match="unknown dtype 'int4'"):
        Shape(layers=1, kv_heads=1, head_dim=1, dtype="int4")


def study(requests: Sequence[Request], memory: int, max_len: int) -> CacheStudy:
    return cache_study(
        requests, policies([4]), source="test", shape=SHAPE, memory_bytes=memory, max_len=max_len
    )


def test_memory_is_whole_slots() -> None:
    found = study(TWO, 192 * 33 - 1, 16)  # one byte short of 33 slots
    assert {one.capacity for one in found.outcomes} == {32}
    assert (found.requests, found.prompt, found.generated) == (2, 7, 5)
    with pytest.raises(UsageError, match="--memory holds 15 tokens"):
        study(TWO, 192 * 16 - 1, 16)


@pytest.mark.parametrize("steps", [1, 2, 2 * POINTS, 2 * POINTS + 1, 5000])
def test_the_timeline_is_thinned_and_keeps_both_ends(steps: int) -> None:
    one = [request(0, 1, steps)]
    exact = played(one, paged(16), 1 << 20, 1 << 20)
    found = outcome(one, paged(16), 1 << 20, 1 << 20).timeline
    assert len(found) == steps if steps <= 2 * POINTS else POINTS <= len(found) <= 2 * POINTS + 1
    assert (found[0], found[-1]) == (exact[0], exact[-1])
    assert all(exact[step.at] == step for step in found)
    gaps = {b.at - a.at for a, b in pairwise(found[:-1])}
    assert len(gaps) <= 1  # even distances, but for the last


@pytest.mark.parametrize("gap", [1, 2, 7, 1000, 10**12])
def test_idle_steps_of_the_timeline_are_empty(gap: int) -> None:
    # Busy in 7, 8, 9, then idle for `gap` steps, then busy for 2.
    requests = [request(7, 1, 3), request(10 + gap, 1, 2)]
    found = outcome(requests, paged(4), 64, 16).timeline
    assert (found[0].at, found[-1].at, len(found) <= 2 * POINTS + 1) == (7, 11 + gap, True)
    stride = found[1].at - found[0].at
    expected = {*range(7, 12 + gap, stride), 11 + gap}
    assert {step.at for step in found} == expected
    assert [step.at for step in found] == sorted(expected)
    for step in found:
        busy = step.at < 10 or step.at >= 10 + gap
        assert (step.active, step.slots.allocated) == ((1, 4) if busy else (0, 0))
        assert step.slots.capacity == 64


def test_published_shares_of_the_contiguous_cache() -> None:
    """OPT-13B, 12 GiB of cache, 2048 tokens a request. Figure 2 of Kwon et al. has for Orca Max 20.4 % token
    states, 13.3 % reserved, 57.3 % internal and 8.9 % external fragmentation and others. Our lengths have
    nearly the means of theirs, so within 3 points the same shares have to come out.
    """
    shape = Shape(layers=40, kv_heads=40, head_dim=128, dtype="fp16")
    requests = synthetic_trace(1000, 0, 0.1, 2048)
    found = cache_study(
        requests, [CONTIGUOUS], source="", shape=shape, memory_bytes=12 << 30, max_len=2048
    ).outcomes[0]
    assert found.capacity == 15728  # 12 GiB / 800 KiB
    assert found.peak_batch == 7  # 15728 / 2048
    parts = (found.used, found.reserved, found.unused, found.external)
    assert [part / found.capacity for part in parts] == pytest.approx([0.204, 0.133, 0.573, 0.089], abs=0.03)
    # What lies behind the seventh region: as long as somebody waits, 15728 - 7 * 2048 slots, 8.9 %.
    assert {step.slots.external for step in found.timeline if step.waiting} == {15728 - 7 * 2048}
    assert found.scattered == 0  # it would not be enough for one more
