"""The IO models of block-sparse attention: by hand, loops walked tile by tile, laws and invariants."""

import functools
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles as tables
from perfkit.kernels.attention.tiles import Tile
from perfkit.model.catalogue import load
from perfkit.model.device import DeviceProfile
from perfkit.model.device_figures import Figure
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_flash1 as flash1
from perfkit.ops import attention_io as flash
from perfkit.ops import attention_sparse as modern
from perfkit.ops import attention_sparse1 as first
from perfkit.ops import attention_sparse_cache as cached
from perfkit.ops import patterns
from perfkit.ops.attention import ATTENTION, flops_exact
from perfkit.ops.attention_io import compulsory
from perfkit.ops.attention_tiles import with_tiles
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Ledger, Uses, total

np = pytest.importorskip("numpy")

KERNELS = Path(__file__).parents[2] / "kernels/attention"
H200 = load("h200-141gb-sxm")  # 132 SMs, 60 MiB of L2
MIB = 1 << 20
PASSES = ("fwd", "bwd", "fwd-bwd")
NAMES = (modern.FORWARD, modern.DKDV, modern.DQ, first.FORWARD, first.BACKWARD)
#: Patterns without blocks or stride, of every kind, wider and narrower than a tile.
BY_POSITION = [
    "window:20",
    "window:300",
    "window:5000",
    "sinks:4+60",
    "sinks:100+20",
    "longformer:40+5",
    "longformer:5+100",
    "prefix:100",
    "packed:50",
    "packed:1",
]
LEDGERS = {"block-sparse": modern.block_sparse_ledger, "block-sparse1": first.sparse1_ledger}


def make(n: int, pattern: str, **fields: Any) -> AttentionWorkload:
    sizes = {"heads": 1, "kv_heads": 1, "head_dim": 16, "seq_k": n, **fields}
    return AttentionWorkload(seq_q=n, pattern=pattern, **sizes)


def tiles(block_m: int, block_n: int) -> Uses:
    return tuple(KernelUse(kernel=name, block_m=block_m, block_n=block_n) for name in NAMES)


def plain(ledger: Ledger) -> list[tuple[str, int, int]]:
    """(tensor, read, written) of each entry."""
    return [(one.tensor, one.traffic.read_bytes, one.traffic.write_bytes) for one in ledger]


def row(name: str) -> Implementation:
    found = ATTENTION.implementation(name)
    assert found is not None
    return found


# By hand: N 40 in blocks of 16, 16 and 8, tiles of 16 queries by 8 keys. local:1 sees (0, 1), (0, 1, 2) and
# (1, 2). A row is 16 x 2 = 32 bytes, a tensor 40 x 32 = 1280, one in fp32 2560, a statistic 160.


def test_forward_by_hand() -> None:
    keys = (16 + 16) + (16 + 16 + 8) + (16 + 8)  # one tile of queries in each block
    assert plain(modern.block_sparse_ledger(make(40, "local:1@16"), tiles(16, 8))) == [
        ("Q", 1280, 0),
        ("K", keys * 32, 0),
        ("V", keys * 32, 0),
        ("O", 0, 1280),
        ("LSE", 0, 160),
        ("offsets", 3 * 8, 0),
        ("members", 3 * 4, 0),  # neighbours: of each list the first alone
    ]


def test_forward_of_scattered_blocks_by_hand() -> None:
    # butterfly in 4 blocks of 16, the last of 12: (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3).
    keys = 48 + 44 + 44 + 44
    assert plain(modern.block_sparse_ledger(make(60, "butterfly@16"), tiles(16, 8))) == [
        ("Q", 60 * 32, 0),
        ("K", keys * 32, 0),
        ("V", keys * 32, 0),
        ("O", 0, 60 * 32),
        ("LSE", 0, 60 * 4),
        ("offsets", 4 * 8, 0),
        ("members", 4 * 3 * 2 * 4, 0),  # not all lists are runs, and so all tiles of 8 are read
    ]


