"""The IO model of attention: integers derived by hand, loops walked by brute force, and invariants.

The walks below repeat the loops of kernels/attention/flash.py and flash_backward.py row by row; they share no
formula with the model.
"""

from typing import Any, NamedTuple

import pytest

from perfkit.errors import UsageError
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_io as io
from perfkit.ops.attention import ATTENTION, exps, flops_convention, flops_exact
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse

KERNELS = ("flash_forward", "flash_dkdv", "flash_dq")


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(**{"heads": 1, "kv_heads": 1, "seq_q": 4, "seq_k": 4, "head_dim": 2, **fields})


def square(n: int, **fields: Any) -> AttentionWorkload:
    return make(seq_q=n, seq_k=n, **fields)


def tiles(block_m: int, block_n: int) -> tuple[KernelUse, ...]:
    return tuple(KernelUse(kernel=name, block_m=block_m, block_n=block_n) for name in KERNELS)


def traffic(reads: int, writes: int) -> Traffic:
    return Traffic(read_bytes=reads, write_bytes=writes)


# Published and measured.

H200 = AttentionWorkload(heads=16, kv_heads=16, seq_q=16384, seq_k=16384, head_dim=64, dtype="bf16")


def test_forward_reads_as_an_h200_counted_them() -> None:
    found = io.flash_traffic(H200, tiles(128, 128))
    # 16 heads x (Q: 16384 x 64 x 2 B, and 128 blocks of queries x K and V: 2 x 16384 x 64 x 2 B)
    assert found.read_bytes == 16 * (16384 * 64 * 2 + 128 * 2 * 16384 * 64 * 2) == 8_623_489_024
    # O, and one fp32 LSE a row
    assert found.write_bytes == 16 * (16384 * 64 * 2 + 16384 * 4) == 34_603_008


def test_forward_tensor_flops_of_that_run() -> None:
    # 2 products x 2 N^2 d, whole tiles: 16384 divides by 128, and 64 is a power of two
    assert io.flash_flops(H200, tiles(128, 128)) == 16 * 4 * 16384**2 * 64 == 1_099_511_627_776
    assert flops_convention(H200) == flops_exact(H200) == 1_099_511_627_776
    assert io.standard_flops(H200) == 1_099_511_627_776


# Compulsory.


def test_compulsory_by_hand() -> None:
    # N_q 4, N_k 6, d 2, 2 B: Q, O, dO, dQ are 16 B; K, V, dK, dV are 24 B; LSE 4 rows x 4 B = 16 B
    shape = {"seq_q": 4, "seq_k": 6}
    assert io.compulsory(make(**shape)) == traffic(16 + 24 + 24, 16)  # Q K V; O
    assert io.compulsory(make(**shape, pass_="bwd")) == traffic(
        16 + 24 + 24 + 16 + 16 + 16,
        16 + 24 + 24,  # Q K V O dO LSE; dQ dK dV
    )
    assert io.compulsory(make(**shape, pass_="fwd-bwd")) == traffic(
        (16 + 24 + 24) + (16 + 24 + 24 + 16 + 16 + 16),
        (16 + 16) + (16 + 24 + 24),  # O and LSE are written in between
    )


def test_compulsory_of_shared_heads() -> None:
    # 8 query heads over 2 K/V heads: Q and O 8 x 4 x 2 x 2 B = 128 B, K and V 2 x 4 x 2 x 2 B = 32 B
    assert io.compulsory(make(heads=8, kv_heads=2)) == traffic(128 + 2 * 32, 128)


def test_decode_intensity_is_the_group() -> None:
    """N_q = 1: 4 h N_k d FLOPs over 2 h_kv N_k d e bytes, so 2 g / e = g FLOP/byte in 16 bit."""
    w = AttentionWorkload(heads=32, kv_heads=4, seq_q=1, seq_k=1 << 20, head_dim=128)
    intensity = flops_convention(w) / io.compulsory(w).total_bytes
    assert intensity == pytest.approx(8, rel=1e-4)


# Standard.


def test_standard_forward_is_4_n_squared_and_4_nd() -> None:
    n, d, e = 1024, 64, 2
    found = io.standard_traffic(square(n, head_dim=d))
    # Reads S, P and Q, K, V; writes S, P and O.
    assert found == traffic((2 * n * n + 3 * n * d) * e, (2 * n * n + n * d) * e)
    assert found.total_bytes == (4 * n * n + 4 * n * d) * e


