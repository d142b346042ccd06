"""The L2 model by hand, and what must hold whatever its fitted constants are."""

import itertools
from typing import Any

import pytest

from perfkit.model.cache import (
    LOST,
    LOST_ALONE,
    RESIDENT,
    RESIDENT_ALONE,
    Prediction,
    lost_share,
    missed_share,
    resident_blocks,
    shared_passes,
)

L2 = 1_000_000


def passes(blocks: int, heads: int, head_bytes: int, resident: int, l2: int = L2) -> Prediction:
    return shared_passes(
        blocks_per_head=blocks, heads=heads, head_bytes=head_bytes, resident_blocks=resident, l2_bytes=l2
    )


def test_constants_are_shares_in_order() -> None:
    assert 0 < RESIDENT < LOST <= 1


#: A size at which nothing stays until the next wave, and a wave still shares one pass.
ONCE = round(0.545 * L2)


def test_what_fits_is_read_once() -> None:
    # 8 blocks at a time are the blocks of one head of 4, and of a second: 2 x 10 kB are 2 % of 1 MB.
    found = passes(blocks=4, heads=16, head_bytes=10_000, resident=8)
    assert found == Prediction(case="fits", passes=1.0, reason="2 head(s) in flight take 2% of L2: they stay")


def test_heads_in_flight_are_at_most_those_there_are() -> None:
    found = passes(blocks=4, heads=2, head_bytes=10_000, resident=1000)
    assert found.reason == "2 head(s) in flight take 2% of L2: they stay"


def test_one_pass_a_wave() -> None:
    # 12 blocks of one head, 4 at a time: 3 waves, and each reads the head's 0.52 MB again.
    found = passes(blocks=12, heads=1, head_bytes=ONCE, resident=4)
    assert found == Prediction(
        case="waves", passes=3.0, reason="1 head(s) in flight take 55% of L2: read once by each of 3 waves"
    )


def test_beyond_l2_each_half_reads_for_itself() -> None:
    # 12 blocks, 4 at a time: 3 waves, each of them reads the head twice.
    found = passes(blocks=12, heads=1, head_bytes=2 * L2, resident=4)
    assert found == Prediction(
        case="waves", passes=6.0, reason="1 head(s) in flight take 200% of L2: read twice by each of 3 waves"
    )
    # Halfway from 0.55 to 1.0 of L2: half of the second reads.
    found = passes(blocks=12, heads=1, head_bytes=round(0.775 * L2), resident=4)
    assert found.passes == pytest.approx(4.5, rel=1e-4)
    assert found.reason.endswith("read more than once by each of 3 waves")
    # One block at a time has nobody to part from.
    assert passes(blocks=7, heads=5, head_bytes=2 * L2, resident=1).passes == 7.0


def test_a_last_wave_that_is_not_full_reads_as_much() -> None:
    assert passes(blocks=13, heads=1, head_bytes=ONCE, resident=4).passes == 4.0  # 4 + 4 + 4 + 1