def test_backward_of_grouped_heads_by_hand() -> None:
    # 4 query heads over 2 K/V heads. Tiles of keys: 2, 2 and 1 in the blocks, seen by 32, 40 and 24 rows.
    rows = 2 * (16 + 16) + 2 * (16 + 16 + 8) + 1 * (16 + 8)
    keys = (16 + 16) + (16 + 16 + 8) + (16 + 8)
    w = make(40, "local:1@16", heads=4, kv_heads=2, pass_="bwd")
    assert plain(modern.block_sparse_ledger(w, tiles(16, 8))) == [
        ("O", 4 * 1280, 0),
        ("dO", 4 * 1280, 0),
        ("D", 0, 4 * 160),
        ("Q", 4 * rows * 32, 0),
        ("dO", 4 * rows * 32, 0),
        ("LSE", 4 * rows * 4, 0),
        ("D", 4 * rows * 4, 0),
        ("K", 2 * 1280, 0),
        ("V", 2 * 1280, 0),
        ("dK", 0, 2 * 1280),
        ("dV", 0, 2 * 1280),
        ("offsets", 2 * 5 * 8, 0),  # 5 tiles of keys in each K/V head
        ("members", 4 * 5 * 4, 0),  # the first of each list, for each query head
        ("Q", 4 * 1280, 0),
        ("dO", 4 * 1280, 0),
        ("LSE", 4 * 160, 0),
        ("D", 4 * 160, 0),
        ("K", 4 * keys * 32, 0),
        ("V", 4 * keys * 32, 0),
        ("dQ", 0, 4 * 1280),
        ("offsets", 4 * 3 * 8, 0),
        ("members", 4 * 3 * 4, 0),
    ]


# window:24 in the same tiles. Rows 0 to 15 see keys 0 to 15: tiles 0 and 1, in part. Rows 16 to 31 see keys
# 0 to 31, all of them 8 to 16: tiles 0, 2 and 3 in part, 1 in full. Rows 32 to 39 see keys 9 to 39, all of
# them 16 to 32: tiles 1 and 4 in part, 2 and 3 in full.


def test_forward_of_a_window_by_hand() -> None:
    keys = 16 + 32 + 32
    assert plain(modern.block_sparse_ledger(make(40, "window:24"), tiles(16, 8))) == [
        ("Q", 1280, 0),
        ("K", keys * 32, 0),
        ("V", keys * 32, 0),
        ("O", 0, 1280),
        ("LSE", 0, 160),
        ("offsets", 3 * 8, 0),
        ("partial", 3 * 4, 0),
        ("members", (2 + 3 + 2) * 4 + (1 + 1) * 4, 0),  # those in part, and the first of those in full
        ("spans", 40 * 8, 0),
    ]


def test_backward_of_a_window_by_hand() -> None:
    # Tiles of 8 keys meet tiles of 16 rows: 0 and 1 in part; 0 and 2 in part, 1 in full; 1 in part, 2 in
    # full, twice; 2 in part.
    rows = (16 + 16) + (16 + 16 + 8) + 2 * (16 + 8) + 8
    in_part = (16 + 16) + (16 + 8) + 2 * 16 + 8
    w = make(40, "window:24", heads=4, kv_heads=2, pass_="bwd")
    ledger = modern.block_sparse_ledger(w, tiles(16, 8))
    assert plain(tuple(one for one in ledger if one.kernel == modern.DKDV)) == [
        ("Q", 4 * rows * 32, 0),
        ("dO", 4 * rows * 32, 0),
        ("LSE", 4 * rows * 4, 0),
        ("D", 4 * rows * 4, 0),
        ("K", 2 * 1280, 0),
        ("V", 2 * 1280, 0),
        ("dK", 0, 2 * 1280),
        ("dV", 0, 2 * 1280),
        ("offsets", 2 * 5 * 8, 0),
        ("partial", 2 * 5 * 4, 0),
        ("members", 4 * (7 + 3) * 4, 0),  # 7 in part, and the first of 3 lists of those in full
        ("spans", 4 * in_part * 8, 0),
    ]
    lists = [one for one in plain(ledger)[-4:] if one[0] in modern.LISTS]
    assert lists == [
        ("offsets", 4 * 3 * 8, 0),
        ("partial", 4 * 3 * 4, 0),
        ("members", 4 * 9 * 4, 0),
        ("spans", 4 * 40 * 8, 0),
    ]


