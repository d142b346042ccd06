"""The IO model of `flash1`: integers derived by hand, the paper's counts, loops walked, and invariants."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from perfkit.errors import UsageError
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_flash1 as io
from perfkit.ops.attention import ATTENTION, flops_exact
from perfkit.ops.attention_io import compulsory, flash_traffic
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Ledger, total

KERNELS = Path(__file__).parents[2] / "kernels/attention"
PASSES = ("fwd", "bwd", "fwd-bwd")
H200 = load("h200-141gb-sxm")  # 132 SMs, 60 MiB of L2
SIZES = [(113, 113), (113, 203), (203, 113), (1, 203), (203, 1), (640, 113)]


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(**{"heads": 1, "kv_heads": 1, "seq_q": 4, "seq_k": 4, "head_dim": 2, **fields})


def square(n: int, **fields: Any) -> AttentionWorkload:
    return make(seq_q=n, seq_k=n, **fields)


def tiles(block_m: int, block_n: int) -> tuple[KernelUse, ...]:
    names = (io.FORWARD, io.BACKWARD)
    return tuple(KernelUse(kernel=name, block_m=block_m, block_n=block_n) for name in names)


def plain(ledger: Ledger) -> list[tuple[str, int, int]]:
    """(tensor, read, written) of each entry."""
    return [(one.tensor, one.traffic.read_bytes, one.traffic.write_bytes) for one in ledger]


def row() -> Implementation:
    found = ATTENTION.implementation("flash1")
    assert found is not None
    return found


# By hand.


def test_forward_by_hand() -> None:
    # N 4, d 2, tiles 2 x 2: a tensor is 16 B in bf16 and 32 B in fp32, a statistic 16 B. Two blocks of keys.
    # O: zeroed (32 B), block 0 reads 32 B and writes 32 B, block 1 reads 32 B and writes 16 B in bf16.
    # l, m: zeroed (16 B), read and written by each block (32 B, 32 B).
    assert plain(io.flash1_ledger(make(), tiles(2, 2))) == [
        ("K", 16, 0),
        ("V", 16, 0),
        ("Q", 2 * 16, 0),
        ("O in fp32", 32 + 32, 32 + 32),
        ("l", 16 + 16, 16 + 16 + 16),
        ("m", 16 + 16, 16 + 16 + 16),
        ("O", 0, 16),
    ]


def test_backward_by_hand() -> None:
    # The same sizes. dQ as O above; Q, O, dO, l, m for each of two blocks of keys; dK, dV zeroed and written.
    assert plain(io.flash1_ledger(make(pass_="bwd"), tiles(2, 2))) == [
        ("K", 16, 0),
        ("V", 16, 0),
        ("Q", 32, 0),
        ("O", 32, 0),
        ("dO", 32, 0),
        ("l", 32, 0),
        ("m", 32, 0),
        ("dQ in fp32", 64, 64),
        ("dQ", 0, 16),
        ("dK", 0, 32),
        ("dV", 0, 32),
    ]


def test_grouped_heads_odd_sizes_and_a_mask_by_hand() -> None:
    # 4 query heads over 2 K/V heads, N_q 5, N_k 3, tiles 2 x 2, causal: row i sees keys 0 to i - 2.
    # Block of keys 0-1: seen from row 2 on, block 1: 3 rows. Block of key 2: from row 4 on, block 2: 1 row.
    # So 4 rows visited a head, 16 over heads. A row is 4 B in bf16, 8 B in fp32, 4 B in a statistic.
    # Rows 0-1 are never visited: their O is zeroed in bf16, and all of O is written in bf16 once.
    shape: dict[str, Any] = {"heads": 4, "kv_heads": 2, "seq_q": 5, "seq_k": 3, "causal": True}
    assert plain(io.flash1_ledger(make(**shape), tiles(2, 2))) == [
        ("K", 4 * 3 * 4, 0),  # each query head for itself
        ("V", 4 * 3 * 4, 0),
        ("Q", 16 * 4, 0),
        ("O in fp32", 16 * 8, 16 * 8),
        ("l", 16 * 4, 16 * 4 + 4 * 5 * 4),
        ("m", 16 * 4, 16 * 4 + 4 * 5 * 4),
        ("O", 0, 4 * 5 * 4),
    ]
    assert plain(io.flash1_ledger(make(**shape, pass_="bwd"), tiles(2, 2))) == [
        ("K", 2 * 3 * 4, 0),  # once a K/V head
        ("V", 2 * 3 * 4, 0),
        ("Q", 16 * 4, 0),
        ("O", 16 * 4, 0),
        ("dO", 16 * 4, 0),
        ("l", 16 * 4, 0),
        ("m", 16 * 4, 0),
        ("dQ in fp32", 16 * 8, 16 * 8),
        ("dQ", 0, 4 * 5 * 4),
        ("dK", 0, 2 * 2 * 3 * 4),
        ("dV", 0, 2 * 2 * 3 * 4),
    ]


def test_work_by_hand() -> None:
    # N 100 with 64 x 64 tiles: 2 x 2 tiles, 3 of them under a mask; head dim 24 is padded to 32.
    product = 2 * 64 * 64 * 32
    for pass_, products in (("fwd", 2), ("bwd", 5), ("fwd-bwd", 7)):
        w = square(100, head_dim=24, pass_=pass_)
        assert io.flash1_flops(w, tiles(64, 64)) == products * 4 * product
        causal = square(100, head_dim=24, pass_=pass_, causal=True)
        assert io.flash1_flops(causal, tiles(64, 64)) == products * 3 * product
        passes = 2 if pass_ == "fwd-bwd" else 1
        assert io.flash1_exps(causal, ()) == passes * 100 * 101 // 2
        assert io.flash1_launches(w) == passes
        assert io.flash1_workspace(w) == 100 * (24 * 4 + 4 + 4)  # O or dQ in fp32; l, m
    assert io.flash1_extra_flops(square(100, head_dim=24, causal=True)) == (
        "masked part of diagonal tiles",
        "head dim 24 padded to a power of two",
    )
    assert io.flash1_extra_flops(square(128, head_dim=64, pass_="bwd")) == ()


# The paper.


def elements(w: AttentionWorkload, uses: tuple[KernelUse, ...]) -> int:
    """Elements moved: fp32 entries count 4 bytes an element, all others those of the dtype."""
    wide = {"O in fp32", "dQ in fp32", "l", "m"}
    return sum(
        (read + written) // (4 if tensor in wide else w.element_bytes)
        for tensor, read, written in plain(io.flash1_ledger(w, uses))
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("n", "block_n"), [(1024, 128), (113, 64), (203, 16), (64, 128)])
def test_elements_are_the_paper_s(n: int, block_n: int, dtype: str) -> None:
    """Algorithm 1: 2 N d + T_c (3 N d + 4 N) + N d + 2 N. Algorithm 4: T_c (5 N d + 2 N) + 7 N d."""
    d, t = 64, -(-n // block_n)
    w = square(n, head_dim=d, dtype=dtype)
    assert elements(w, tiles(32, block_n)) == 2 * n * d + t * (3 * n * d + 4 * n) + n * d + 2 * n
    back = square(n, head_dim=d, dtype=dtype, pass_="bwd")
    assert elements(back, tiles(32, block_n)) == t * (5 * n * d + 2 * n) + 7 * n * d


@pytest.mark.parametrize(("pass_", "constant"), [("fwd", 12), ("bwd", 20)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_law_is_n_squared_d_squared_over_m(head_dim: int, pass_: str, constant: int) -> None:
    """B_c = M / 4d: T_c x 3 N d = 12 N^2 d^2 / M, backward T_c x 5 N d = 20 N^2 d^2 / M."""
    excess = []
    for n in (1 << 12, 1 << 16, 1 << 20):
        (use, _) = tiles(64, 128)
        on_chip = io.on_chip_elements(use, head_dim)
        assert on_chip == 4 * head_dim * 128
        law = constant * n**2 * head_dim**2 // on_chip
        found = elements(square(n, head_dim=head_dim, pass_=pass_), tiles(64, 128))
        excess.append(found / law - 1)
    # What stays as N grows are the statistics: 4 N of 3 N d forward, 2 N of 5 N d backward.
    rest = 4 / (3 * head_dim) if pass_ == "fwd" else 2 / (5 * head_dim)
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] == pytest.approx(rest, rel=0.1)


def test_flash_1_moves_half_as_much_again_as_flash_2_with_the_same_tile() -> None:
    """3 N d + 4 N elements for each block of keys, against 2 N d for each block of queries."""
    w = square(1 << 16, head_dim=64)
    use = KernelUse(kernel="flash_forward", block_m=128, block_n=128)
    ratio = elements(w, tiles(128, 128)) / (flash_traffic(w, (use,)).total_bytes / 2)
    assert ratio == pytest.approx((3 + 4 / 64) / 2, rel=5e-3)


# The loops of the kernels, walked row by row.


def walked(w: AttentionWorkload, m: int, n: int) -> tuple[Traffic, Traffic, int]:
    """(forward, backward, visits of a tile) by the loops of flash1.py and flash1_backward.py."""
    narrow, wide = w.head_dim * w.element_bytes, w.head_dim * 4
    shift, visits = w.seq_k - w.seq_q, 0
    reads, writes, back_reads, back_writes = 0, 0, 0, 0

    def sees(start: int, key: int) -> bool:
        """Whether any row of the block sees the key."""
        return not w.causal or any(i + shift >= key for i in range(start, min(start + m, w.seq_q)))

    group = w.heads // w.kv_heads
    for start in range(0, w.seq_q, m):
        inside = min(m, w.seq_q - start)
        zero = wide if sees(start, 0) else narrow
        writes += inside * (zero + 8)
        back_writes += inside * zero
    for start_n in range(0, w.seq_k, n):
        keys = min(n, w.seq_k - start_n)
        reads += 2 * keys * narrow
        for start in range(0, w.seq_q, m):
            if not sees(start, start_n):
                continue
            inside, later = min(m, w.seq_q - start), start_n + n
            out = wide if later < w.seq_k and sees(start, later) else narrow
            reads += inside * (narrow + wide + 8)
            writes += inside * (out + 8)
            back_reads += inside * (3 * narrow + wide + 8)
            back_writes += inside * out
            visits += 1
    heads, kv = w.batch * w.heads, w.batch * w.kv_heads
    forward = Traffic(read_bytes=heads * reads, write_bytes=heads * writes)
    backward = Traffic(
        read_bytes=kv * (2 * w.seq_k * narrow + group * back_reads),
        write_bytes=kv * (4 * w.seq_k * narrow + group * back_writes),
    )
    return forward, backward, heads * visits


@pytest.mark.parametrize("tile", [(64, 64), (128, 32), (32, 128), (16, 16)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq_q", "seq_k"), SIZES)
@pytest.mark.parametrize("heads", [(1, 1), (6, 2)])
def test_ledger_against_the_loops(
    seq_q: int, seq_k: int, causal: bool, tile: tuple[int, int], heads: tuple[int, int]
) -> None:
    shape: dict[str, Any] = {
        "batch": 2, "heads": heads[0], "kv_heads": heads[1], "seq_q": seq_q, "seq_k": seq_k,
        "head_dim": 40, "causal": causal,
    }  # fmt: skip
    uses, product = tiles(*tile), 2 * tile[0] * tile[1] * 64  # head dim 40 is padded to 64
    forward, backward, visits = walked(make(**shape), *tile)
    expected = {"fwd": forward, "bwd": backward, "fwd-bwd": forward + backward}
    for pass_, products in (("fwd", 2), ("bwd", 5), ("fwd-bwd", 7)):
        w = make(**shape, pass_=pass_)
        assert total(io.flash1_ledger(w, uses)) == expected[pass_]
        assert io.flash1_flops(w, uses) == products * product * visits
        assert io.flash1_flops(w, uses) >= flops_exact(w)


# Invariants.


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq_q", "seq_k"), [*SIZES, (1024, 1024), (5000, 5000)])
def test_more_keys_on_chip_never_move_more(seq_q: int, seq_k: int, causal: bool, pass_: str) -> None:
    w = make(seq_q=seq_q, seq_k=seq_k, head_dim=64, causal=causal, pass_=pass_)
    moved = [total(io.flash1_ledger(w, tiles(64, n))).total_bytes for n in (16, 32, 64, 128, 256, 512)]
    assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("pass_", PASSES)
def test_the_rows_of_q_do_not_matter_without_a_mask(pass_: str) -> None:
    w = square(1024, head_dim=64, pass_=pass_)
    assert len({total(io.flash1_ledger(w, tiles(m, 64))) for m in (16, 64, 256)}) == 1


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("seq_q", "seq_k"), SIZES)
def test_a_mask_never_adds(seq_q: int, seq_k: int, pass_: str) -> None:
    full, causal = (make(seq_q=seq_q, seq_k=seq_k, causal=mask, pass_=pass_) for mask in (False, True))
    uses = tiles(32, 32)
    assert (
        total(io.flash1_ledger(causal, uses)).total_bytes <= total(io.flash1_ledger(full, uses)).total_bytes
    )
    assert io.flash1_flops(causal, uses) <= io.flash1_flops(full, uses)


def test_a_missing_tile_is_named() -> None:
    with pytest.raises(UsageError) as missing:
        io.flash1_ledger(make(pass_="fwd-bwd"), tiles(2, 2)[:1])
    assert missing.value.message == "the tile of kernel 'flash1_backward' is not in the record"


# DRAM.


def test_what_fits_l2_reaches_dram_once() -> None:
    w = square(1024, head_dim=64, heads=8, kv_heads=8)
    tensor, statistic = 8 * 1024 * 64 * 2, 8 * 1024 * 4
    found = io.flash1_dram(w, tiles(64, 128), H200)
    # Q, K, V; O in fp32, O, l, m. 8 heads of 1024 x (128 + 256 + 8) B are 3.2 MB of 62.9 MB.
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=2 * tensor + tensor + 2 * statistic)
    assert found.reason == "Q, O, l and m of 8 head(s) in flight take 5% of L2: they stay"
    back = io.flash1_dram(square(1024, head_dim=64, heads=8, kv_heads=8, pass_="bwd"), tiles(64, 128), H200)
    # Q, O, dO, K, V, l, m; dQ in fp32, dQ, dK, dV. 8 x 1024 x (3 x 128 + 256 + 8) B are 5.3 MB.
    assert back.traffic == Traffic(read_bytes=5 * tensor + 2 * statistic, write_bytes=2 * tensor + 3 * tensor)
    assert back.reason == "Q, O, dO, dQ, l and m of 8 head(s) in flight take 8% of L2: they stay"


@pytest.mark.parametrize("pass_", ["fwd", "bwd"])
def test_what_exceeds_l2_reaches_dram_every_time(pass_: str) -> None:
    w = square(65536, head_dim=64, heads=16, kv_heads=16, pass_=pass_)  # 16 x 65536 x 392 B are 411 MB
    found = io.flash1_dram(w, tiles(64, 128), H200)
    assert found.traffic == total(io.flash1_ledger(w, tiles(64, 128)))
    assert found.reason.endswith("every block of keys moves them again")


def test_in_between_a_share_misses() -> None:
    # 16 heads of 6144 x 392 B are 38.5 MB, 61.25 % of 60 MiB: 20 % + 52 % (61.25 - 61) / (82 - 61) miss.
    w = square(6144, head_dim=64, heads=16, kv_heads=16)
    share = 0.2 + 0.52 * (16 * 6144 * 392 / (60 << 20) - 0.61) / 0.21
    tensor = 16 * 6144 * 64 * 2
    asked = total(io.flash1_ledger(w, tiles(64, 128)))
    found = io.flash1_dram(w, tiles(64, 128), H200)
    assert found.reason == (
        "Q, O, l and m of 16 head(s) in flight take 61% of L2: in part stays in L2, 21% of re-reads miss"
    )
    reads = 3 * tensor + share * (asked.read_bytes - 3 * tensor)
    assert found.traffic.read_bytes == pytest.approx(reads, rel=1e-9)


def test_query_heads_of_a_group_share_keys_at_dram() -> None:
    w = square(65536, head_dim=64, heads=16, kv_heads=4)
    asked, found = total(io.flash1_ledger(w, tiles(64, 128))), io.flash1_dram(w, tiles(64, 128), H200)
    # The ledger has K and V for each of 16 heads; L2 serves three of four.
    assert asked.read_bytes - found.traffic.read_bytes == 2 * (16 - 4) * 65536 * 64 * 2


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [113, 5000, 65536])
def test_dram_lies_between_compulsory_and_what_the_sms_ask_for(n: int, causal: bool, pass_: str) -> None:
    w = square(n, head_dim=64, heads=4, kv_heads=2, causal=causal, pass_=pass_)
    least, asked = compulsory(w), total(io.flash1_ledger(w, tiles(64, 128)))
    found = io.flash1_dram(w, tiles(64, 128), H200).traffic
    assert least.read_bytes <= found.read_bytes <= asked.read_bytes
    assert least.write_bytes <= found.write_bytes <= asked.write_bytes


# The row.


@pytest.mark.parametrize("capability", [(0, 0), (7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128, 256])
def test_every_device_has_a_plan(capability: tuple[int, int], head_dim: int) -> None:
    w = square(512, head_dim=head_dim, pass_="fwd-bwd")
    plan = row().plan
    assert plan is not None
    uses = plan(w, capability)
    assert tuple(use.kernel for use in uses) == io.flash1_tiled(w) == ("flash1_forward", "flash1_backward")
    assert total(io.flash1_ledger(w, uses)).total_bytes > compulsory(w).total_bytes


def test_head_dims_that_it_cannot_serve() -> None:
    for head_dim in (8, 20, 264):
        reason = f"head dim {head_dim}: flash1 takes multiples of 8 from 16 to 256"
        assert io.flash1_refuses(square(64, head_dim=head_dim)) == reason
    assert [io.flash1_refuses(square(64, head_dim=d)) for d in (16, 72, 128, 256)] == [None] * 4


def test_kernels_are_named_as_their_functions() -> None:
    """So the counters of a kernel find its model."""
    sources = "".join((KERNELS / name).read_text() for name in ("flash1.py", "flash1_backward.py"))
    jitted = re.findall(r"@triton\.jit\([^\n]*\n(?:def|.*\ndef) (\w+)", sources)
    assert jitted == ["flash1_forward", "flash1_backward"]
    assert row().io is not None
    assert row().named_only


def test_on_an_h200_it_moves_what_the_paper_says() -> None:
    # d 64, N 16384, B_c 128: T_c 128, M = 4 x 64 x 128 = 32768 elements, 12 N^2 d^2 / M = 402,653,184.
    w = square(16384, head_dim=64)
    law = 12 * 16384**2 * 64**2 // 32768
    assert law == 402_653_184
    assert math.isclose(elements(w, tiles(64, 128)), law, rel_tol=0.04)