def test_a_causal_mask_costs_standard_two_more_passes() -> None:
    n, d, e = 1024, 64, 2
    found = io.standard_traffic(square(n, head_dim=d, causal=True))
    assert found.total_bytes == (6 * n * n + 4 * n * d) * e  # the mask written into S, and read as the addend


def test_standard_backward_is_7_n_squared_and_3_of_torch() -> None:
    n, d, e = 1024, 64, 2
    found = io.standard_traffic(square(n, head_dim=d, pass_="bwd"))
    # Algorithm 3:       P r (dV) | dP w | P r, dP r, dS w | dS r (dQ) | dS r (dK)   5 reads, 2 writes
    # torch's softmax backward multiplies P and dP first: product w, and it and P r  2 reads, 1 write
    # dO r (dV); dO, V r (dP); K r (dQ); Q r (dK); dQ and dK r and w once more for the scale
    reads, writes = 5 + 2, 2 + 1
    assert found.read_bytes == (reads * n * n + (1 + 2 + 1 + 1 + 2) * n * d) * e
    assert found.write_bytes == (writes * n * n + (3 + 2) * n * d) * e
    assert found.total_bytes - (3 * n * n + 4 * n * d) * e == (7 * n * n + 8 * n * d) * e  # FA1, Algorithm 3


def test_standard_of_both_passes_is_their_sum() -> None:
    parts = [io.standard_traffic(square(128, pass_=one)) for one in ("fwd", "bwd")]
    assert io.standard_traffic(square(128, pass_="fwd-bwd")) == parts[0] + parts[1]


def test_standard_work() -> None:
    n, d = 128, 16
    w = square(n, head_dim=d, causal=True)  # the mask saves it nothing
    assert io.standard_flops(w) == 4 * n * n * d
    assert io.standard_flops(square(n, head_dim=d, pass_="bwd")) == 8 * n * n * d  # 4 products, P was kept
    assert io.standard_flops(square(n, head_dim=d, pass_="fwd-bwd")) == 12 * n * n * d
    assert io.standard_exps(w) == n * n
    assert io.standard_exps(square(n, pass_="bwd")) == 0
    assert io.standard_exps(square(n, pass_="fwd-bwd")) == n * n
    assert io.standard_workspace(w) == 2 * n * n * 2  # S and P, 2 B each
    assert io.standard_workspace(square(n, pass_="bwd")) == 4 * n * n * 2  # P, dP, their product, dS


# Flash, by hand.


def test_flash_forward_by_hand() -> None:
    # N 4, d 2, 2 B, B_r 2, B_c 2: Q 16 B, K and V 32 B, two blocks of queries; O 16 B, LSE 16 B
    assert io.flash_traffic(square(4), tiles(2, 2)) == traffic(16 + 2 * 32, 16 + 16)
    # causal: block 0 sees 2 keys (16 B of K and V), block 1 all 4 (32 B)
    assert io.flash_traffic(square(4, causal=True), tiles(2, 2)) == traffic(16 + 16 + 32, 16 + 16)


def test_flash_forward_of_a_ragged_size_by_hand() -> None:
    # N 5, tiles of 2 x 4, causal. Rows 0-1 see 2 keys: a block of 4. Rows 2-3 see 4. Row 4 sees 5: 2 blocks.
    keys = 4 + 4 + 5
    assert io.flash_traffic(square(5, causal=True), tiles(2, 4)) == traffic(
        5 * 4 + 2 * keys * 4,
        5 * 4 + 5 * 4,  # a row is d 2 x 2 B = 4 B; an LSE is 4 B
    )


def test_flash_backward_by_hand() -> None:
    # N 4, d 2, 2 B, tiles 2 x 2; a tensor is 16 B, a statistic 16 B.
    found = io.flash_traffic(square(4, pass_="bwd"), tiles(2, 2))
    preprocess = traffic(16 + 16, 16)  # O, dO; D
    dkdv = traffic(2 * 16 + 2 * (16 + 16 + 16 + 16), 2 * 16)  # K, V; 2 x (Q, dO, LSE, D); dK, dV
    dq = traffic(16 + 16 + 16 + 16 + 2 * 32, 16)  # Q, dO, LSE, D; 2 x (K, V); dQ
    assert found == preprocess + dkdv + dq == traffic(32 + 160 + 128, 16 + 32 + 16)


