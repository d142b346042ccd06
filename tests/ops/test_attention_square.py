"""The IO model of `square`: integers derived by hand, the loops walked, the crossover, and invariants."""

import re
from pathlib import Path
from typing import Any

import pytest

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles as table
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_square as io
from perfkit.ops.attention import ATTENTION, flops_exact
from perfkit.ops.attention_io import compulsory, flash_traffic
from perfkit.ops.attention_tiles import with_tiles
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, total

KERNELS = Path(__file__).parents[2] / "kernels/attention"
H200 = load("h200-141gb-sxm")  # 132 SMs, 60 MiB of L2
SIZES = [(113, 113), (113, 203), (203, 113), (1, 203), (203, 1), (640, 113)]


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(
        **{"heads": 1, "kv_heads": 1, "seq_q": 32, "seq_k": 32, "head_dim": 32, **fields}
    )


def square(n: int, **fields: Any) -> AttentionWorkload:
    return make(seq_q=n, seq_k=n, **fields)


def tiles(side: int) -> tuple[KernelUse, ...]:
    return tuple(
        KernelUse(kernel=name, **table.square_tile(side)._asdict()) for name in io.square_tiled(make())
    )


def row() -> Implementation:
    found = ATTENTION.implementation("square")
    assert found is not None
    return found


def plain(w: AttentionWorkload, side: int) -> list[tuple[str, str, int, int]]:
    """(kernel, tensor, read, written) of each entry."""
    ledger = io.square_ledger(w, tiles(side))
    return [(m.kernel[7:], m.tensor, m.traffic.read_bytes, m.traffic.write_bytes) for m in ledger]


# By hand.


def test_ledger_by_hand() -> None:
    # N 32, d 32, tiles of 16: 2 x 2 tiles of S and of O. A tensor, or S, is 2048 B in bf16, a statistic 128.
    assert plain(make(), 16) == [
        ("scores", "Q", 2 * 2048, 0),
        ("scores", "K", 2 * 2048, 0),
        ("scores", "S", 0, 2048),
        ("statistics", "S", 2048, 0),
        ("statistics", "l", 0, 128),
        ("statistics", "m", 0, 128),
        ("output", "S again", 2 * 2048, 0),
        ("output", "l", 2 * 128, 0),
        ("output", "m", 2 * 128, 0),
        ("output", "V", 2 * 2048, 0),
        ("output", "O", 0, 2048),
    ]


def test_grouped_heads_and_odd_sizes_by_hand() -> None:
    # 4 query heads over 2 K/V heads, N_q 33, N_k 17, d 48, tiles of 16: 3 rows of tiles, 2 columns of S, 3 of
    # O. Rows of S are padded to 32 elements.
    shape: dict[str, Any] = {"heads": 4, "kv_heads": 2, "seq_q": 33, "seq_k": 17, "head_dim": 48}
    q, k, s, statistic = (
        4 * 33 * 96,
        4 * 17 * 96,
        4 * 33 * 64,
        4 * 33 * 4,
    )  # K and V: each query head for itself
    assert plain(make(**shape), 16) == [
        ("scores", "Q", 2 * q, 0),
        ("scores", "K", 3 * k, 0),
        ("scores", "S", 0, s),
        ("statistics", "S", s, 0),
        ("statistics", "l", 0, statistic),
        ("statistics", "m", 0, statistic),
        ("output", "S again", 3 * s, 0),
        ("output", "l", 3 * statistic, 0),
        ("output", "m", 3 * statistic, 0),
        ("output", "V", 3 * k, 0),
        ("output", "O", 0, q),
    ]
    assert io.square_workspace(make(**shape)) == s + 2 * statistic


def test_work_by_hand() -> None:
    # N 100, d 48, tiles of 64: S is 2 x 2 tiles, 48 deep; O 2 x 1 tiles over 2 slices of 64 keys.
    w = square(100, head_dim=48)
    assert io.square_flops(w, tiles(64)) == 2 * (128 * 128 * 48 + 128 * 64 * 128)
    assert io.square_exps(w, tiles(64)) == 2 * 100 * 100  # the statistics, and one column of tiles of O
    assert io.square_exps(w, tiles(16)) == 4 * 100 * 100  # three columns
    # Nothing is padded: 4 N^2 d.
    assert io.square_flops(square(256, head_dim=256), tiles(128)) == 4 * 256**2 * 256
    assert io.square_launches(w) == 3
    assert io.square_extra_flops(w) == ()