def test_a_head_that_two_waves_touch_is_read_twice() -> None:
    # 3 heads of 4 blocks, 6 at a time: wave 0 touches heads 0, 1; wave 1 heads 1, 2: 4 reads of 3 heads.
    assert passes(blocks=4, heads=3, head_bytes=ONCE // 2, resident=6).passes == pytest.approx(4 / 3)


def test_waves_of_whole_heads_read_each_head_once() -> None:
    assert passes(blocks=4, heads=4, head_bytes=ONCE // 2, resident=8).passes == 1.0


def test_one_block_at_a_time_reads_all_of_it_each() -> None:
    assert passes(blocks=7, heads=5, head_bytes=2 * L2, resident=1).passes == 7.0


def test_between_the_cases_part_of_each_pass_is_lost() -> None:
    middle = round((RESIDENT_ALONE + LOST_ALONE) / 2 * L2)
    found = passes(blocks=12, heads=1, head_bytes=middle, resident=4)
    assert found.case == "partly"
    assert found.passes == pytest.approx(1 + 0.5 * (3 - 1), rel=1e-4)  # half of two re-reads


def test_lost_share() -> None:
    assert lost_share(round(RESIDENT * L2), L2) == pytest.approx(0, abs=1e-9)
    assert lost_share(round(LOST * L2), L2) == pytest.approx(1)
    assert lost_share(0, L2) == 0
    assert lost_share(round(RESIDENT_ALONE * L2), L2, alone=True) == pytest.approx(0, abs=1e-9)
    assert lost_share(round(LOST_ALONE * L2), L2, alone=True) == pytest.approx(1)
    assert lost_share(100 * L2, L2) == 1


@pytest.mark.parametrize(
    ("size", "share"),
    [
        (0.0, 0.0),
        (0.37, 0.0),
        (0.52, 0.36),  # halfway from 0.37 to 0.67
        (0.67, 0.72),
        (1.135, 0.86),  # halfway from 0.67 to 1.6
        (1.6, 1.0),
        (100.0, 1.0),
    ],
)
def test_what_a_matrix_of_a_size_misses(size: float, share: float) -> None:
    assert missed_share(round(size * L2), L2) == pytest.approx(share, abs=1e-5)


GRID = list(itertools.product((1, 3, 8), (1, 2, 7), (100_000, 400_000), (1, 5, 16, 1000)))


@pytest.mark.parametrize(("blocks", "heads", "head_bytes", "resident"), GRID)
def test_more_l2_never_means_more_passes(blocks: int, heads: int, head_bytes: int, resident: int) -> None:
    sizes = [1, *range(50_000, 4_000_000, 50_000)]
    found = [passes(blocks, heads, head_bytes, resident, l2).passes for l2 in sizes]
    assert found == sorted(found, reverse=True)
    assert found[-1] >= 1.0
    assert found[0] <= blocks  # never more than each block reading all of it


@pytest.mark.parametrize(("blocks", "heads", "head_bytes", "resident"), GRID)
def test_passes_by_simulation(blocks: int, heads: int, head_bytes: int, resident: int) -> None:
    """Where re-reads are lost: walk the blocks in order and count the heads that each wave touches."""
    order = [head for head in range(heads) for _ in range(blocks)]
    reads = sum(len(set(order[at : at + resident])) for at in range(0, len(order), resident))
    in_flight = min(heads, max(1, -(-resident // blocks)))
    l2 = round(in_flight * head_bytes / 0.545)  # nothing stays, and a wave still shares a pass
    assert passes(blocks, heads, head_bytes, resident, l2=l2).passes == pytest.approx(reads / heads)


def resident(**changes: Any) -> int:
    kernel: dict[str, Any] = {"num_warps": 4, "shared_bytes": 24 * 1024, "registers": 64} | changes
    return resident_blocks(
        sm_count=10,
        shared_bytes_per_sm=100 * 1024,
        max_threads_per_sm=2048,
        registers_bytes_per_sm=256 * 1024,
        **kernel,
    )


def test_resident_blocks_by_the_scarcest_resource() -> None:
    assert resident() == 10 * 4  # shared memory: 100 KiB / (24 + 1) KiB
    assert resident(shared_bytes=25 * 1024) == 10 * 3  # 100 / 26: a block pays 1 KiB on top of its own
    assert resident(shared_bytes=49 * 1024) == 10 * 2  # 100 / 50
    assert resident(registers=128, shared_bytes=1024) == 10 * 4  # 256 KiB / (128 x 4 B x 32 x 4) = 4
    assert resident(registers=255, num_warps=8, shared_bytes=1024) == 10 * 1  # 256 KiB / 255 KiB
    assert resident(registers=16, num_warps=32, shared_bytes=1024) == 10 * 2  # 2048 / (32 x 32) threads
    assert resident(registers=16, num_warps=1, shared_bytes=1) == 10 * 32  # at most 32 blocks


def test_a_kernel_that_was_never_compiled_has_one_block_an_sm() -> None:
    assert resident(shared_bytes=None, registers=None, num_warps=None) == 10
    assert resident(shared_bytes=None) == 10
    assert resident(registers=None) == 10


def test_a_kernel_that_needs_more_than_an_sm_has_still_counts_once() -> None:
    assert resident(shared_bytes=500 * 1024) == 10
