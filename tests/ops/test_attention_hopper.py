"""The IO model of `flash-hopper`: integers derived by hand, the kernel's loops walked, tiles and refusals."""

import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.kernels.attention import tiles as table
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_hopper as hopper
from perfkit.ops import attention_hopper_backward as backward
from perfkit.ops import attention_io as io
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_hopper_cache import hopper_dram
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse

KERNELS = Path(__file__).parents[2] / "kernels/attention"
H200 = load("h200-141gb-sxm")  # 132 SMs, 60 MiB of L2
MIB = 1 << 20
HEAD_DIMS = [16, 24, 32, 40, 64, 72, 96, 128, 136, 192, 200, 256]


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(
        **{"heads": 1, "kv_heads": 1, "seq_q": 200, "seq_k": 200, "head_dim": 64, **fields}
    )


def row() -> Implementation:
    found = ATTENTION.implementation("flash-hopper")
    assert found is not None
    return found


def planned(w: AttentionWorkload) -> tuple[KernelUse, ...]:
    return hopper.hopper_plan(w, (9, 0))


def plain(w: AttentionWorkload) -> list[tuple[str, str, int, int]]:
    """(kernel, tensor, read, written) of each entry, with the tiles of compute capability 9.0."""
    found = row()
    assert found.io is not None
    ledger = found.io.ledger(w, planned(w))
    return [(m.kernel, m.tensor, m.traffic.read_bytes, m.traffic.write_bytes) for m in ledger]


# By hand.


def test_ledger_by_hand() -> None:
    # d 64: tiles of 192 x 128. Rows 0-191 see 192 keys, rows 192-199 all 200: two blocks of keys each, which
    # end at key 200. A row is 128 B.
    assert plain(make(causal=True)) == [
        ("flash_hopper_forward", "Q", 200 * 128, 0),
        ("flash_hopper_forward", "K", (200 + 200) * 128, 0),
        ("flash_hopper_forward", "V", (200 + 200) * 128, 0),
        ("flash_hopper_forward", "O", 0, 200 * 128),
        ("flash_hopper_forward", "LSE", 0, 200 * 4),
    ]


def test_rows_that_see_no_key_still_read_one_block() -> None:
    """N_q 400, N_k 150, d 128: tiles of 128 x 128, and rows below 250 see nothing."""
    w = make(seq_q=400, seq_k=150, head_dim=128, causal=True)
    # Rows 0-127 and 128-255 end at keys below 0 and at 6: one block each, as the kernel's ring needs. Rows
    # 256-383 see up to 134 keys, rows 384-399 all 150: two blocks.
    (forward, *_) = planned(w)
    assert io.key_blocks(w, forward) == [1, 1, 2, 2]
    assert io.key_blocks(w, msgspec.structs.replace(forward, kernel="flash_forward")) == [0, 1, 2, 2]
    keys = 128 + 128 + 150 + 150
    assert plain(w)[1] == ("flash_hopper_forward", "K", keys * 256, 0)
    # The first block ends where the keys do.
    short = make(seq_q=400, seq_k=50, head_dim=128)
    assert plain(msgspec.structs.replace(short, causal=True))[1][2] == 4 * 50 * 256


def test_each_query_head_reads_keys_for_itself() -> None:
    w = make(batch=2, heads=6, kv_heads=2, seq_q=113, seq_k=203, head_dim=96)
    moved = {tensor: read for _, tensor, read, _ in plain(w)}
    assert moved["K"] == moved["V"] == 12 * 203 * 96 * 2  # one block of 128 rows
    assert moved["Q"] == 12 * 113 * 96 * 2