def test_a_row_of_two_spans_reads_both() -> None:
    # longformer: 16 rows see all of 40 keys, the rest a window and the first 16 keys, which no mask cuts.
    found = {
        one[0]: one[1] for one in plain(modern.block_sparse_ledger(make(40, "longformer:4+16"), tiles(16, 8)))
    }
    # Beside tiles 0 and 1 rows 16 to 31 see keys 16 to 35, tiles 2 to 4 in part, and rows 32 to 39 see keys
    # 28 to 39, tiles 3 and 4 in part.
    assert found["K"] == (40 + 40 + (16 + 16)) * 32
    assert found["members"] == (1 + (3 + 1) + (2 + 1)) * 4  # of those in full the first
    assert found["spans"] == (16 + 8) * 16  # the first rows meet nothing in part


@pytest.mark.parametrize("pass_", PASSES)
def test_a_dilated_window_is_a_window_of_each_remainder(pass_: str) -> None:
    w = make(120, "dilated:24+3", batch=2, heads=4, kv_heads=2, pass_=pass_)
    parted = make(40, "window:24", batch=6, heads=4, kv_heads=2, pass_=pass_)
    assert modern.unstrided(w) == parted
    assert modern.block_sparse_ledger(w, tiles(16, 8)) == modern.block_sparse_ledger(parted, tiles(16, 8))
    assert modern.block_sparse_flops(w, tiles(16, 8)) == modern.block_sparse_flops(parted, tiles(16, 8))
    assert modern.block_sparse_exps(w, ()) == modern.block_sparse_exps(parted, ())
    assert cached.block_sparse_dram(w, tiles(16, 8), H200) == cached.block_sparse_dram(
        parted, tiles(16, 8), H200
    )
    assert modern.unstrided(parted) == parted
    dense = msgspec.structs.replace(parted, pattern=None)
    assert modern.unstrided(dense) == dense


def test_a_window_moves_its_width_for_each_tile() -> None:
    """2 N d + T_r 2 c d elements, c from w + B_r - 1 to one tile of keys more at each end."""
    n, w_keys, d = 65536, 4096, 64
    w = make(n, f"window:{w_keys}", head_dim=d)
    moved = elements(modern.block_sparse_ledger(w, tiles(128, 64)), w) - 2 * n * d
    inner = n // 128 - w_keys // 128  # tiles whose window is whole
    assert inner * 2 * (w_keys + 127) * d < moved < n // 128 * 2 * (w_keys + 127 + 2 * 63) * d
    # Its lists are nothing beside it.
    lists = sum(
        read
        for tensor, read, _ in plain(modern.block_sparse_ledger(w, tiles(128, 64)))
        if tensor in modern.LISTS
    )
    assert lists < 0.002 * moved * w.element_bytes


def test_the_first_order_by_hand() -> None:
    # The rows that tiles of keys see, as above: 2 x 32 + 2 x 40 + 1 x 24 = 168, without a mask 5 x 40.
    assert plain(first.sparse1_ledger(make(40, "local:1@16"), tiles(16, 8))) == [
        ("K", 1280, 0),
        ("V", 1280, 0),
        ("mask", 3 * 5, 0),
        ("Q", 168 * 32, 0),
        ("O in fp32", 168 * 64, 168 * 64),
        ("l", 168 * 4, 168 * 4 + 160),
        ("m", 168 * 4, 168 * 4 + 160),
        ("O", 0, 1280),
    ]
    w = make(40, "local:1@16", heads=4, kv_heads=2, pass_="bwd")
    assert plain(first.sparse1_ledger(w, tiles(16, 8))) == [
        ("K", 2 * 1280, 0),
        ("V", 2 * 1280, 0),
        ("mask", 4 * 3 * 5, 0),
        ("Q", 4 * 168 * 32, 0),
        ("O", 4 * 168 * 32, 0),
        ("dO", 4 * 168 * 32, 0),
        ("l", 4 * 168 * 4, 0),
        ("m", 4 * 168 * 4, 0),
        ("dQ in fp32", 4 * 168 * 64, 4 * 168 * 64),
        ("dQ", 0, 4 * 1280),
        ("dK", 0, 2 * 2 * 1280),
        ("dV", 0, 2 * 2 * 1280),
    ]