def test_flash_backward_causal_by_hand() -> None:
    found = io.flash_traffic(square(4, pass_="bwd", causal=True), tiles(2, 2))
    preprocess = traffic(32, 16)
    dkdv = traffic(32 + 64 + 32, 32)  # keys 0-1 are seen by 4 rows (64 B), keys 2-3 by 2 (32 B)
    dq = traffic(64 + 16 + 32, 16)  # queries 0-1 see 2 keys (16 B of K and V), queries 2-3 all 4
    assert found == preprocess + dkdv + dq


def test_flash_flops_by_hand() -> None:
    # N 100 with 64 x 64 tiles is 2 x 2 tiles; head dim 24 is padded to 32
    w = square(100, head_dim=24)
    product = 2 * 64 * 64 * 32
    assert io.flash_flops(w, tiles(64, 64)) == 4 * 2 * product
    assert io.flash_flops(square(100, head_dim=24, causal=True), tiles(64, 64)) == 3 * 2 * product
    assert io.flash_flops(square(100, head_dim=24, pass_="bwd"), tiles(64, 64)) == 4 * (4 + 3) * product
    assert io.flash_flops(square(100, head_dim=24, pass_="fwd-bwd"), tiles(64, 64)) == 4 * 9 * product
    assert io.flash_flops(square(64, head_dim=8), tiles(64, 64)) == 2 * 2 * 64 * 64 * 16  # at least 16 wide


def test_flash_exps_and_workspace() -> None:
    pairs = 100 * 101 // 2
    for pass_, count in (("fwd", 1), ("bwd", 2), ("fwd-bwd", 3)):  # S is recomputed in both backward kernels
        assert io.flash_exps(square(100, causal=True, pass_=pass_), ()) == count * pairs
    assert io.flash_workspace(square(100)) == 4 * 100  # LSE
    assert io.flash_workspace(square(100, pass_="bwd")) == 2 * 4 * 100  # LSE and D


def test_a_missing_tile_is_named() -> None:
    with pytest.raises(UsageError) as missing:
        io.flash_traffic(square(64, pass_="bwd"), tiles(64, 64)[:1])
    assert missing.value.message == "the tile of kernel 'flash_dkdv' is not in the record"
    assert missing.value.hint == "measure again"


# Flash, by walking the loops.


class Walked(NamedTuple):
    """What the loops of one kernel did: bytes read, bytes written, visits of a tile."""

    reads: int
    writes: int
    visits: int

    @property
    def traffic(self) -> Traffic:
        return traffic(self.reads, self.writes)


def rows_of(start: int, size: int, total: int) -> int:
    """Rows of a block that exist; loads beyond the end are masked off."""
    return sum(row < total for row in range(start, start + size))


