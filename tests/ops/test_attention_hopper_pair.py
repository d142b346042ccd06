"""The IO model of `flash-hopper` backward above 128 columns: a kernel of dK and dV, and one of dQ."""

from pathlib import Path
from typing import Any

import pytest

from perfkit.kernels.attention import tiles as table
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_hopper as hopper
from perfkit.ops import attention_hopper_backward as backward
from perfkit.ops import attention_io as io
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_cache import flash_dram
from perfkit.ops.attention_hopper_cache import hopper_dram
from perfkit.ops.attention_tiles import shared_bytes_of
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, IOModel, KernelUse, Uses

KERNELS = Path(__file__).parents[2] / "kernels/attention"
H200 = load("h200-141gb-sxm")  # 60 MiB of L2
MIB = 1 << 20
STATISTICS, DKDV, DQ = "flash_hopper_statistics", "flash_hopper_dkdv_wide", "flash_hopper_dq"
#: A product of 64 x 64 x 192, which is what a warpgroup does at a time.
ONE = 2 * 64 * 64 * 192
#: Tiles of the portable kernels like those of the pair.
PORTABLE: Uses = (
    KernelUse(kernel="flash_dkdv", block_m=64, block_n=64),
    KernelUse(kernel="flash_dq", block_m=128, block_n=64),
)


def make(**fields: Any) -> AttentionWorkload:
    defaults = {"heads": 1, "kv_heads": 1, "seq_q": 200, "seq_k": 333, "head_dim": 192, "pass_": "bwd"}
    return AttentionWorkload(**{**defaults, **fields})


def row() -> Implementation:
    found = ATTENTION.implementation("flash-hopper")
    assert found is not None
    return found


def model() -> IOModel:
    found = row().io
    assert found is not None
    return found


def planned(w: AttentionWorkload) -> Uses:
    return hopper.hopper_plan(w, (9, 0))


def moved(w: AttentionWorkload) -> dict[tuple[str, str], tuple[int, int]]:
    """(kernel, tensor) -> (read, written)."""
    ledger = model().ledger(w, planned(w))
    return {(m.kernel, m.tensor): (m.traffic.read_bytes, m.traffic.write_bytes) for m in ledger}


# Tiles.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [136, 192, 256])
def test_plan_is_the_tiles_of_three_kernels(head_dim: int, causal: bool) -> None:
    """64 keys, and 64 rows of Q at a time; 128 rows, and 64 keys at a time. Two warpgroups."""
    forward, dkdv, dq = planned(make(head_dim=head_dim, causal=causal))
    assert forward.kernel == "flash_hopper_forward"
    assert dkdv == KernelUse(kernel=DKDV, block_m=64, block_n=64, num_warps=12, num_stages=2)
    assert dq == KernelUse(kernel=DQ, block_m=128, block_n=64, num_warps=12, num_stages=2)
    for use in (dkdv, dq):
        # 1 KiB for the barriers
        assert (shared_bytes_of(use, head_dim) or 0) <= table.shared_limit((9, 0)) - 1024
    assert model().tiled(make(head_dim=head_dim, pass_="fwd-bwd"), ()) == (forward.kernel, DKDV, DQ)
    assert model().tiled(make(head_dim=head_dim), ()) == (DKDV, DQ)
    assert [use.kernel for use in planned(make(head_dim=128))] == [forward.kernel, "flash_hopper_dkdv"]


def test_shared_memory_by_hand() -> None:
    _, dkdv, dq = planned(make())
    # d 192: K and V of 64 rows, two stages of 64 rows of Q, dO, LSE and D, and P in fp32.
    assert shared_bytes_of(dkdv, 192) == 2 * 64 * 2 * 192 + 2 * 64 * (2 * 2 * 192 + 8) + 64 * 64 * 4
    # Q and dO of 128 rows, two stages of 64 rows of K and of V; d 256 has one of V.
    assert shared_bytes_of(dq, 192) == 2 * 192 * (2 * 128 + 4 * 64)
    assert shared_bytes_of(dq, 256) == 2 * 256 * (2 * 128 + 3 * 64)


# By hand: N_q 200, N_k 333, d 192. A row is 384 B. 4 blocks of 64 rows, 2 of 128, 6 blocks of 64 keys.