def test_work_by_hand() -> None:
    # 12 pairs of tiles of 16 x 8, see above; head dim 24 is padded to 32.
    product = 2 * 16 * 8 * 32
    for pass_, products, products1, passes in (("fwd", 2, 2, 1), ("bwd", 7, 5, 2), ("fwd-bwd", 9, 7, 3)):
        w = make(40, "local:1@16", head_dim=24, pass_=pass_)
        assert modern.block_sparse_flops(w, tiles(16, 8)) == products * 12 * product
        assert first.sparse1_flops(w, tiles(16, 8)) == products1 * 12 * product
        pairs = 40 * 40 - 2 * 16 * 8
        assert modern.block_sparse_exps(w, ()) == passes * pairs
        assert first.sparse1_exps(w, ()) == len(first.sparse1_tiled(w)) * pairs
        assert modern.block_sparse_launches(w) == {"fwd": 1, "bwd": 3, "fwd-bwd": 4}[pass_]
        assert first.sparse1_launches(w) == {"fwd": 1, "bwd": 1, "fwd-bwd": 2}[pass_]
        # 7 visible of 9 tiles of 16 x 16, listed by queries and by keys: offsets, partial, members.
        lists = {"fwd": 1, "bwd": 2, "fwd-bwd": 2}[pass_] * 4 * (4 + 3 + 7)
        assert modern.block_sparse_workspace(w) == 40 * 4 * (1 if pass_ == "fwd" else 2) + lists
        assert first.sparse1_workspace(w) == 40 * (24 * 4 + 8) + 9
    w = make(40, "local:1@16", head_dim=24)
    edge, padded = "tiles padded in the last block", "head dim 24 padded to a power of two"
    assert modern.block_sparse_extra_flops(w) == first.sparse1_extra_flops(w) == (edge, padded)
    assert modern.block_sparse_extra_flops(make(48, "local:1@16")) == ()
    assert modern.block_sparse_extra_flops(make(48, "window:16")) == ("masked part of partial tiles",)


# The loops of the kernels, walked tile by tile.