# The paper.


def elements(w: AttentionWorkload, side: int) -> float:
    """Elements of the matrices that are moved."""
    ledger = io.square_ledger(w, tiles(side))
    return total(entry for entry in ledger if entry.tensor not in ("l", "m")).total_bytes / w.element_bytes


@pytest.mark.parametrize("side", [16, 32, 64, 128])
@pytest.mark.parametrize(("n", "d"), [(1024, 128), (4096, 256), (2048, 1024)])
def test_elements_are_the_law_and_two_passes_over_scores(n: int, d: int, side: int) -> None:
    """4 N^2 d / sqrt(M) with M = t^2, 2 N^2, N d."""
    assert elements(square(n, head_dim=d), side) == 4 * n**2 * d / side + 2 * n**2 + n * d


def test_passes_over_scores_that_the_law_leaves_out_have_names_of_their_own() -> None:
    w = square(4096, head_dim=256)
    ledger = io.square_ledger(w, tiles(64))
    kept = total(entry for entry in ledger if entry.tensor not in ("l", "m", "S"))
    assert kept.total_bytes / 2 == 4 * 4096**2 * 256 / 64 + 4096 * 256
    assert total(e for e in ledger if e.tensor == "S") == Traffic(
        read_bytes=w.scores_bytes, write_bytes=w.scores_bytes
    )


def test_below_d_squared_it_moves_less_than_flash() -> None:
    """d 256, t 16: M = 256 elements, far below d^2 = 65536, and half a row of Q and O for `flash`.

    No such tile of `flash` exists, so that its closed form stands for it: 4 N^2 d^2 / M, 16 times as much.
    """
    n, d, memory = 4096, 256, 16**2
    flash = 4 * n**2 * d**2 / memory
    assert elements(square(n, head_dim=d), 16) == 2**30 + 2**25 + 2**20 < flash == 2**34