def walk_query_blocks(w: AttentionWorkload, m: int, n: int, per_row: int, out_row: int) -> Walked:
    """flash_forward and flash_dq: a program per block of queries; K and V blocks in [0, end)."""
    row, reads, writes, visits = w.head_dim * w.element_bytes, 0, 0, 0
    for start_m in range(0, w.seq_q, m):
        inside = rows_of(start_m, m, w.seq_q)
        reads += inside * per_row
        writes += inside * out_row
        shift = w.seq_k - w.seq_q
        end = max(min(start_m + m, w.seq_q) + shift, 0) if w.causal else w.seq_k
        full = w.seq_k // n * n
        if w.causal:
            full = min(max(start_m + shift + 1, 0) // n * n, end)
        for lo, hi in ((0, full), (full, end)):
            for start_n in range(lo, hi, n):
                reads += 2 * rows_of(start_n, n, w.seq_k) * row
                visits += 1
    heads = w.batch * w.heads
    return Walked(reads * heads, writes * heads, visits * heads)


def walk_forward(w: AttentionWorkload, m: int, n: int) -> Walked:
    row = w.head_dim * w.element_bytes
    return walk_query_blocks(w, m, n, per_row=row, out_row=row + 4)


def walk_dq(w: AttentionWorkload, m: int, n: int) -> Walked:
    row = w.head_dim * w.element_bytes
    return walk_query_blocks(w, m, n, per_row=2 * row + 8, out_row=row)


def walk_dkdv(w: AttentionWorkload, m: int, n: int) -> Walked:
    """flash_dkdv: a program per block of keys of a K/V head; its query heads, and their rows in [lo, N_q)."""
    row, reads, writes, visits = w.head_dim * w.element_bytes, 0, 0, 0
    for start_n in range(0, w.seq_k, n):
        inside = rows_of(start_n, n, w.seq_k)
        reads += 2 * inside * row
        writes += 2 * inside * row
        shift, lo, full = w.seq_k - w.seq_q, 0, 0
        if w.causal:
            last_key = min(start_n + n, w.seq_k) - 1
            lo = max(start_n - shift, 0) // m * m
            full = (max(last_key - shift, 0) + m - 1) // m * m
        for _ in range(w.heads // w.kv_heads):
            for begin, stop in ((lo, min(full, w.seq_q)), (full, w.seq_q)):
                for start_m in range(begin, stop, m):
                    reads += rows_of(start_m, m, w.seq_q) * (2 * row + 8)
                    visits += 1
    heads = w.batch * w.kv_heads
    return Walked(reads * heads, writes * heads, visits * heads)


def walk_delta(w: AttentionWorkload) -> Traffic:
    row = w.head_dim * w.element_bytes
    return traffic(w.rows * 2 * row, w.rows * 4)


SIZES = [
    (113, 113),
    (203, 203),
    (113, 203),
    (203, 113),
    (1, 203),
    (203, 1),
    (5000, 5000),
    (5000, 113),
    (113, 5000),
]
TILES = [(64, 64), (128, 32), (32, 128), (64, 16)]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq_q", "seq_k"), SIZES)
@pytest.mark.parametrize("heads", [(1, 1), (6, 2)])
def test_flash_against_its_loops(
    seq_q: int, seq_k: int, causal: bool, tile: tuple[int, int], heads: tuple[int, int]
) -> None:
    shape: dict[str, Any] = {
        "batch": 2, "heads": heads[0], "kv_heads": heads[1], "seq_q": seq_q, "seq_k": seq_k,
        "head_dim": 40, "causal": causal,
    }  # fmt: skip
    uses = tiles(*tile)
    product = 2 * tile[0] * tile[1] * 64  # head dim 40 is padded to 64

    forward = walk_forward(make(**shape), *tile)
    assert io.flash_traffic(make(**shape), uses) == forward.traffic
    assert io.flash_flops(make(**shape), uses) == 2 * product * forward.visits

    w = make(**shape, pass_="bwd")
    dkdv, dq = walk_dkdv(w, *tile), walk_dq(w, *tile)
    backward = walk_delta(w) + dkdv.traffic + dq.traffic
    assert io.flash_traffic(w, uses) == backward
    assert io.flash_flops(w, uses) == product * (4 * dkdv.visits + 3 * dq.visits)

    both = make(**shape, pass_="fwd-bwd")
    assert io.flash_traffic(both, uses) == forward.traffic + backward


def test_each_kernel_has_its_own_tile() -> None:
    w = square(203, pass_="fwd-bwd", causal=True)
    uses = tuple(
        KernelUse(kernel=name, block_m=m, block_n=n)
        for name, (m, n) in zip(KERNELS, ((128, 64), (32, 128), (64, 16)), strict=True)
    )
    assert io.flash_traffic(w, uses) == (
        walk_forward(w, 128, 64).traffic
        + walk_delta(w)
        + walk_dkdv(w, 32, 128).traffic
        + walk_dq(w, 64, 16).traffic
    )


# FLOPs.


@pytest.mark.parametrize(("pass_", "factor"), [("fwd", 4), ("bwd", 10), ("fwd-bwd", 14)])
def test_flops_by_convention_and_exactly(pass_: str, factor: int) -> None:
    n, d, h, b = 113, 64, 6, 2
    shape: dict[str, Any] = {"batch": b, "heads": h, "kv_heads": 2, "head_dim": d, "pass_": pass_}
    full = factor * n * n * d * h * b  # 4 N^2 d h B, x 2.5 backward, x 3.5 both
    assert flops_convention(square(n, **shape)) == flops_exact(square(n, **shape)) == full
    causal = square(n, causal=True, **shape)
    assert flops_convention(causal) == full // 2  # the papers halve it
    assert flops_exact(causal) == factor * (n * (n + 1) // 2) * d * h * b  # the diagonal counts


def test_flops_of_a_causal_rectangle_are_the_visible_pairs() -> None:
    w = make(seq_q=3, seq_k=5, head_dim=8, causal=True)
    assert flops_convention(w) == flops_exact(w) == 4 * (3 + 4 + 5) * 8


def test_exps_of_an_op() -> None:
    pairs = 100 * 101 // 2
    for pass_, count in (("fwd", 1), ("bwd", 1), ("fwd-bwd", 2)):
        assert exps(square(100, causal=True, pass_=pass_)) == count * pairs


# Invariants.

PASSES = ("fwd", "bwd", "fwd-bwd")


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("n", [1024, 4096, 16384])
def test_flash_moves_less_than_standard(n: int, head_dim: int, causal: bool, pass_: str) -> None:
    w = square(n, head_dim=head_dim, causal=causal, pass_=pass_)
    flash = io.flash_traffic(w, tiles(64, 64)).total_bytes
    assert flash <= io.standard_traffic(w).total_bytes


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("n", [113, 203, 1024, 5000])
def test_a_bigger_tile_never_moves_more_without_a_mask(n: int, pass_: str) -> None:
    w = square(n, head_dim=64, pass_=pass_)
    sizes = (16, 32, 64, 128, 256)
    found = {(m, k): io.flash_traffic(w, tiles(m, k)).total_bytes for m in sizes for k in sizes}
    for (m, k), moved in found.items():
        assert found.get((2 * m, k), 0) <= moved
        assert found.get((m, 2 * k), 0) <= moved


@pytest.mark.parametrize("n", [113, 203, 1024, 5000])
def test_a_taller_tile_never_moves_more_under_a_mask(n: int) -> None:
    """A wider one may: it overhangs the diagonal by more."""
    w = square(n, head_dim=64, causal=True)
    for block_n in (16, 64, 128):
        moved = [io.flash_traffic(w, tiles(m, block_n)).total_bytes for m in (16, 32, 64, 128, 256)]
        assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("seq_q", "seq_k"), SIZES)
@pytest.mark.parametrize("tile", TILES)
def test_a_mask_never_adds_to_flash(seq_q: int, seq_k: int, tile: tuple[int, int], pass_: str) -> None:
    uses = tiles(*tile)
    full, causal = (make(seq_q=seq_q, seq_k=seq_k, causal=mask, pass_=pass_) for mask in (False, True))
    assert io.flash_traffic(causal, uses).total_bytes <= io.flash_traffic(full, uses).total_bytes
    assert io.flash_flops(causal, uses) <= io.flash_flops(full, uses)
    assert flops_convention(causal) <= flops_convention(full)
    assert flops_exact(causal) <= flops_exact(full)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 113, 5000])