@functools.cache
def dense(w: AttentionWorkload) -> Any:
    """The mask, bool [N_q, N_k]."""
    ends, step, _ = modern.mask_of(w)
    seen = np.zeros((w.seq_q, w.seq_k), bool)
    for row in range(w.seq_q):
        for low, high in ends[row // step]:
            seen[row, low:high] = True
    return seen


def walked(w: AttentionWorkload, m: int, n: int) -> tuple[int, int, int]:
    """(keys read by tiles of queries, rows read by tiles of keys, pairs of tiles) of one head."""
    seen = dense(w)
    keys = queries = pairs = 0
    for start_m in range(0, w.seq_q, m):
        for start_n in range(0, w.seq_k, n):
            if seen[start_m : start_m + m, start_n : start_n + n].any():
                keys += min(n, w.seq_k - start_n)
                queries += min(m, w.seq_q - start_m)
                pairs += 1
    return keys, queries, pairs


@pytest.mark.parametrize("tile", [(16, 16), (32, 16), (16, 64), (64, 32)])
@pytest.mark.parametrize("n", [64, 113, 203, 640, 641])
@pytest.mark.parametrize(
    "pattern", ["random:30%@64", "butterfly@64", "local:1@64", "bigbird:1+1+1@64", *BY_POSITION]
)
def test_visits_against_the_loops(pattern: str, n: int, tile: tuple[int, int]) -> None:
    w = make(n, pattern)
    assert modern.visits(w, tiles(*tile)[0]) == walked(w, *tile)
    if not pattern.startswith(("window", "sinks", "prefix")):
        return
    w = make(n // 3, pattern, seq_k=n)
    assert modern.visits(w, tiles(*tile)[0]) == walked(w, *tile)


# All blocks visible: dense attention.


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("n", [512, 700])
def test_all_blocks_move_what_dense_attention_moves(n: int, pass_: str) -> None:
    """Byte for byte, but for the lists or the mask."""
    w = make(n, "random:100%@64", heads=4, kv_heads=2, head_dim=64, pass_=pass_)
    dense = msgspec.structs.replace(w, pattern=None)
    sparse = {
        (one.kernel.split("_")[-1], one.tensor): one.traffic
        for one in modern.block_sparse_ledger(w, tiles(64, 32))
    }
    uses = tuple(
        KernelUse(kernel=f"flash_{name}", block_m=64, block_n=32) for name in ("forward", "dkdv", "dq")
    )
    same = {(one.kernel.split("_")[-1], one.tensor): one.traffic for one in flash.flash_ledger(dense, uses)}
    assert {key: sparse[key] for key in same} == same
    assert {tensor for _, tensor in sparse.keys() - same.keys()} == {"offsets", "members"}
    uses = tuple(KernelUse(kernel=name, block_m=64, block_n=32) for name in (flash1.FORWARD, flash1.BACKWARD))
    old = sorted(plain(flash1.flash1_ledger(dense, uses)))
    assert sorted(one for one in plain(first.sparse1_ledger(w, tiles(64, 32))) if one[0] != "mask") == old


def elements(ledger: Ledger, w: AttentionWorkload) -> int:
    """Elements moved of matrices: fp32 ones count 4 bytes each; no statistics, no lists."""
    aside = {"LSE", "D", "l", "m", "mask", *modern.LISTS}
    return sum(
        (read + written) // (4 if "fp32" in tensor else w.element_bytes)
        for tensor, read, written in plain(ledger)
        if tensor not in aside
    )


@pytest.mark.parametrize("percent", [12.5, 25, 50, 100])
def test_elements_are_the_paper_s_times_the_share(percent: float) -> None:
    n, d, b = 4096, 64, 128
    w = make(n, f"random:{percent:g}%@{b}", head_dim=d)
    visible = round(percent / 100 * 32) * 32  # of 32 x 32 blocks: nnz = s T_r T_c
    # Algorithm 5: 2 N d + s T_c 3 N d + N d; here a tile of keys is a block.
    assert elements(first.sparse1_ledger(w, tiles(64, b)), w) == 2 * n * d + 3 * visible * b * d + n * d
    back = make(n, f"random:{percent:g}%@{b}", head_dim=d, pass_="bwd")
    # Its backward: s T_c 5 N d + 7 N d.
    assert elements(first.sparse1_ledger(back, tiles(64, b)), back) == 5 * visible * b * d + 7 * n * d
    # The modern order: 2 N d + nnz 2 B_c d; here a tile of queries is a block.
    assert elements(modern.block_sparse_ledger(w, tiles(b, 64)), w) == 2 * n * d + visible * 2 * b * d


@pytest.mark.parametrize("ledger", LEDGERS.values(), ids=LEDGERS.keys())
def test_the_law_is_the_share_of_n_squared_d_squared_over_m(ledger: Any) -> None:
    """Proposition 4: half the share, half the traffic; half the tile, twice the traffic, but for N d."""
    n, d = 16384, 64

    def moved(percent: int, tile: int) -> int:
        w = make(n, f"random:{percent}%@128", head_dim=d)
        rest = 2 * n * d if ledger is modern.block_sparse_ledger else 3 * n * d
        return elements(ledger(w, tiles(tile, tile)), w) - rest

    assert moved(50, 128) == 2 * moved(25, 128)
    assert moved(25, 64) == 2 * moved(25, 128)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("n", [1024, 5000])
@pytest.mark.parametrize("ledger", LEDGERS.values(), ids=LEDGERS.keys())
def test_more_blocks_never_move_less(ledger: Any, n: int, pass_: str) -> None:
    for family in ("random:{}%@64", "local:{}@64"):
        found = [
            total(ledger(make(n, family.format(size), pass_=pass_), tiles(64, 32)))
            for size in range(1, 80, 6)
        ]
        moved = [one.total_bytes for one in found]
        assert moved == sorted(moved)
        assert moved[0] < moved[-1]


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("name", LEDGERS)
def test_issued_flops_cover_the_exact_ones(name: str, pass_: str) -> None:
    for pattern in ("random:30%@128", *(BY_POSITION if name == "block-sparse" else ())):
        w = make(999, pattern, head_dim=40, pass_=pass_)
        io = row(name).io
        assert io is not None
        assert io.issued_flops(w, tiles(64, 32)) >= flops_exact(w)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    "family", ["window:{}", "sinks:4+{}", "longformer:{}+7", "longformer:9+{}", "prefix:{}"]
)
def test_more_keys_never_move_less(family: str, pass_: str) -> None:
    found = [
        total(
            one
            for one in modern.block_sparse_ledger(make(1500, family.format(size), pass_=pass_), tiles(64, 32))
            if one.tensor not in modern.LISTS
        ).total_bytes
        for size in range(1, 1500, 100)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


# DRAM.


def with_l2(capacity: int) -> DeviceProfile:
    """An H200 with that much L2."""
    replace = msgspec.structs.replace
    l2 = replace(H200.memory.l2, capacity_bytes=Figure(value=capacity, source="driver"))
    return replace(H200, memory=replace(H200.memory, l2=l2))


def test_what_fits_l2_reaches_dram_once() -> None:
    w = make(4096, "random:25%@128", head_dim=64, heads=16, kv_heads=16)
    tensor, statistic = 16 * 4096 * 64 * 2, 16 * 4096 * 4
    found = cached.block_sparse_dram(w, tiles(128, 64), H200)
    # 132 blocks at a time are 5 heads of 32: K and V of 5 MiB.
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=tensor + statistic)
    assert found.reason == "5 head(s) in flight take 8% of L2: they stay"
    old = cached.sparse1_dram(w, tiles(64, 128), H200)
    assert old.traffic == Traffic(read_bytes=3 * tensor, write_bytes=2 * tensor + tensor + 2 * statistic)
    # 16 heads of 4096 x (128 + 256 + 8) B are 25.7 MB of 62.9 MB.
    assert old.reason == "Q, O, l and m of 16 head(s) in flight take 41% of L2: they stay"


def test_a_wave_reads_again_what_it_sees() -> None:
    """N 32768, 256 blocks, waves of 132: all see themselves alone, so that each wave reads its own keys."""
    w = make(32768, "local:0@128", head_dim=64)
    tensor = 32768 * 64 * 2
    found = cached.block_sparse_dram(w, tiles(128, 64), with_l2(MIB))
    assert found.traffic.read_bytes == 3 * tensor
    assert found.reason.endswith("a wave sees 50% of it")
    full = cached.block_sparse_dram(make(32768, "random:100%@128", head_dim=64), tiles(128, 64), with_l2(MIB))
    flash_use = (KernelUse(kernel="flash_forward", block_m=128, block_n=64),)
    dense = row("flash").io
    assert dense is not None
    same = dense.dram(msgspec.structs.replace(w, pattern=None), flash_use, with_l2(MIB))
    assert full.traffic == same.traffic


def test_seen_together() -> None:
    rows = modern.lists_of(
        make(64, "local:1@16"), tiles(16, 16)[0]
    ).by_queries  # (0, 1), (0, 1, 2), (1, 2, 3), (2, 3)
    assert cached.seen_together(rows, 4, 1) == (2 + 3 + 3 + 2) / 4 / 4
    assert cached.seen_together(rows, 4, 2) == (3 + 3) / 2 / 4
    assert cached.seen_together(rows, 4, 3) == (4 + 2) / 2 / 4
    assert cached.seen_together(rows, 4, 4) == 1


def test_what_a_window_needs_of_l2_is_what_a_wave_sees() -> None:
    """N 65536, d 64, tiles of 128: a wave of 132 sees 132 x 128 keys and the 4096 before, 31 % of 16.8 MB."""
    w = make(65536, "window:4096", head_dim=64)
    tensor = 65536 * 64 * 2
    found = cached.block_sparse_dram(w, tiles(128, 64), H200)
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=tensor + 65536 * 4)
    assert found.reason == "1 head(s) in flight take 8% of L2: they stay"
    # In an L2 that keeps none of it each wave reads it once, the 4096 keys of the wave before again, and
    # each half of the L2 for itself.
    small = cached.block_sparse_dram(w, tiles(128, 64), with_l2(MIB))
    assert 3 * tensor < small.traffic.read_bytes < 6 * tensor