def test_above_d_squared_flash_moves_less() -> None:
    """d 64, t 128: M = 16384 = 4 d^2 elements, 128 rows of Q and O for `flash`, 2 N d + 2 N d N / 128."""
    n, d = 4096, 64
    w = square(n, head_dim=d)
    use = KernelUse(kernel="flash_forward", block_m=128**2 // (2 * d), block_n=64)
    flash = (flash_traffic(w, (use,)).total_bytes - 4 * n) / 2  # without LSE
    assert use.block_m == 128
    assert flash == 2 * n * d + 2 * n * d * n // 128 < elements(w, 128)


@pytest.mark.parametrize(("d", "side", "rows"), [(128, 64, 16), (256, 128, 32), (256, 64, 8)])
def test_with_the_same_memory_the_narrower_tile_decides(d: int, side: int, rows: int) -> None:
    """M = t^2 = 2 B_r d. Below M = 0.536 d^2 square tiles move less, though S moves three times and more."""
    assert side**2 == 2 * rows * d
    n = 8192
    w = square(n, head_dim=d)
    use = KernelUse(kernel="flash_forward", block_m=rows, block_n=64)
    flash = (flash_traffic(w, (use,)).total_bytes - 4 * n) / 2
    assert (elements(w, side) < flash) == (side**2 < 0.536 * d**2)


# The loops of the kernels, walked program by program.


def walked(w: AttentionWorkload, side: int) -> Traffic:
    """What the programs of the three kernels load and store."""
    e = w.element_bytes
    pitch = next(n for n in range(w.seq_k, w.seq_k + 16) if n % 16 == 0)
    reads, writes = 0, 0
    for start_m in range(0, w.seq_q, side):
        rows = min(side, w.seq_q - start_m)
        for start_n in range(0, w.seq_k, side):
            keys, padded = min(side, w.seq_k - start_n), min(side, pitch - start_n)
            reads += (rows + keys) * w.head_dim * e
            writes += rows * padded * e
        reads += rows * pitch * e
        writes += rows * 8
        for start_d in range(0, w.head_dim, side):
            columns = min(side, w.head_dim - start_d)
            reads += rows * 8 + rows * pitch * e + w.seq_k * columns * e
            writes += rows * columns * e
    heads = w.batch * w.heads
    return Traffic(read_bytes=heads * reads, write_bytes=heads * writes)


@pytest.mark.parametrize("side", [16, 32, 64, 128])
@pytest.mark.parametrize(("seq_q", "seq_k"), SIZES)
@pytest.mark.parametrize("head_dim", [16, 48, 80, 256])
@pytest.mark.parametrize("heads", [(1, 1), (6, 2)])
def test_ledger_against_the_loops(
    seq_q: int, seq_k: int, head_dim: int, heads: tuple[int, int], side: int
) -> None:
    w = make(
        batch=2, heads=heads[0], kv_heads=heads[1], seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, dtype="fp16"
    )
    assert total(io.square_ledger(w, tiles(side))) == walked(w, side)
    assert io.square_flops(w, tiles(side)) >= flops_exact(w)


# Invariants.


@pytest.mark.parametrize("head_dim", [16, 64, 256, 1024])
@pytest.mark.parametrize(("seq_q", "seq_k"), [*SIZES, (1024, 1024), (5000, 5000)])
def test_larger_tiles_never_move_more(seq_q: int, seq_k: int, head_dim: int) -> None:
    w = make(seq_q=seq_q, seq_k=seq_k, head_dim=head_dim)
    moved = [total(io.square_ledger(w, tiles(side))).total_bytes for side in (16, 32, 64, 128)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] > compulsory(w).total_bytes


@pytest.mark.parametrize("side", [16, 128])
@pytest.mark.parametrize("n", [113, 5000, 65536])
def test_dram_lies_between_compulsory_and_what_the_sms_ask_for(n: int, side: int) -> None:
    w = square(n, head_dim=256, heads=4, kv_heads=2)
    least, asked = compulsory(w), total(io.square_ledger(w, tiles(side)))
    found = io.square_dram(w, tiles(side), H200).traffic
    assert least.read_bytes <= found.read_bytes <= asked.read_bytes
    assert found.write_bytes == asked.write_bytes


# DRAM.


def test_scores_that_fit_l2_are_written_and_not_read() -> None:
    w = square(1024, head_dim=256)  # S is 2 MiB, 3 % of 60 MiB
    found = io.square_dram(w, tiles(64), H200)
    tensor = 1024 * 256 * 2
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=2 * 1024**2 + tensor + 2 * 4 * 1024)
    assert found.reason.startswith(
        "S takes 3% of L2 and stays in L2: 0% of its re-reads miss; K of 1 head(s)"
    )


def test_scores_that_exceed_l2_are_read_by_two_kernels() -> None:
    w = square(16384, head_dim=256)  # S is 512 MiB; K is 8 MiB, 13 % of L2
    found = io.square_dram(w, tiles(64), H200)
    tensor, scores = 16384 * 256 * 2, 16384**2 * 2
    # Q, K, V once; S for the statistics and once more, though 4 programs of a row read it; l and m.
    assert found.traffic.read_bytes == 3 * tensor + 2 * scores + 8 * 16384
    assert found.reason == (
        "S takes 853% of L2 and exceeds it: every kernel reads it from DRAM; "
        "K of 1 head(s) in flight take 13% of L2: they stay; "
        "V of 1 head(s) in flight take 13% of L2: they stay"
    )


def test_keys_that_exceed_l2_are_read_by_every_wave() -> None:
    # K is 34 MB, 54 % of L2. Tiles of 64: 1046 columns, so that a row of tiles has the device to itself, and
    # K is read 1046 times. O has 4 columns: 132 programs are 33 rows at a time, ceil(1046 / 33) = 32 waves.
    n = 64 * 1046
    w = square(n, head_dim=256)
    found = io.square_dram(w, tiles(64), H200)
    tensor, scores = n * 256 * 2, n**2 * 2
    assert found.traffic.read_bytes == tensor * (1 + 1046 + 32) + 2 * scores + 8 * n
    assert "K of 1 head(s) in flight take 54% of L2: read once by each of 1046 waves" in found.reason
    assert "V of 1 head(s) in flight take 54% of L2: read once by each of 32 waves" in found.reason