def test_ledger_by_hand() -> None:
    tensor, keys = 200 * 384, 333 * 384
    assert moved(make()) == {
        (STATISTICS, "O"): (tensor, 0),
        (STATISTICS, "dO"): (tensor, 0),
        (STATISTICS, "LSE"): (200 * 4, 0),
        (STATISTICS, "LSE in base 2"): (0, 256 * 4),
        (STATISTICS, "D"): (0, 256 * 4),
        (DKDV, "K"): (keys, 0),
        (DKDV, "V"): (keys, 0),
        (DKDV, "Q"): (6 * tensor, 0),
        (DKDV, "dO"): (6 * tensor, 0),
        (DKDV, "LSE in base 2"): (6 * 256 * 4, 0),
        (DKDV, "D"): (6 * 256 * 4, 0),
        (DKDV, "dK"): (0, keys),
        (DKDV, "dV"): (0, keys),
        (DQ, "Q"): (tensor, 0),
        (DQ, "dO"): (tensor, 0),
        (DQ, "LSE in base 2"): (256 * 4, 0),
        (DQ, "D"): (256 * 4, 0),
        (DQ, "K"): (2 * keys, 0),
        (DQ, "V"): (2 * keys, 0),
        (DQ, "dQ"): (0, tensor),
    }
    assert list(dict.fromkeys(kernel for kernel, _ in moved(make()))) == [STATISTICS, DKDV, DQ]


def test_ledger_of_a_mask_by_hand() -> None:
    """Row i sees keys up to i + 133."""
    found = moved(make(causal=True))
    # Keys from 0, 64 and 128 on are seen by row 0, from 192, 256 and 320 on by rows 59, 123 and 187: in
    # blocks 0, 1 and 2. Visits: 4 + 4 + 4 + 4 + 3 + 2.
    assert found[DKDV, "Q"] == found[DKDV, "dO"] == ((4 * 200 + 136 + 72) * 384, 0)
    assert found[DKDV, "LSE in base 2"] == found[DKDV, "D"] == (21 * 64 * 4, 0)
    # Rows 0-127 see 261 keys, five blocks; rows 128-199 all 333.
    assert found[DQ, "K"] == found[DQ, "V"] == ((5 * 64 + 333) * 384, 0)
    # The rest is as without.
    masked = {(DKDV, "Q"), (DKDV, "dO"), (DKDV, "LSE in base 2"), (DKDV, "D"), (DQ, "K"), (DQ, "V")}
    full = moved(make())
    assert found.keys() == full.keys()
    assert {key for key in full if found[key] != full[key]} == masked


def test_flops_by_hand() -> None:
    def issued(**fields: Any) -> int:
        w = make(**fields)
        return model().issued_flops(w, planned(w))

    # 6 x 4 tiles of 64 x 64 with four products, 2 x 6 of 128 x 64 with three.
    full = 4 * 24 * ONE + 3 * 12 * 2 * ONE
    assert issued() == issued(head_dim=136) == full
    # d 200 is padded to 256.
    assert issued(head_dim=256) == issued(head_dim=200) == full // 3 * 4
    # Causal, both warpgroups of rows 0-127 multiply five blocks, though the first sees 133 + 64 keys.
    causal = 4 * 21 * ONE + 3 * (5 + 6) * 2 * ONE
    assert issued(causal=True) == causal
    assert issued(batch=2, heads=6, kv_heads=2, causal=True) == 12 * causal
    forward = issued(causal=True, pass_="fwd")
    assert issued(causal=True, pass_="fwd-bwd") == forward + causal
    # N_q 50: one block of rows in either kernel, half of it without a row.
    assert issued(seq_q=50, seq_k=200) == 4 * 4 * ONE + 3 * 4 * 2 * ONE


def test_rows_that_see_no_key_visit_none() -> None:
    """N_q 500, N_k 17, causal: rows below 483 see nothing, so one block of 64 rows does, and one of 128."""
    w = make(seq_q=500, seq_k=17, causal=True)
    found = moved(w)
    assert found[DKDV, "Q"] == ((500 - 448) * 384, 0)
    assert found[DKDV, "D"] == (64 * 4, 0)
    assert found[DQ, "K"] == (17 * 384, 0)
    assert model().issued_flops(w, planned(w)) == 4 * ONE + 3 * 2 * ONE
    # They are loaded all the same, and their dQ is written.
    assert found[DQ, "Q"] == (500 * 384, 0)
    assert found[DQ, "dQ"] == (0, 500 * 384)
    assert found[DQ, "D"] == (512 * 4, 0)