def test_keys_that_nobody_sees_are_not_read() -> None:
    w = make(128, "window:256", seq_k=4096, head_dim=64)
    row_bytes = 64 * 2
    found = cached.block_sparse_dram(w, tiles(128, 64), H200)
    # 128 rows see 256 + 127 keys: 6 tiles of 64.
    assert found.traffic.read_bytes == 128 * row_bytes + 2 * 6 * 64 * row_bytes


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        *(
            (name, pattern)
            for name in LEDGERS
            for pattern in ("random:10%@128", "butterfly@64", "local:2@128")
        ),
        *(
            ("block-sparse", pattern)
            for pattern in ("window:1000", "dilated:300+4", "longformer:99+500", "packed:700")
        ),
    ],
)
def test_dram_lies_between_compulsory_and_what_the_sms_ask_for(name: str, pattern: str, pass_: str) -> None:
    w = make(20000, pattern, heads=4, kv_heads=2, head_dim=64, pass_=pass_)
    io = row(name).io
    assert io is not None
    least, asked, uses = compulsory(w), total(io.ledger(w, tiles(64, 64))), tiles(64, 64)
    moved = [io.dram(w, uses, with_l2(MIB // 4 * 4**step)).traffic for step in range(8)]
    for found in moved:
        assert least.read_bytes <= found.read_bytes <= asked.read_bytes
        assert least.write_bytes <= found.write_bytes <= asked.write_bytes
    amounts = [found.total_bytes for found in moved]
    assert amounts == sorted(amounts, reverse=True)


# The rows.


@pytest.mark.parametrize("capability", [(0, 0), (7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("pattern", ["local:1@16", "local:1@64", "local:1@1024", "bigbird:1+1+1@64"])
@pytest.mark.parametrize("name", LEDGERS)
def test_every_device_has_a_plan_within_the_block(
    name: str, pattern: str, capability: tuple[int, int]
) -> None:
    plan, io = row(name).plan, row(name).io
    assert plan is not None
    assert io is not None
    for head_dim in (16, 40, 64, 128, 256):
        w = make(512, pattern, head_dim=head_dim, pass_="fwd-bwd")
        uses = plan(w, capability)
        assert tuple(use.kernel for use in uses) == io.tiled(w)
        for use in uses:
            assert all(patterns.parse(pattern).block % side == 0 for side in (use.block_m, use.block_n))
        assert total(io.ledger(w, uses)).total_bytes > compulsory(w).total_bytes


def test_without_blocks_tiles_are_those_of_causal_attention() -> None:
    w = make(512, "window:64", head_dim=64)
    assert [use.block_m for use in modern.block_sparse_plan(w, (9, 0))] == [128, 64, 128]
    dense = ATTENTION.implementation("flash-triton")
    assert dense is not None
    assert dense.plan is not None
    same = dense.plan(msgspec.structs.replace(w, pattern=None, causal=True), (9, 0))
    for mine, theirs in zip(modern.block_sparse_plan(w, (9, 0)), same, strict=True):
        assert (mine.block_m, mine.block_n, mine.num_warps, mine.num_stages) == (
            theirs.block_m, theirs.block_n, theirs.num_warps, theirs.num_stages,
        )  # fmt: skip


def test_a_tile_is_cut_to_its_block() -> None:
    assert tables.within(Tile(128, 64, 8, 3), 128) == Tile(128, 64, 8, 3)
    assert tables.within(Tile(128, 64, 8, 3), 64) == Tile(64, 64, 4, 3)
    assert tables.within(Tile(64, 128, 4, 2), 16) == Tile(16, 16, 4, 2)
    # On 8.x the forward tile of up to 64 columns has 64 keys, not 128: the check of the mask makes it spill.
    assert tables.sparse1_tiles(64, (8, 0))[0] == Tile(64, 64, 4, 1)
    assert tables.sparse1_tiles(64, (9, 0)) == tables.flash1_tiles(64, (9, 0))


@pytest.mark.parametrize("name", LEDGERS)
def test_tiles_of_ones_own(name: str) -> None:
    w = make(1024, "random:25%@64", head_dim=64)
    own = with_tiles(row(name), w, H200, 32, 64)
    assert own.plan is not None
    use = own.plan(w, (9, 0))[0]
    assert (use.block_m, use.block_n) == (32, 64)
    assert own.options["tiles"][0][:2] == [32, 64]
    with pytest.raises(UsageError) as longer:
        with_tiles(row(name), w, H200, 128, None)
    assert longer.value.message == "--block-m 128 is more than the 64 rows of a block of random:25%@64"


def test_tiles_of_ones_own_without_blocks() -> None:
    own = with_tiles(row("block-sparse"), make(1024, "window:64", head_dim=64), H200, 128, 32)
    assert own.options["tiles"][0][:2] == [128, 32]


@pytest.mark.parametrize("name", LEDGERS)
def test_what_it_cannot_serve(name: str) -> None:
    served = make(512, "local:1@64", head_dim=64)
    assert row(name).named_only
    assert row(name).refusal(served) is None
    dense = msgspec.structs.replace(served, pattern=None)
    assert row(name).refusal(dense) == "there is no mask: name a pattern, such as random:25% or window:4096"
    narrow = "head dim 20: block-sparse kernels take multiples of 8 from 16 to 256"
    assert row(name).refusal(msgspec.structs.replace(served, head_dim=20)) == narrow
    assert row(name).refusal(msgspec.structs.replace(dense, padding=5)) == f"{name} has no padding"
    assert row("flash").refusal(served) == "flash has no pattern"


def test_the_first_order_takes_blocks_alone() -> None:
    served = make(512, "bigbird:1+1+1@64", head_dim=64)
    assert modern.sparse_refuses(served) is first.sparse1_refuses(served) is None
    window = msgspec.structs.replace(served, pattern="window:64")
    assert modern.sparse_refuses(window) is None
    assert first.sparse1_refuses(window) == "block-sparse1 takes block patterns, such as random:25%"
    dense = msgspec.structs.replace(served, pattern=None)
    assert first.sparse1_refuses(dense) == modern.sparse_refuses(dense)


def test_a_missing_tile_is_named() -> None:
    w = make(64, "local:1@16", pass_="bwd")
    for name, kernel in (("block-sparse", modern.DQ), ("block-sparse1", first.BACKWARD)):
        uses = tuple(use for use in tiles(16, 16) if use.kernel != kernel)
        with pytest.raises(UsageError) as missing:
            LEDGERS[name](w, uses)
        assert missing.value.message == f"the tile of kernel '{kernel}' is not in the record"


def test_kernels_are_named_as_their_functions() -> None:
    """So the counters of a kernel find its model."""
    files = ("block_sparse.py", "block_sparse_backward.py", "sparse1.py", "sparse1_backward.py")
    sources = "".join((KERNELS / name).read_text() for name in files)
    assert re.findall(r"@triton\.jit\([^\n]*\n(?:def|.*\ndef) (\w+)", sources) == list(NAMES)