def test_nobody_moves_less_than_compulsory(n: int, causal: bool, pass_: str) -> None:
    w = square(n, heads=4, kv_heads=4, head_dim=64, causal=causal, pass_=pass_)
    least = io.compulsory(w)
    moved = io.flash_traffic(w, tiles(64, 64))
    assert moved.read_bytes >= least.read_bytes
    assert moved.write_bytes >= least.write_bytes


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    "row", [row for row in ATTENTION.implementations if row.io], ids=lambda row: row.name
)
def test_issued_flops_cover_the_exact_ones_and_all_counts_are_integers(row: Any, pass_: str) -> None:
    w = square(203, heads=6, kv_heads=2, head_dim=64, causal=True, pass_=pass_)
    if row.name == "flash-decode" and pass_ != "fwd":
        pytest.skip("forward only")
    uses = row.plan(w, (9, 0)) if row.plan else ()
    products = {"fwd": 4, "bwd": 8, "fwd-bwd": 12}[pass_]  # the least: nothing is recomputed
    issued, moved = row.io.issued_flops(w, uses), row.io.traffic(w, uses)
    assert issued >= products * w.pairs * w.head_dim
    assert row.io.launches(w, uses) >= 1
    for count in (issued, moved.read_bytes, moved.write_bytes, row.io.exps(w, uses), row.workspace(w)):
        assert type(count) is int