# The row.


@pytest.mark.parametrize("capability", [(0, 0), (7, 5), (8, 0), (9, 0), (12, 0)])
def test_every_device_has_a_plan(capability: tuple[int, int]) -> None:
    plan = row().plan
    assert plan is not None
    uses = plan(square(512, head_dim=512), capability)
    assert [(use.kernel, use.block_m, use.block_n, use.num_warps) for use in uses] == [
        (name, 64, 64, 4) for name in ("square_scores", "square_statistics", "square_output")
    ]


def test_one_side_is_both() -> None:
    w = square(512, head_dim=128)
    for sides in ((32, None), (None, 32), (32, 32)):
        found = with_tiles(row(), w, H200, *sides)
        assert found.options == {"tiles": [[32, 32, 4, 3]] * 3}
        assert found.plan is not None
        assert {(use.block_m, use.block_n) for use in found.plan(w, (9, 0))} == {(32, 32)}
    assert with_tiles(row(), w, H200, 16, None).options == {"tiles": [[16, 16, 1, 3]] * 3}


def test_stages_are_as_many_as_fit() -> None:
    """A T4 has 64 KiB a block: a stage of 128 x 128 takes 32 KiB, and P 16 KiB more."""
    found = with_tiles(row(), square(512), load("t4"), 128, None).options["tiles"]
    assert found == [[128, 128, 8, 2], [128, 128, 8, 3], [128, 128, 8, 1]]


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((32, 64), "square tiles are as high as wide, not 32 x 64"),
        ((None, 256), "square tiles have a side of at most 128, not 256"),
        ((48, None), "--block-m must be a power of two"),
    ],
)
def test_tiles_that_it_cannot_have(sides: tuple[int | None, int | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_tiles(row(), square(512), H200, *sides)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pass_": "bwd"}, "pass bwd: square has a forward pass only"),
        ({"pass_": "fwd-bwd"}, "pass fwd-bwd: square has a forward pass only"),
        ({"causal": True}, "square has no causal mask"),
        ({"head_dim": 8}, "head dim 8: square takes multiples of 16 up to 1024"),
        ({"head_dim": 72}, "head dim 72: square takes multiples of 16 up to 1024"),
        ({"dtype": "fp32"}, "dtype fp32: square takes bf16, fp16"),
        ({"dropout": 0.1}, "square has no dropout"),
    ],
)
def test_what_it_cannot_serve(fields: dict[str, Any], reason: str) -> None:
    assert row().refusal(make(**fields)) == reason


def test_what_it_serves() -> None:
    assert [row().refusal(make(head_dim=d)) for d in (16, 48, 256, 1024)] == [None] * 4
    assert row().named_only


def test_a_missing_tile_is_named() -> None:
    with pytest.raises(UsageError) as missing:
        io.square_ledger(make(), tiles(16)[:1])
    assert missing.value.message == "the tile of kernel 'square_output' is not in the record"


def test_kernels_are_named_as_their_functions() -> None:
    """So the counters of a kernel find its model."""
    source = (KERNELS / "square.py").read_text()
    assert tuple(re.findall(r"@triton\.jit\([^\n]*\n(?:def|.*\ndef) (\w+)", source)) == io.square_tiled(
        make()
    )


# The table of tiles.


def test_slices_divide_the_head_dim() -> None:
    # At most 64 columns, no more than the tile has, and none partly empty.
    assert [table.square_slice(64, d) for d in (16, 48, 80, 64, 96, 256, 1024)] == [
        16,
        16,
        16,
        64,
        32,
        64,
        64,
    ]
    assert [table.square_slice(side, 256) for side in (16, 32, 64, 128)] == [16, 32, 64, 64]
    assert [table.square_slice(side) for side in (16, 128)] == [16, 64]


def test_rows_of_scores_are_whole_sectors() -> None:
    assert [table.square_pitch(n) for n in (1, 16, 17, 203, 4096)] == [16, 16, 32, 208, 4096]


def test_sides_that_there_are_not() -> None:
    for side in (8, 48, 256):
        with pytest.raises(ValueError, match=f"a side of 16, 32, 64 or 128, not {side}"):
            table.square_tile(side)
