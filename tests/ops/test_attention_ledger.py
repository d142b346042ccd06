"""The byte ledger of attention: entries derived by hand, loops walked tensor by tensor, and sums."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from perfkit.errors import UsageError
from perfkit.ops import attention_io as io
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_ledger import standard_ledger
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Ledger

KERNELS = Path(__file__).parents[2] / "kernels/attention"
PASSES = ("fwd", "bwd", "fwd-bwd")
MODELLED = [row for row in ATTENTION.implementations if row.io]


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(**{"heads": 1, "kv_heads": 1, "seq_q": 4, "seq_k": 4, "head_dim": 2, **fields})


def tiles(block_m: int, block_n: int) -> tuple[KernelUse, ...]:
    names = ("flash_forward", "flash_dkdv", "flash_dq")
    return tuple(KernelUse(kernel=name, block_m=block_m, block_n=block_n) for name in names)


def plain(ledger: Ledger) -> list[tuple[str, str, int, int]]:
    """(kernel, tensor, read, written) of each entry."""
    return [(one.kernel, one.tensor, one.traffic.read_bytes, one.traffic.write_bytes) for one in ledger]


# Standard, by hand.


def test_standard_forward_by_hand() -> None:
    # N_q 4, N_k 6, d 2, 2 B: Q and O 16 B, K and V 24 B, S and P 4 x 6 x 2 B = 48 B
    assert plain(standard_ledger(make(seq_k=6))) == [
        ("S = Q K^T", "Q", 16, 0),
        ("S = Q K^T", "K", 24, 0),
        ("S = Q K^T", "S", 0, 48),
        ("P = softmax(S)", "S", 48, 0),
        ("P = softmax(S)", "P", 0, 48),
        ("O = P V", "P", 48, 0),
        ("O = P V", "V", 24, 0),
        ("O = P V", "O", 0, 16),
    ]


def test_a_causal_mask_is_written_and_read_as_the_addend() -> None:
    full, causal = (plain(standard_ledger(make(seq_k=6, causal=mask))) for mask in (False, True))
    assert [one for one in causal if one not in full] == [
        ("mask", "mask", 0, 48),
        ("S = Q K^T", "mask", 48, 0),
    ]
    assert len(causal) == len(full) + 2


def test_standard_backward_by_hand() -> None:
    # As above: Q, dO, dQ 16 B; K, V, dK, dV 24 B; P, dP, P o dP, dS 48 B. A mask changes nothing.
    expected = [
        ("dV = P^T dO", "P", 48, 0),
        ("dV = P^T dO", "dO", 16, 0),
        ("dV = P^T dO", "dV", 0, 24),
        ("dP = dO V^T", "dO", 16, 0),
        ("dP = dO V^T", "V", 24, 0),
        ("dP = dO V^T", "dP", 0, 48),
        ("P o dP", "P", 48, 0),
        ("P o dP", "dP", 48, 0),
        ("P o dP", "P o dP", 0, 48),
        ("dS", "P o dP", 48, 0),
        ("dS", "P", 48, 0),
        ("dS", "dS", 0, 48),
        ("dQ = dS K", "dS", 48, 0),
        ("dQ = dS K", "K", 24, 0),
        ("dQ = dS K", "dQ", 0, 16),
        ("scale dQ", "dQ", 16, 16),
        ("dK = dS^T Q", "dS", 48, 0),
        ("dK = dS^T Q", "Q", 16, 0),
        ("dK = dS^T Q", "dK", 0, 24),
        ("scale dK", "dK", 24, 24),
    ]
    for causal in (False, True):
        assert plain(standard_ledger(make(seq_k=6, pass_="bwd", causal=causal))) == expected


def test_grouped_heads_of_standard_read_keys_once() -> None:
    # 2 batches x 6 query heads over 2 K/V heads, N 4, d 2, 2 B: Q 12 x 16 B, K 4 x 16 B, S 12 x 32 B
    found = plain(standard_ledger(make(batch=2, heads=6, kv_heads=2)))
    assert found[:3] == [
        ("S = Q K^T", "Q", 192, 0),
        ("S = Q K^T", "K", 64, 0),
        ("S = Q K^T", "S", 0, 384),
    ]


# Flash, by hand.


def test_flash_forward_by_hand() -> None:
    # N 4, d 2, 2 B, tiles 2 x 2: a tensor is 16 B, LSE 4 x 4 B. K and V for each of two blocks of queries.
    assert plain(io.flash_ledger(make(), tiles(2, 2))) == [
        ("flash_forward", "Q", 16, 0),
        ("flash_forward", "K", 32, 0),
        ("flash_forward", "V", 32, 0),
        ("flash_forward", "O", 0, 16),
        ("flash_forward", "LSE", 0, 16),
    ]


def test_flash_forward_of_grouped_heads_and_an_odd_causal_size_by_hand() -> None:
    # 6 query heads over 2 K/V heads, N 5, tiles 2 x 4, causal. Rows 0-1 see 2 keys: a block of 4 is read.
    # Rows 2-3 see 4. Row 4 sees 5: all 5. A row is d 2 x 2 B = 4 B; each query head reads for itself.
    found = plain(io.flash_ledger(make(heads=6, kv_heads=2, seq_q=5, seq_k=5, causal=True), tiles(2, 4)))
    assert found == [
        ("flash_forward", "Q", 6 * 5 * 4, 0),
        ("flash_forward", "K", 6 * (4 + 4 + 5) * 4, 0),
        ("flash_forward", "V", 6 * (4 + 4 + 5) * 4, 0),
        ("flash_forward", "O", 0, 6 * 5 * 4),
        ("flash_forward", "LSE", 0, 6 * 5 * 4),
    ]


def test_flash_backward_of_grouped_heads_and_more_keys_than_queries_by_hand() -> None:
    # 4 query heads over 2 K/V heads, N_q 3, N_k 5, tiles 2 x 2, causal: row i sees keys 0 to i + 2.
    # A row is 4 B in a tensor and 4 B in a statistic. Over heads: Q 48 B, D 48 B, K 2 x 5 x 4 = 40 B.
    # flash_dkdv: keys 0-1 and 2-3 are seen from row 0 on: 3 rows each. Key 4 from row 2 on: block 1, 1 row.
    # flash_dq: rows 0-1 see 4 keys, 2 blocks of 2. Row 2 sees 5 keys: all 5.
    rows, keys = 4 * (3 + 3 + 1) * 4, 4 * (4 + 5) * 4
    shape: dict[str, Any] = {"heads": 4, "kv_heads": 2, "seq_q": 3, "seq_k": 5, "causal": True}
    assert plain(io.flash_ledger(make(**shape, pass_="bwd"), tiles(2, 2))) == [
        ("flash_delta", "O", 48, 0),
        ("flash_delta", "dO", 48, 0),
        ("flash_delta", "D", 0, 48),
        ("flash_dkdv", "Q", rows, 0),
        ("flash_dkdv", "dO", rows, 0),
        ("flash_dkdv", "LSE", rows, 0),
        ("flash_dkdv", "D", rows, 0),
        ("flash_dkdv", "K", 40, 0),
        ("flash_dkdv", "V", 40, 0),
        ("flash_dkdv", "dK", 0, 40),
        ("flash_dkdv", "dV", 0, 40),
        ("flash_dq", "Q", 48, 0),
        ("flash_dq", "dO", 48, 0),
        ("flash_dq", "LSE", 48, 0),
        ("flash_dq", "D", 48, 0),
        ("flash_dq", "K", keys, 0),
        ("flash_dq", "V", keys, 0),
        ("flash_dq", "dQ", 0, 48),
    ]


def test_statistics_are_four_bytes_and_the_rest_follows_the_dtype() -> None:
    # d 2: a row of a tensor is 8 B in fp32, 4 B in bf16; N 4 rows
    for dtype, tensor in (("bf16", 16), ("fp32", 32)):
        delta = plain(io.flash_ledger(make(dtype=dtype, pass_="bwd"), tiles(2, 2)))[:3]
        assert delta == [
            ("flash_delta", "O", tensor, 0),
            ("flash_delta", "dO", tensor, 0),
            ("flash_delta", "D", 0, 16),
        ]


# Flash, by walking the loops row by row.


def walked(w: AttentionWorkload, m: int, n: int) -> tuple[int, int]:
    """(rows of K, rows of Q) that flash_dq and flash_dkdv load for one query head.

    flash_dq stops at the last key that its last row sees, flash_dkdv starts at the block of the first row
    that sees its first key; both load whole blocks, as far as there are rows.
    """
    shift = w.seq_k - w.seq_q
    keys = 0
    for start in range(0, w.seq_q, m):
        last = min(start + m, w.seq_q) - 1
        end = max(last + shift + 1, 0) if w.causal else w.seq_k
        keys += sum(key < w.seq_k for block in range(0, end, n) for key in range(block, block + n))
    queries = 0
    for start in range(0, w.seq_k, n):
        first = next((row for row in range(w.seq_q) if not w.causal or row + shift >= start), w.seq_q)
        blocks = range(first // m * m, w.seq_q, m) if first < w.seq_q else ()
        queries += sum(row < w.seq_q for block in blocks for row in range(block, block + m))
    return keys, queries


@pytest.mark.parametrize("tile", [(64, 64), (128, 32), (32, 128)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("seq_q", "seq_k"), [(113, 113), (113, 203), (203, 113), (1, 203), (203, 1), (640, 113)]
)
def test_each_tensor_against_the_loops(seq_q: int, seq_k: int, causal: bool, tile: tuple[int, int]) -> None:
    w = make(
        batch=2, heads=6, kv_heads=2, seq_q=seq_q, seq_k=seq_k, head_dim=40, causal=causal, pass_="fwd-bwd"
    )
    keys, queries = walked(w, *tile)
    row, heads = 40 * 2, 2 * 6
    found = {(kernel, tensor): read for kernel, tensor, read, _ in plain(io.flash_ledger(w, tiles(*tile)))}
    for kernel in ("flash_forward", "flash_dq"):
        for tensor in ("K", "V"):
            assert found[kernel, tensor] == heads * keys * row
    for tensor, size in (("Q", row), ("dO", row), ("LSE", 4), ("D", 4)):
        assert found["flash_dkdv", tensor] == heads * queries * size
    for tensor in ("K", "V"):
        assert found["flash_dkdv", tensor] == w.key_bytes


# What holds for every ledger.


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("row", MODELLED, ids=lambda row: row.name)
def test_traffic_is_the_sum_and_each_tensor_of_a_kernel_stands_once(
    row: Any, causal: bool, pass_: str
) -> None:
    w = make(heads=6, kv_heads=2, seq_q=203, seq_k=113, head_dim=64, causal=causal, pass_=pass_)
    uses = row.plan(w, (9, 0)) if row.plan else ()
    found = plain(row.io.ledger(w, uses))
    moved = row.io.traffic(w, uses)
    assert (moved.read_bytes, moved.write_bytes) == (sum(r for *_, r, _ in found), sum(x for *_, x in found))
    assert max(Counter((kernel, tensor) for kernel, tensor, *_ in found).values()) == 1
    assert all(read + written > 0 for *_, read, written in found)


@pytest.mark.parametrize(
    "row", [row for row in MODELLED if row.name not in ("square", "flash-decode")], ids=lambda row: row.name
)
def test_both_passes_are_one_after_the_other(row: Any) -> None:
    w = {pass_: make(seq_q=203, seq_k=203, head_dim=64, pass_=pass_) for pass_ in PASSES}
    uses = row.plan(w["fwd-bwd"], (9, 0)) if row.plan else ()
    both = row.io.ledger(w["fwd"], uses) + row.io.ledger(w["bwd"], uses)
    assert row.io.ledger(w["fwd-bwd"], uses) == both


def test_outputs_are_written_once_and_inputs_of_the_op_are_never() -> None:
    w = make(heads=6, kv_heads=2, seq_q=113, seq_k=203, head_dim=64, pass_="fwd-bwd")
    written = Counter[str]()
    for _, tensor, _, size in plain(io.flash_ledger(w, tiles(64, 32))):
        written[tensor] += size
    q, kv, statistic = w.query_bytes, w.key_bytes, 4 * 6 * 113
    assert +written == {"O": q, "LSE": statistic, "D": statistic, "dK": kv, "dV": kv, "dQ": q}


@pytest.mark.parametrize("pass_", PASSES)
def test_kernels_of_flash_are_named_as_their_functions(pass_: str) -> None:
    """So the counters of a kernel find its model."""
    sources = "".join((KERNELS / name).read_text() for name in ("flash.py", "flash_backward.py"))
    jitted = re.findall(r"@triton\.jit\([^\n]*\n(?:def|.*\ndef) (\w+)", sources)
    expected = {
        "fwd": ["flash_forward"],
        "bwd": ["flash_delta", "flash_dkdv", "flash_dq"],
        "fwd-bwd": ["flash_forward", "flash_delta", "flash_dkdv", "flash_dq"],
    }[pass_]
    found = [one.kernel for one in io.flash_ledger(make(pass_=pass_), tiles(2, 2))]
    assert list(dict.fromkeys(found)) == expected
    assert set(expected) <= set(jitted)


@pytest.mark.parametrize("pass_", PASSES)
def test_the_ledger_needs_the_tiles_that_it_names_and_no_others(pass_: str) -> None:
    w = make(pass_=pass_)
    tiled = io.flash_tiled(w)
    needed = tuple(use for use in tiles(2, 2) if use.kernel in tiled)
    assert io.flash_ledger(w, needed) == io.flash_ledger(w, tiles(2, 2))
    for missing in needed:
        with pytest.raises(UsageError, match=f"the tile of kernel '{missing.kernel}' is not in the record"):
            io.flash_ledger(w, tuple(use for use in needed if use is not missing))


@pytest.mark.parametrize("causal", [False, True])
def test_a_long_workload_takes_little_time(causal: bool) -> None:
    w = make(seq_q=65536, seq_k=65536, head_dim=64, causal=causal, pass_="fwd-bwd")
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        io.flash_ledger(w, tiles(64, 64))
        took.append(time.perf_counter() - begin)
    assert min(took) < 0.01
