"""Counted bytes of `square` are its closed form, byte for byte, all programs or one of each kind."""

from typing import Any

import msgspec
import pytest

from perfkit.measure.counting.count import count_all
from perfkit.measure.counting.sampling import schedule
from perfkit.measure.counting.types import Count, Request, Sampling, request
from perfkit.model.catalogue import load
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_counted import differences
from perfkit.ops.attention_tiles import with_tiles
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation

pytest.importorskip("torch")
pytest.importorskip("triton")

H200 = load("h200-141gb-sxm")
GROUPED = {"batch": 2, "heads": 4, "kv_heads": 2}
#: (N_q, N_k, head dim, side of the tile, other sizes). 48 and 80 fill no tile of 64, 256 fills four.
EXACT: list[tuple[int, int, int, int, dict[str, int]]] = [
    (64, 64, 64, 16, {}),
    (113, 203, 48, 32, {}),
    (203, 113, 256, 64, {}),
    (65, 33, 80, 64, {}),
    (1, 70, 16, 16, {}),
    (70, 1, 64, 32, {}),
    (130, 150, 256, 128, {}),
    (50, 83, 64, 16, GROUPED),
]
ALIKE = Sampling(programs="alike")
SAMPLED = [EXACT[1], EXACT[2], EXACT[7], (128, 128, 64, 64, GROUPED)]


def row() -> Implementation:
    found = ATTENTION.implementation("square")
    assert found is not None
    return found


def asked(case: tuple[Any, ...], sampling: Sampling | None = None) -> Request:
    seq_q, seq_k, head_dim, side, more = case
    sizes = {"heads": 1, "kv_heads": 1, **more}
    w = AttentionWorkload(seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, **sizes)
    return request(with_tiles(row(), w, H200, side, None), w, sampling)


def key(one: Request) -> bytes:
    return msgspec.json.encode(one)


@pytest.fixture(scope="module")
def counts() -> dict[bytes, Count]:
    """All counts of this file, made in one process."""
    requests = [asked(case) for case in (*EXACT, *SAMPLED)]
    requests += [asked(case, ALIKE) for case in SAMPLED]
    requests += [asked(SAMPLED[2], Sampling(heads="all"))]
    found = {key(one): one for one in requests}
    return dict(zip(found, count_all(list(found.values())), strict=True))


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_the_count_is_the_ledger(case: tuple[Any, ...], counts: dict[bytes, Count]) -> None:
    found = counts[key(asked(case))]
    io = row().io
    assert io is not None
    assert [(use.kernel, use.block_m, use.block_n) for use in found.uses] == [
        (name, case[3], case[3]) for name in ("square_scores", "square_statistics", "square_output")
    ]
    assert differences(found.moved, io.ledger(found.workload, found.uses)) == ()
    assert (found.atomics, found.passes) == ((), ())


def moved(found: Count) -> dict[tuple[str, str], tuple[int, int]]:
    return {(m.kernel, m.tensor): (m.traffic.read_bytes, m.traffic.write_bytes) for m in found.moved}


def test_hand_derived_numbers(counts: dict[bytes, Count]) -> None:
    # N_q 113, N_k 203, d 48, tiles of 32: 4 rows of tiles; 7 columns of S, 2 of O. S has 208 elements a row.
    q, k, s, statistic = 113 * 48 * 2, 203 * 48 * 2, 113 * 208 * 2, 113 * 4
    assert moved(counts[key(asked(EXACT[1]))]) == {
        ("square_scores", "Q"): (7 * q, 0),
        ("square_scores", "K"): (4 * k, 0),
        ("square_scores", "S"): (0, s),
        ("square_statistics", "S"): (s, 0),
        ("square_statistics", "l"): (0, statistic),
        ("square_statistics", "m"): (0, statistic),
        ("square_output", "S again"): (2 * s, 0),
        ("square_output", "l"): (2 * statistic, 0),
        ("square_output", "m"): (2 * statistic, 0),
        ("square_output", "V"): (4 * k, 0),
        ("square_output", "O"): (0, q),
    }


@pytest.mark.parametrize("case", SAMPLED, ids=str)
def test_programs_that_are_alike_count_what_all_count(
    case: tuple[Any, ...], counts: dict[bytes, Count]
) -> None:
    every, few = counts[key(asked(case))], counts[key(asked(case, ALIKE))]
    assert moved(few) == moved(every)
    assert sum(one.ran for one in few.sampled) < sum(one.ran for one in every.sampled)


def test_one_head_counts_what_all_heads_count(counts: dict[bytes, Count]) -> None:
    every = counts[key(asked(SAMPLED[2], Sampling(heads="all")))]
    assert moved(every) == moved(counts[key(asked(SAMPLED[2]))])


def test_what_was_sampled_is_stated(counts: dict[bytes, Count]) -> None:
    """113 x 203 in tiles of 32: 3 whole rows of tiles and one of 17; 6 whole columns and one of 11.

    O is 113 x 48: one whole column and one of 16.
    """
    found = counts[key(asked(EXACT[1], ALIKE))]
    assert [(one.kernel, one.programs, one.ran) for one in found.sampled] == [
        ("square_scores", 28, 5),  # 4 kinds, and a witness of the first; of the last there is only one
        ("square_statistics", 4, 3),
        ("square_output", 8, 5),
    ]
    assert found.sampled[0].rule == "one whole tile and three kinds of partial ones; checked against 1 more"


def test_kinds_of_tiles_by_hand() -> None:
    """5 x 7 in tiles of 2, two heads: 3 x 4 tiles a head, of which 2 x 3 are whole."""
    sizes = {"seq_q": 5, "seq_k": 7, "BLOCK_M": 2, "BLOCK_N": 2}
    found = schedule("square_scores", sizes, 24, ALIKE)
    # Whole: 0 to 2, 4 to 6. Last column: 3 and 7. Last row: 8 to 10. Corner: 11. The second head is 12 more.
    assert found.weights == {0: 12, 3: 4, 8: 6, 11: 2}
    assert found.witnesses == {12 + 6: 0, 12 + 11: 11}
    assert schedule("square_scores", sizes, 25, ALIKE).weights is None  # no whole number of heads
    even = schedule("square_scores", {**sizes, "seq_q": 4, "seq_k": 8}, 16, ALIKE)
    assert (even.weights, even.witnesses, even.rule) == ({0: 16}, {15: 0}, "one tile; checked against 1 more")