def test_flops_by_hand() -> None:
    found = row().io
    assert found is not None

    def issued(w: AttentionWorkload) -> int:
        return found.issued_flops(w, planned(w))

    # d 40 is padded to 64 columns, 2 tiles of 192 rows: warpgroups begin at rows 0, 64, 128 and 192, which
    # visit 2 blocks of 128 keys each, and at 256 and 320, beyond the 200 rows: 1 block each. 2 products, and
    # one more of each of 3 warpgroups where 2 programs find that there is no third tile.
    assert issued(make(head_dim=40)) == (2 * (4 * 2 + 2) + 2 * 3) * (2 * 64 * 128 * 64)
    # d 16 too, where the portable kernels have tiles of 16 columns.
    assert issued(make(head_dim=16)) == issued(make(head_dim=40)) == issued(make(head_dim=64))
    # Causal, the last rows see 64, 128, 192 and 200 keys: 1, 1, 2 and 2 blocks.
    assert issued(make(causal=True)) == (2 * (1 + 1 + 2 + 2 + 2) + 2 * 3) * (2 * 64 * 128 * 64)
    # d 80 is padded to 96, 2 tiles of 128 rows: 4 warpgroups, each with a row in range. d 104 to 128.
    assert issued(make(head_dim=80)) == issued(make(head_dim=96)) == (2 * 4 * 2 + 2 * 2) * (2 * 64 * 128 * 96)
    assert issued(make(head_dim=96, causal=True)) == (2 * (1 + 1 + 2 + 2) + 2 * 2) * (2 * 64 * 128 * 96)
    assert (
        issued(make(head_dim=104)) == issued(make(head_dim=128)) == (2 * 4 * 2 + 2 * 2) * (2 * 64 * 128 * 128)
    )
    # d 136 to 192, causal, 128 x 64, N_q 400, N_k 150: last rows end at keys -186, -122, -58, 6, 70, 134 and
    # 150: 1, 1, 1, 1, 2, 3 and 3 blocks, and 1 of the warpgroup at row 448, whose rows are all beyond. 3
    # heads, and of each of 12 tiles two warpgroups that begin another one.
    late = make(heads=3, kv_heads=3, seq_q=400, seq_k=150, head_dim=136, causal=True)
    assert issued(late) == (2 * 3 * (1 + 1 + 1 + 1 + 2 + 3 + 3 + 1) + 2 * 12) * (2 * 64 * 64 * 192)
    # Backward 5 products, d 16: 2 blocks of 128 keys by 4 of 64 rows, 64 columns.
    assert issued(make(head_dim=16, pass_="bwd")) == 5 * 8 * (2 * 64 * 128 * 64)
    # Causal, 4 blocks of rows see the first 128 keys, 2 those from 128 on. Rows 0-63 see none of keys 64-127,
    # nor rows 128-191 of keys 192-199: there S, dP, dV and dK are of 64 keys, and dQ of 128, half of them 0.
    one = 2 * 64 * 64 * 64
    assert issued(make(pass_="bwd", causal=True)) == 5 * 4 * 2 * one + 2 * (4 + 2) * one
    # d 96 the same with 128 columns; dQ's first 64 columns are of 128 keys, its last 64 of 64.
    wide = 2 * 64 * 64 * 128
    shared = make(head_dim=96, pass_="bwd", causal=True)
    assert issued(shared) == 5 * 4 * 2 * wide + 2 * (4 * wide + wide + wide // 2)
    assert issued(make(pass_="fwd-bwd")) == issued(make()) + issued(make(pass_="bwd"))


def test_no_more_programs_than_multiprocessors() -> None:
    """N 2k, d 128, 128 heads: 2048 tiles of 2 warpgroups, 132 programs. An H200 counted the same FLOPs."""
    w = make(batch=8, heads=16, kv_heads=16, seq_q=2048, seq_k=2048, head_dim=128, causal=True)
    (tile, *_) = planned(w)
    assert hopper.idle_products(w, tile) == 2 * 132
    assert hopper.hopper_flops(w, planned(w)) == 146_582_536_192


def test_causes_of_extra_flops() -> None:
    found = row().io
    assert found is not None
    assert found.extra_flops(make(), ()) == ()
    for pass_ in ("fwd", "bwd"):
        assert found.extra_flops(make(head_dim=32, pass_=pass_), ()) == ("head dim 32 padded to 64",)
    assert found.extra_flops(make(head_dim=80), ()) == ("head dim 80 padded to 96",)
    assert found.extra_flops(make(head_dim=96), ()) == found.extra_flops(make(head_dim=192), ()) == ()
    assert found.extra_flops(make(head_dim=96, causal=True, pass_="bwd"), ()) == (
        "masked part of diagonal tiles",
        "head dim 96 padded to 128",
    )
    more = "S and dP recomputed twice (7 products for 5)"
    assert found.extra_flops(make(head_dim=192, pass_="bwd"), ()) == (more,)
    # Both passes: each has columns of its own.
    for head_dim, *causes in (
        (40, "head dim 40 padded to 64"),
        (80, "head dim 80 padded to 96 forward and 128 backward"),
        (96, "head dim 96 padded to 128 backward"),
        (136, more, "head dim 136 padded to 192"),
        (200, more, "head dim 200 padded to 256"),
    ):
        assert found.extra_flops(make(head_dim=head_dim, pass_="fwd-bwd"), ()) == tuple(causes)
    assert found.extra_flops(make(head_dim=128, pass_="fwd-bwd"), ()) == ()
    assert io.flash_extra_flops(make(head_dim=32)) == ()


# The kernel's loops.


def cut(numerator: int, denominator: int) -> int:
    """Integer division as a GPU has it: towards zero."""
    return int(numerator / denominator)


def walked(w: AttentionWorkload, groups: int, block_n: int) -> tuple[list[int], list[int]]:
    """Blocks of K that the producer loads for each tile, and that each warpgroup multiplies."""

    def visited(start: int, rows: int) -> int:
        end = min(start + rows, w.seq_q) + w.seq_k - w.seq_q if w.causal else w.seq_k
        return max(cut(end + block_n - 1, block_n), 1)

    loaded, computed = [], []
    for block in range(-(-w.seq_q // (64 * groups))):
        tile = block * 64 * groups
        loaded.append(visited(tile, 64 * groups))
        for start in range(tile, tile + 64 * groups, 64):
            if start >= w.seq_q:  # the one that a tile begins with, before it is known that there are no rows
                computed.append(1)
                continue
            own = visited(start, 64) if w.causal else loaded[-1]
            full = own - 1
            if w.causal:
                full = min(max(start + w.seq_k - w.seq_q + 1, 0) // block_n, own - 1)
                # The ring lets a warpgroup go by one block that others of its tile need.
                assert 0 <= loaded[-1] - own <= 1
            computed.append(1 + (own - 1 - full) + full)
            # No key of an unmasked block lies above the diagonal of the warpgroup's first row, and all exist.
            if full and w.causal:
                assert full * block_n - 1 <= start + w.seq_k - w.seq_q
            assert full * block_n <= w.seq_k
    return loaded, computed


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_visit_the_blocks_that_the_kernel_loads(causal: bool, head_dim: int) -> None:
    """Loads are those of the whole tile; each warpgroup multiplies what its own rows see."""
    for seq_q, seq_k in [
        (1, 1),
        (1, 777),
        (64, 64),
        (113, 203),
        (203, 113),
        (500, 17),
        (640, 1500),
        (2048, 2048),
    ]:
        w = make(seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, causal=causal)
        tile = table.hopper_tile(head_dim, causal)
        loaded, computed = walked(w, tile.groups, tile.block_n)
        (forward, *_) = planned(w)
        assert io.key_blocks(w, forward) == loaded
        product = 2 * 64 * tile.block_n * head_dim
        assert hopper.warpgroup_blocks(w, forward) == sum(computed)
        idle = tile.groups * min(len(loaded), 132) if tile.persistent else 0
        assert hopper.hopper_flops(w, planned(w)) == product * (2 * sum(computed) + idle)


def test_the_walk_has_the_bounds_of_the_source() -> None:
    """If one of these lines changes, the walk above and the model have to."""
    source = (KERNELS / "flash_hopper.py").read_text()
    for line in (
        "end = gl.minimum(start + rows, seq_q) + seq_k - seq_q",
        "return gl.maximum((end + BLOCK_N - 1) // BLOCK_N, 1)",
        "blocks = _blocks(start, GROUPS * 64, seq_q, seq_k, CAUSAL, BLOCK_N)",
        "visited = _blocks(tile, GROUPS * 64, seq_q, seq_k, CAUSAL, BLOCK_N)",
        "visited = _blocks(start, 64, seq_q, seq_k, CAUSAL, BLOCK_N)\n",
        "skipped = loaded - visited\n",
        "full = gl.minimum(gl.maximum(start + seq_k - seq_q + 1, 0) // BLOCK_N, visited - 1)",
        "more = visited - 1",
        "if start >= seq_q:",
    ):
        assert line in source


# Tiles.


def test_tiles_are_those_that_were_fastest() -> None:
    Tile = table.HopperTile
    assert table.hopper_tile(64, False) == Tile(3, 128, 2, 2, True)
    assert table.hopper_tile(64, True) == Tile(3, 128, 3, 2, True)
    assert table.hopper_tile(40, True) == table.hopper_tile(64, True)
    assert table.hopper_tile(128, False) == table.hopper_tile(72, False) == Tile(2, 128, 2, 2, True)
    assert table.hopper_tile(128, True) == Tile(2, 128, 2, 2, True)
    assert table.hopper_tile(256, False) == Tile(2, 64, 2, 1, False)
    with pytest.raises(ValueError, match="head dim 264"):
        table.hopper_tile(264, False)


def test_a_tile_holds_a_warpgroup_more_than_compute() -> None:
    assert table.HopperTile(3, 128, 2).held == table.Tile(192, 128, 16, 2)
    assert table.HopperTile(2, 64, 3).held == table.Tile(128, 64, 12, 3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_tiles_fit_shared_memory(head_dim: int, causal: bool) -> None:
    held = table.hopper_tile(head_dim, causal).held
    # 1 KiB for the barriers
    assert table.hopper_shared_bytes(held, head_dim) <= table.shared_limit((9, 0)) - 1024


def test_shared_memory_by_hand() -> None:
    # d 40: two of Q and O 192 x 64, two stages of K and of V 128 x 64, 2 B an element.
    tile = table.Tile(192, 128, 16, 2)
    assert table.hopper_shared_bytes(tile, 40) == 2 * 64 * (2 * 192 + 192 + 4 * 128)
    assert table.hopper_shared_bytes(tile, 40, q_stages=1) == 2 * 64 * (192 + 192 + 4 * 128)
    # d 256: O takes the room of Q.
    assert table.hopper_shared_bytes(table.Tile(128, 64, 12, 2), 256) == 2 * 256 * (128 + 4 * 64)


def test_plan_is_the_tiles_of_both_passes() -> None:
    w = make(head_dim=96, causal=True)
    forward, after = planned(w)
    assert (forward.kernel, forward.block_m, forward.block_n) == ("flash_hopper_forward", 128, 128)
    assert (forward.num_warps, forward.num_stages) == (12, 2)
    # 64 rows of Q in two stages, 128 keys; two warpgroups, and one that loads.
    assert after == KernelUse(kernel="flash_hopper_dkdv", block_m=64, block_n=128, num_warps=12, num_stages=2)
    # Up to 64 columns three stages, and a warpgroup more, for dQ.
    assert planned(make(head_dim=40))[1] == KernelUse(
        kernel="flash_hopper_dkdv", block_m=64, block_n=128, num_warps=16, num_stages=3
    )
    # Elsewhere it cannot run, and the model says what it would move.
    assert hopper.hopper_plan(w, (8, 0)) == hopper.hopper_plan(w, (0, 0)) == (forward, after)


# The fused backward, up to 128 columns.


def test_ledger_of_the_backward_by_hand() -> None:
    """N 200, d 64, causal: 4 blocks of 64 rows. Keys 0-127 are seen by all, keys 128-199 by the last two."""
    # A row is 128 B. Rows read: 200, and 200 - 128. Visits: 4 + 2, of 64 numbers of LSE and of D. These are
    # padded to 256 rows, and so is the sum, of 64 columns: 2 x 8192.
    kernel = "flash_hopper_dkdv"
    assert plain(make(causal=True, pass_="bwd")) == [
        ("flash_hopper_statistics", "O", 200 * 128, 0),
        ("flash_hopper_statistics", "dO", 200 * 128, 0),
        ("flash_hopper_statistics", "LSE", 200 * 4, 0),
        ("flash_hopper_statistics", "LSE in base 2", 0, 256 * 4),
        ("flash_hopper_statistics", "D", 0, 256 * 4),
        ("flash_hopper_statistics", "dQ in fp32", 0, 2 * 8192 * 4),
        (kernel, "K", 200 * 128, 0),
        (kernel, "V", 200 * 128, 0),
        (kernel, "Q", (200 + 72) * 128, 0),
        (kernel, "dO", (200 + 72) * 128, 0),
        (kernel, "LSE in base 2", 6 * 64 * 4, 0),
        (kernel, "D", 6 * 64 * 4, 0),
        (kernel, "dK", 0, 200 * 128),
        (kernel, "dV", 0, 200 * 128),
        ("flash_hopper_dq_from_sum", "dQ in fp32", 2 * 8192 * 4, 0),
        ("flash_hopper_dq_from_sum", "dQ", 0, 200 * 128),
    ]


def test_shares_of_a_group() -> None:
    """The fewest that divide the group and make 1056 programs, else one for each query head."""
    assert table.hopper_shares(1056, 8) == table.hopper_shares(64, 1) == 1
    assert table.hopper_shares(1055, 8) == 2
    assert table.hopper_shares(256, 4) == 4  # 1024 programs, and no more to be had
    assert table.hopper_shares(360, 6) == 3
    # 32 query heads of 8, N 4k: 8 * 32 = 256 blocks of keys. Batch 8: 2048.
    assert backward.shares_of(make(heads=32, kv_heads=8, seq_q=4096, seq_k=4096)) == 4
    assert backward.shares_of(make(batch=8, heads=32, kv_heads=8, seq_q=4096, seq_k=4096)) == 1


def test_backward_of_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 K/V heads of 3 query heads, 3 blocks of keys: each query head has a program. 2 blocks of rows."""
    w = make(batch=2, heads=6, kv_heads=2, seq_q=65, seq_k=300, head_dim=96, pass_="bwd")
    moved = {(kernel, tensor): (read, written) for kernel, tensor, read, written in plain(w)}
    keys = 2 * 2 * 300 * 192
    # 12 programs for each block of keys, that is 3 for each K/V head.
    assert moved["flash_hopper_dkdv", "K"] == (3 * keys, 0)
    assert moved["flash_hopper_dkdv", "parts of dK and dV"] == (0, 2 * 3 * keys)
    assert moved["flash_hopper_sum_of_parts", "parts of dK and dV"] == (2 * 3 * keys, 0)
    assert moved["flash_hopper_sum_of_parts", "dK"] == (0, keys)
    assert moved["flash_hopper_dkdv", "Q"] == (12 * 3 * 65 * 192, 0)
    assert ("flash_hopper_dkdv", "dQ in fp32") not in moved
    assert moved["flash_hopper_dq_from_sum", "dQ in fp32"] == (12 * 2 * 8192 * 4, 0)
    # LSE; LSE and D padded to 128 rows; the sum of dQ.
    least = 12 * (65 * 4 + 2 * 128 * 4 + 2 * 8192 * 4)
    assert row().workspace(w) == least + 2 * 3 * keys
    model = row().io
    assert model is not None
    assert model.exps(w, planned(w)) == w.pairs
    assert model.launches(w, planned(w)) == 4

    monkeypatch.setattr(table, "HOPPER_PROGRAMS", 12)  # as many as there are blocks of keys
    moved = {(kernel, tensor): (read, written) for kernel, tensor, read, written in plain(w)}
    assert moved["flash_hopper_dkdv", "K"] == (keys, 0)
    assert moved["flash_hopper_dkdv", "dK"] == (0, keys)
    assert not any("parts" in tensor for _, tensor in moved)
    assert row().workspace(w) == least
    assert model.launches(w, planned(w)) == 3


def test_the_sum_of_dq_has_whole_tiles() -> None:
    """N_q 65: 128 rows of 64 columns or of 128, though two blocks of 64 rows are visited in either case."""
    for head_dim, columns in ((40, 64), (128, 128)):
        w = make(heads=3, kv_heads=3, seq_q=65, seq_k=128, head_dim=head_dim, pass_="bwd")
        assert backward.sum_bytes(w) == 3 * 128 * columns * 4
        assert backward.added_bytes(w, planned(w)[1]) == 3 * 2 * 64 * columns * 4
    # N_q 129: 256 rows of 64 columns, but 192 of 128.
    sums = [backward.sum_bytes(make(seq_q=129, head_dim=d, pass_="bwd")) for d in (64, 128)]
    assert sums == [256 * 64 * 4, 192 * 128 * 4]


def walked_backward(w: AttentionWorkload, width: int) -> tuple[int, int, int]:
    """(steps of the producer, FLOPs, blocks of 64 rows and `width` columns added to dQ) of one head."""
    rows_of_wgmma = 2 * 64 * width  # FLOPs of 64 rows and `width` columns for each of what is summed over
    tiles_m, later = -(-w.seq_q // 64), w.seq_k - w.seq_q
    loaded = flops = added = 0
    for start in range(0, w.seq_k, 128):
        first = max(start - later, 0) // 64 if w.causal else 0
        loaded += max(0, tiles_m - first)
        for warpgroup in (0, 1):
            lo = first
            if w.causal and warpgroup == 1:
                last_row = lo * 64 + 63 + later
                if lo < tiles_m and last_row < start + 64:
                    # What is passed over is of no use: no row of it sees a key of the warpgroup.
                    assert all(row + later < start + 64 for row in range(lo * 64, lo * 64 + 64))
                    # Half of the columns of dQ, of the other's 64 keys, unless a third has dQ alone.
                    flops += rows_of_wgmma // 2 * 64 if width == 128 else 0
                    lo += 1
            # S, dP, dV and dK of 64 keys and 64 rows, and half of the columns of dQ of 128 keys.
            each = 4 * rows_of_wgmma * 64 + (rows_of_wgmma // 2 * 128 if width == 128 else 0)
            flops += each * max(0, tiles_m - lo)
        if width == 64:  # the third warpgroup: 64 columns of dQ of 128 keys, whoever passed over
            flops += rows_of_wgmma * 128 * max(0, tiles_m - first)
        added += max(0, tiles_m - first)
    return loaded, flops, added


@pytest.mark.parametrize("head_dim", [40, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_backward_visits_the_blocks_that_the_kernel_loads(causal: bool, head_dim: int) -> None:
    passed = 0
    for seq_q, seq_k in [
        (1, 1),
        (1, 777),
        (64, 64),
        (113, 203),
        (203, 113),
        (500, 17),
        (640, 1500),
        (640, 768),
        (2048, 2048),
    ]:
        w = make(heads=2, kv_heads=1, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, causal=causal, pass_="bwd")
        assert backward.shares_of(w) == 2  # a program has one query head
        width = -(-head_dim // 64) * 64
        loaded, flops, added = walked_backward(w, width)
        tile = planned(w)[1]
        assert backward.visits_of(w, tile) == 2 * loaded
        assert backward.added_bytes(w, tile) == 2 * added * 64 * width * 4
        assert backward.backward_flops(w, planned(w)) == 2 * flops
        passed += backward.passed_over(w, tile)
    assert bool(passed) == causal
    # N 2048, causal: one block of rows for each of 16 blocks of keys and each head.
    assert not passed or backward.passed_over(w, tile) == 2 * 16


def test_the_walk_backward_has_the_bounds_of_the_source() -> None:
    """If one of these lines changes, the walk above and the model have to."""
    source = (KERNELS / "flash_hopper_dkdv.py").read_text()
    for line, times in {
        "first = gl.maximum(start_n - (seq_k - seq_q), 0) // BLOCK_M": 1,
        "full = gl.maximum(start_n + (KEYS - 1) - (seq_k - seq_q), 0)": 1,
        "full = gl.minimum((full + BLOCK_M - 1) // BLOCK_M, tiles_m)": 1,
        "for block in range(first, tiles_m):": 2,  # the producer, and dQ apart
        "if CAUSAL and W == 1 and BLOCK_M == 64:": 1,
        "last_row = lo * 64 + 63 + (seq_k - seq_q)": 1,
        "if (lo < tiles_m) & (last_row < start_n + 64):": 1,
        "dk, dv, count, lo, full, first_part, start_n, arguments,": 1,
        "dk, dv, count, full, tiles_m, first_part, start_n, arguments,": 1,
    }.items():
        assert source.count(line) == times, line


# DRAM.


def test_causal_heads_go_out_together() -> None:
    """d 128, N 2k: K and V of a head are 1 MiB, so 16 heads go out together, take 16 of 60 MiB, and stay."""
    w = make(batch=4, heads=16, kv_heads=16, seq_q=2048, seq_k=2048, head_dim=128, causal=True)
    assert table.hopper_together(1 * MIB) == 16
    found = hopper_dram(w, planned(w), H200)
    assert found.reason == "1 group(s) of 16 heads in flight take 27% of L2: they stay"
    tensor = 64 * 2048 * 128 * 2
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=tensor + 64 * 2048 * 4)


def test_a_head_too_large_for_l2_is_read_by_every_wave() -> None:
    """d 128, N 64k: K and V of a head are 32 of 60 MiB, and go out alone."""
    w = make(heads=2, kv_heads=2, seq_q=65536, seq_k=65536, head_dim=128, causal=True)
    assert table.hopper_together(32 * MIB) == 1
    found = hopper_dram(w, planned(w), H200)
    assert found.reason == "1 head(s) in flight take 53% of L2: 96% of re-reads miss"
    # 2 heads of 512 tiles, 132 at a time: 8 waves, of whose 7 later ones none starts where a head does. They
    # touch 2 + 7 heads, and the mask leaves (1 + ... + 512) of 512^2 blocks of each pass.
    tensor = 2 * 65536 * 128 * 2
    lost = (32 / 60 - 0.37) / (0.54 - 0.37)
    again = (1 + lost * (9 / 2 - 1)) * 513 / 1024 - 1
    assert found.traffic.read_bytes == pytest.approx((1 + 2 + 2 * again) * tensor, rel=1e-6)


def test_without_a_mask_heads_go_out_one_by_one() -> None:
    w = make(batch=4, heads=16, kv_heads=16, seq_q=2048, seq_k=2048, head_dim=128)
    tensor = 64 * 2048 * 128 * 2
    found = hopper_dram(w, planned(w), H200)
    assert found.reason == "9 head(s) in flight take 15% of L2: they stay"
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=tensor + 64 * 2048 * 4)


def test_a_group_is_no_larger_than_the_heads_there_are() -> None:
    w = make(heads=2, kv_heads=2, seq_q=1024, seq_k=1024, causal=True)  # 64 heads would fit
    assert hopper_dram(w, planned(w), H200).reason.startswith("1 group(s) of 2 heads in flight")
    # Keys too many for 16 MiB: one head, as in `flash-triton`.
    assert table.hopper_together(17 * MIB) == 1


def test_dram_of_the_backward_where_all_stays() -> None:
    """8 heads of N 1k, d 64: the inputs take 5 MiB and the sum 2, a ninth of L2. Each is read once."""
    w = make(heads=8, kv_heads=8, seq_q=1024, seq_k=1024, pass_="bwd")
    tensor, rows = MIB, 8 * 1024 * 4
    found = hopper_dram(w, planned(w), H200)
    assert found.traffic.read_bytes == 5 * tensor + rows
    # dQ, dK, dV; LSE in base 2 and D; the sum, once.
    assert found.traffic.write_bytes == 3 * tensor + 2 * rows + 2 * tensor
    assert "(assumed)" in found.reason


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pass_", ["bwd", "fwd-bwd"])
@pytest.mark.parametrize(("seq_q", "seq_k"), [(64, 64), (500, 17), (17, 500), (2048, 2048), (16384, 16384)])
def test_dram_of_the_backward_is_between_bounds(seq_q: int, seq_k: int, pass_: str, causal: bool) -> None:
    w = make(heads=16, kv_heads=4, seq_q=seq_q, seq_k=seq_k, head_dim=128, causal=causal, pass_=pass_)
    model = row().io
    assert model is not None
    found, asked = hopper_dram(w, planned(w), H200).traffic, model.traffic(w, planned(w))
    least = io.compulsory(w)
    assert found.read_bytes > 0
    # What is added to the sum of dQ is not in the ledger, and may reach DRAM: 64 x 128 float32 for each pair
    # of blocks, of 64 rows and 128 keys.
    added = 16 * -(-seq_q // 64) * -(-seq_k // 128) * 64 * 128 * 4
    assert least.write_bytes <= found.write_bytes <= asked.write_bytes + added
    if not causal:
        assert least.read_bytes <= found.read_bytes


# The row.


def test_the_row() -> None:
    found = row()
    assert found.named_only
    assert found.role == "shipped"
    assert found.hardware == ("cuda",)
    assert found.retiled is None
    reason = "Triton's interpreter cannot execute Gluon, in which its kernels are written"
    assert found.not_counted(make(), (9, 0)) == found.not_counted(make(), (8, 0)) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dtype": "fp32"}, "dtype fp32: flash-hopper takes bf16, fp16"),
        ({"head_dim": 8}, "head dim 8: flash-hopper takes multiples of 8 from 16 to 256"),
        ({"head_dim": 100}, "head dim 100: flash-hopper takes multiples of 8 from 16 to 256"),
        ({"head_dim": 264}, "head dim 264: flash-hopper takes multiples of 8 from 16 to 256"),
        ({"pattern": "window:64"}, "flash-hopper has no pattern"),
        ({"padding": 5}, "flash-hopper has no padding"),
    ],
)
def test_refusals(fields: dict[str, Any], reason: str) -> None:
    assert row().refusal(make(**fields)) == reason


def test_what_it_serves() -> None:
    for head_dim in HEAD_DIMS:
        for pass_ in ("fwd", "bwd", "fwd-bwd"):
            w = make(head_dim=head_dim, seq_q=1, causal=True, pass_=pass_)
            assert row().refusal(w) is None


@pytest.mark.parametrize("head_dim", [64, 192])
@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd-bwd"])
def test_kernels_are_named_as_their_functions(pass_: str, head_dim: int) -> None:
    forward = (KERNELS / "flash_hopper.py").read_text()
    launched = (KERNELS / "flash_hopper_backward.py").read_text() + (KERNELS / "tiles.py").read_text()
    after = "".join(path.read_text() for path in sorted(KERNELS.glob("flash_hopper_*.py")))
    w = make(pass_=pass_, head_dim=head_dim)
    assert re.search(rf"^def {io.HOPPER}\(", forward, re.MULTILINE)
    assert f'note_use(uses, "{io.HOPPER}"' in forward
    model = row().io
    assert model is not None
    kernels = dict.fromkeys(kernel for kernel, *_ in plain(w))
    others = {"flash_hopper_statistics", "flash_hopper_dq_from_sum"}
    assert set(model.tiled(w, ())) == kernels.keys() - others
    assert (io.HOPPER in kernels) == (pass_ != "bwd")
    assert model.launches(w, ()) == len(kernels)
    for name in kernels.keys() - {io.HOPPER}:
        assert re.search(rf"^def {name}\(", after, re.MULTILINE)
        assert f'"{name}"' in launched


def test_the_portable_kernel_is_the_default() -> None:
    """The formulas that both paths share default to the kernel of `flash-triton`."""
    for function in (io.flash_ledger, io.flash_traffic):
        assert inspect.signature(function).parameters["forward"].default == "flash_forward"
    portable = ATTENTION.implementation("flash-triton")
    assert portable is not None
    assert portable.target.endswith(".flash:attention")
    assert portable.io is not None
    assert portable.io.ledger is io.flash_ledger