def test_grouped_heads_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x 2 K/V heads of 3 query heads, 6 blocks of keys: 24 programs, so each query head has one."""
    w = make(batch=2, heads=6, kv_heads=2, causal=True)
    found, keys, tensor = moved(w), 4 * 333 * 384, 12 * 200 * 384
    assert found[DKDV, "K"] == found[DKDV, "V"] == (3 * keys, 0)
    assert found[DKDV, "parts of dK and dV"] == (0, 2 * 3 * keys)
    assert found["flash_hopper_sum_of_parts", "parts of dK and dV"] == (2 * 3 * keys, 0)
    assert found["flash_hopper_sum_of_parts", "dK"] == (0, keys)
    assert found[DKDV, "Q"] == (12 * (4 * 200 + 136 + 72) * 384, 0)
    assert found[DQ, "Q"] == (tensor, 0)
    assert found[DQ, "K"] == (12 * (320 + 333) * 384, 0)  # every query head reads keys for itself
    # Row i of 200 sees i + 134 keys, in each kernel.
    assert w.pairs == 12 * (200 * 134 + 199 * 200 // 2)
    assert model().exps(w, planned(w)) == 2 * w.pairs
    assert model().exps(make(pass_="fwd-bwd"), ()) == 3 * 200 * 333
    assert model().launches(w, planned(w)) == 4
    # LSE; LSE and D padded to 256 rows; and no sum of dQ.
    least = 12 * (200 * 4 + 2 * 256 * 4)
    assert row().workspace(w) == least + 2 * 3 * keys

    monkeypatch.setattr(table, "HOPPER_PROGRAMS", 24)
    found = moved(w)
    assert found[DKDV, "K"] == (keys, 0)
    assert found[DKDV, "dK"] == (0, keys)
    assert not any("parts" in tensor for _, tensor in found)
    assert row().workspace(w) == least
    assert model().launches(w, planned(w)) == 3
    assert model().launches(make(pass_="fwd-bwd"), ()) == 4


def test_shares_are_of_blocks_of_64_keys() -> None:
    """8 heads of N 4k are 512 blocks: two shares make 1024 programs, and four more than enough."""
    assert backward.shares_of(make(heads=32, kv_heads=8, seq_q=4096, seq_k=4096, head_dim=256)) == 4
    # 16 blocks of 66 heads are 1056; one head less, and there are two shares. So there are with 8 blocks.
    assert backward.shares_of(make(heads=132, kv_heads=66, seq_k=1024)) == 1
    assert backward.shares_of(make(heads=130, kv_heads=65, seq_k=1024)) == 2
    assert backward.shares_of(make(heads=132, kv_heads=66, seq_k=1024, head_dim=128)) == 2


# Invariants.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq_q", "seq_k"), [(1, 1), (113, 203), (203, 113), (500, 17), (1024, 1024)])
def test_it_is_the_portable_pair_with_other_statistics(seq_q: int, seq_k: int, causal: bool) -> None:
    """d 256, one query head a K/V head, the same tiles: only what has statistics in it differs."""
    w = make(heads=2, kv_heads=2, seq_q=seq_q, seq_k=seq_k, head_dim=256, causal=causal)
    ours, theirs = moved(w), {(m.kernel, m.tensor): m.traffic for m in io.flash_ledger(w, PORTABLE)}
    for kernel, portable in ((STATISTICS, "flash_delta"), (DKDV, "flash_dkdv"), (DQ, "flash_dq")):
        tensors = [tensor for of, tensor in theirs if of == portable and tensor not in ("LSE", "D")]
        assert tensors
        for tensor in tensors:
            traffic = theirs[portable, tensor]
            assert ours[kernel, tensor] == (traffic.read_bytes, traffic.write_bytes)
    assert model().issued_flops(w, planned(w)) == io.flash_flops(w, PORTABLE)
    assert model().exps(w, planned(w)) == io.flash_exps(w, PORTABLE)
    assert model().extra_flops(w, planned(w)) == io.flash_extra_flops(w, PORTABLE)
    assert model().launches(w, planned(w)) == io.flash_launches(w, PORTABLE)


def test_beside_the_fused_kernel() -> None:
    """N 2k without a mask: 7 products for 5; half of the keys a program, so Q is read twice as often."""
    fused, pair = (make(heads=8, kv_heads=8, seq_q=2048, seq_k=2048, head_dim=d) for d in (128, 256))
    product = 2 * 8 * 2048 * 2048 * 128
    assert model().issued_flops(fused, planned(fused)) == 5 * product
    assert model().issued_flops(pair, planned(pair)) == 7 * 2 * product
    assert moved(pair)[DKDV, "Q"][0] == 2 * 2 * moved(fused)["flash_hopper_dkdv", "Q"][0]
    assert moved(pair)[STATISTICS, "D"] == moved(fused)[STATISTICS, "D"]
    assert model().exps(pair, ()) == 2 * model().exps(fused, ())
    assert model().launches(pair, ()) == model().launches(fused, ())
    # Neither adds anything to a sum, nor has one.
    assert not any("fp32" in tensor for _, tensor in moved(pair))
    assert backward.sum_bytes(pair) == backward.added_bytes(pair, planned(pair)[1]) == 0
    assert row().workspace(fused) - row().workspace(pair) == backward.sum_bytes(fused) == 8 * 2048 * 128 * 4


def test_causes_of_extra_flops() -> None:
    more = "S and dP recomputed twice (7 products for 5)"
    assert model().extra_flops(make(), ()) == (more,)
    assert model().extra_flops(make(pass_="fwd"), ()) == ()
    assert model().extra_flops(make(head_dim=200, causal=True, pass_="fwd-bwd"), ()) == (
        "masked part of diagonal tiles",
        more,
        "head dim 200 padded to 256",
    )


# The kernels' loops.


def cut(numerator: int, denominator: int) -> int:
    """Integer division as a GPU has it: towards zero."""
    return int(numerator / denominator)


def walked_dkdv(w: AttentionWorkload, panels: int) -> tuple[int, int, int]:
    """(blocks of rows that the producer loads, rows of these that there are, FLOPs) of one head."""
    product = 2 * 64 * 64 * 64  # of one panel
    tiles_m, later = cut(w.seq_q + 63, 64), w.seq_k - w.seq_q
    loaded = rows = flops = 0
    for start in range(0, w.seq_k, 64):
        first, full = 0, 0
        if w.causal:
            first = cut(max(start - later, 0), 64)
            full = min(cut(max(start + 63 - later, 0) + 63, 64), tiles_m)
        elif start + 64 > w.seq_k:
            full = tiles_m
        for block in range(first, tiles_m):
            loaded += 1
            rows += min(64, w.seq_q - block * 64)
        for _warpgroup in range(2):  # S and dV, or dP and dK
            for _ in [*range(first, full), *range(full, tiles_m)]:
                flops += 2 * panels * product
    return loaded, rows, flops


def walked_dq(w: AttentionWorkload, block_n: int, panels: int) -> tuple[int, int]:
    """(rows of K that the producer loads, FLOPs) of one head."""
    product = 2 * 64 * block_n * 64
    later = w.seq_k - w.seq_q
    keys = flops = 0
    for tile in range(cut(w.seq_q + 127, 128)):
        end = max(min(tile * 128 + 128, w.seq_q) + later, 0) if w.causal else w.seq_k
        hi = cut(end + block_n - 1, block_n)
        # The last row of the tile sees a key of the last block, and of none behind it.
        last = min(tile * 128 + 127, w.seq_q - 1) + later if w.causal else w.seq_k - 1
        assert (hi - 1) * block_n <= last < hi * block_n or hi == 0 > last
        keys += sum(min(block_n, w.seq_k - block * block_n) for block in range(hi))
        for start in (tile * 128, tile * 128 + 64):
            full = cut(w.seq_k, block_n)
            if w.causal:
                full = min(cut(max(start + later + 1, 0), block_n), hi)
            # What no mask is applied to, the first row sees, if there is one.
            assert full <= hi
            assert not w.causal or full * block_n - 1 <= max(start + later, -1)
            masked = range(full, hi) if w.causal or w.seq_k % block_n else range(0)
            for _ in [*range(full), *masked]:
                flops += 3 * panels * product  # S, dP and dQ
    return keys, flops


@pytest.mark.parametrize("head_dim", [136, 192, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_the_pair_visits_the_blocks_that_the_kernels_load(causal: bool, head_dim: int) -> None:
    panels, bytes_ = -(-head_dim // 64), 2 * head_dim
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
        w = make(heads=2, kv_heads=1, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, causal=causal)
        assert backward.shares_of(w) == 2  # a program has one query head
        loaded, rows, dkdv_flops = walked_dkdv(w, panels)
        keys, dq_flops = walked_dq(w, planned(w)[2].block_n, panels)
        found = moved(w)
        assert found[DKDV, "D"] == (2 * loaded * 64 * 4, 0)
        assert found[DKDV, "Q"] == found[DKDV, "dO"] == (2 * rows * bytes_, 0)
        assert found[DQ, "K"] == found[DQ, "V"] == (2 * keys * bytes_, 0)
        assert model().issued_flops(w, planned(w)) == 2 * (dkdv_flops + dq_flops)


def test_the_walk_has_the_bounds_of_the_source() -> None:
    """If one of these lines changes, the walks above and the model have to."""
    for name, lines in {
        "flash_hopper_wide.py": {
            "rows_seen(start_n, tiles_m, seq_q, seq_k, CAUSAL, 64, 64)": 2,
            "for block in range(first, tiles_m):": 1,
            "acc, count = _steps(acc, count, first, full, start_n, arguments,": 1,
            "acc, count = _steps(acc, count, full, tiles_m, start_n, arguments,": 1,
            " = products(": 2,
            "acc = accumulate(acc,": 2,
        },
        "flash_hopper_dq.py": {
            "end = gl.maximum(gl.minimum(start + 128, seq_q) + seq_k - seq_q, 0)": 1,
            "return (end + BLOCK_N - 1) // BLOCK_N": 1,
            "for block in range(_keys_seen(tile * 128, seq_q, seq_k, CAUSAL, BLOCK_N)):": 1,
            "hi = _keys_seen(tile * 128, seq_q, seq_k, CAUSAL, BLOCK_N)": 1,
            "full = seq_k // BLOCK_N": 1,
            "full = gl.minimum(gl.maximum(start + seq_k - seq_q + 1, 0) // BLOCK_N, hi)": 1,
            "_query_steps(acc, log_sum, row_delta, 0, full, start, arguments,": 1,
            "_query_steps(acc, log_sum, row_delta, full, hi, start, arguments,": 1,
            " = products(": 2,
            "acc = accumulate(acc,": 1,
            "= gl.load(": 2,  # LSE and D of 64 rows
        },
    }.items():
        source = " ".join((KERNELS / name).read_text().split())
        for line, times in lines.items():
            assert source.count(line) == times, (name, line)


# DRAM.


def test_dram_where_all_stays() -> None:
    """4 heads of N 1k, d 256: the inputs take 10 of 60 MiB. Each is read once."""
    w = make(heads=4, kv_heads=4, seq_q=1024, seq_k=1024, head_dim=256)
    tensor, rows = 2 * MIB, 4 * 1024 * 4
    found = hopper_dram(w, planned(w), H200)
    # dQ, dK, dV; LSE in base 2 and D.
    assert found.traffic == Traffic(read_bytes=5 * tensor + rows, write_bytes=3 * tensor + 2 * rows)
    assert found.reason.endswith("100% of its inputs stay in L2 between its kernels")
    assert "assumed" not in found.reason
    # One K/V head: each query head has its part of dK and dV.
    w = make(heads=4, kv_heads=1, seq_q=1024, seq_k=1024, head_dim=256)
    found = hopper_dram(w, planned(w), H200)
    assert found.traffic == Traffic(
        read_bytes=3 * tensor + tensor // 2 + rows,
        write_bytes=tensor + tensor // 2 + 2 * rows + 2 * tensor,
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seq", [8192, 32768])
def test_dram_where_nothing_stays_is_that_of_the_portable_pair(seq: int, causal: bool) -> None:
    """Its statistics read LSE and write it once more, which the portable kernels do not: 4 B a row each."""
    w = make(heads=8, kv_heads=8, seq_q=seq, seq_k=seq, head_dim=256, causal=causal)
    assert io.compulsory(w).read_bytes > H200.level("l2").capacity_bytes
    found, portable = hopper_dram(w, planned(w), H200), flash_dram(w, PORTABLE, H200)
    statistic = Traffic(read_bytes=8 * seq * 4, write_bytes=8 * seq * 4)
    assert found.traffic == portable.traffic + statistic
    assert found.reason == portable.reason


def test_shares_are_in_flight_as_heads_of_their_own() -> None:
    """d 256, N 4k, 4 query heads a K/V head, one a share of 64 programs: 132 are of 3 query heads.

    Q, dO, LSE and D of one are 4096 (1024 + 8) bytes, of three 20 % of 60 MiB. All 4 of 3 K/V heads are 81 %.
    """
    w = make(heads=32, kv_heads=8, seq_q=4096, seq_k=4096, head_dim=256)
    assert hopper_dram(w, planned(w), H200).reason.startswith("3 head(s) in flight take 20% of L2: they stay")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pass_", ["bwd", "fwd-bwd"])
@pytest.mark.parametrize(("seq_q", "seq_k"), [(64, 64), (500, 17), (17, 500), (2048, 2048), (16384, 16384)])
def test_dram_is_between_bounds(seq_q: int, seq_k: int, pass_: str, causal: bool) -> None:
    w = make(heads=16, kv_heads=4, seq_q=seq_q, seq_k=seq_k, causal=causal, pass_=pass_)
    found, asked = hopper_dram(w, planned(w), H200).traffic, model().traffic(w, planned(w))
    least = io.compulsory(w)
    assert 0 < found.read_bytes <= asked.read_bytes
    assert least.write_bytes <= found.write_bytes <= asked.write_bytes
    if not causal:
        assert least.read_bytes <= found.read_bytes
