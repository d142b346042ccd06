"""What reaches DRAM: by hand on an H200 and on one with less L2, and what must hold everywhere."""

from typing import Any

import msgspec
import pytest

from perfkit.model.catalogue import load
from perfkit.model.device import DeviceProfile
from perfkit.model.device_figures import Figure
from perfkit.model.traffic import Traffic
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_cache import flash_dram, standard_dram
from perfkit.ops.attention_io import compulsory, flash_traffic, standard_traffic
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse

H200 = load("h200-141gb-sxm")  # 132 SMs, 60 MiB of L2
MIB = 1 << 20
#: Of this a head of 8 MiB takes so much that a wave reads it once, and leaves nothing to the next.
ONCE = round(8 * MIB / 0.545)
KERNELS = ("flash_forward", "flash_dkdv", "flash_dq")


def with_l2(capacity: int) -> DeviceProfile:
    """An H200 with that much L2."""
    replace = msgspec.structs.replace
    l2 = replace(H200.memory.l2, capacity_bytes=Figure(value=capacity, source="driver"))
    return replace(H200, memory=replace(H200.memory, l2=l2))


def square(n: int, **fields: Any) -> AttentionWorkload:
    return AttentionWorkload(**{"heads": 1, "kv_heads": 1, "seq_q": n, "seq_k": n, "head_dim": 64, **fields})


def tiles(block_m: int = 128, block_n: int = 64) -> tuple[KernelUse, ...]:
    """Never compiled: one block an SM, 132 at a time."""
    return tuple(KernelUse(kernel=name, block_m=block_m, block_n=block_n) for name in KERNELS)


def test_flash_that_fits_reads_each_tensor_once() -> None:
    w = square(4096, heads=16, kv_heads=16)
    tensor = 16 * 4096 * 64 * 2  # 8 MiB; K and V of the 5 heads that 132 blocks touch are 5 MiB of 60
    found = flash_dram(w, tiles(), H200)
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=tensor + 16 * 4096 * 4)
    assert found.reason == "5 head(s) in flight take 8% of L2: they stay"


def test_flash_that_does_not_fit_reads_k_and_v_once_a_wave() -> None:
    w = square(32768)
    tensor = 32768 * 64 * 2  # 4 MiB; 256 blocks of queries, 132 at a time: 2 waves
    found = flash_dram(w, tiles(), with_l2(ONCE))
    assert found.traffic == Traffic(read_bytes=tensor + 2 * (2 * tensor), write_bytes=tensor + 32768 * 4)
    assert found.reason == "1 head(s) in flight take 55% of L2: read once by each of 2 waves"


def test_a_compiled_kernel_is_resident_by_what_it_takes() -> None:
    w = square(32768)
    tensor = 32768 * 64 * 2
    # 228 KiB an SM / (75 + 1) KiB = 3 blocks, 396 at a time: all 256 in one wave
    use = KernelUse(
        kernel="flash_forward", block_m=128, block_n=64, num_warps=4, shared_bytes=75 * 1024, registers=128
    )
    assert flash_dram(w, (use,), with_l2(ONCE)).traffic.read_bytes == 3 * tensor


def test_a_mask_leaves_of_each_wave_what_is_visible() -> None:
    w = square(32768, causal=True)
    tensor = 32768 * 64 * 2
    # Blocks of 128 queries see 2, 4, ... 512 of 512 blocks of 64 keys: 256 x 257 of 256 x 512.
    visible = 2 * (256 * 257) / (256 * 512)
    found = flash_dram(w, tiles(), with_l2(ONCE))
    assert found.traffic.read_bytes == tensor + round(2 * tensor * visible)


def test_backward_kernels_read_their_inputs_apart() -> None:
    w = square(16384, heads=16, kv_heads=16, pass_="bwd")  # inputs of 170 MB are far more than L2
    tensor, statistic = 16 * 16384 * 64 * 2, 16 * 16384 * 4
    preprocess = Traffic(read_bytes=2 * tensor, write_bytes=statistic)  # O, dO; D
    dkdv = Traffic(read_bytes=2 * tensor + 2 * tensor + 2 * statistic, write_bytes=2 * tensor)
    dq = Traffic(read_bytes=2 * tensor + 2 * statistic + 2 * tensor, write_bytes=tensor)
    assert flash_dram(w, tiles(), H200).traffic == preprocess + dkdv + dq


def test_small_inputs_stay_between_the_backward_kernels() -> None:
    w = square(1024, heads=16, kv_heads=16, pass_="bwd")  # 10.6 MB are less than a third of 62.9 MB
    found = flash_dram(w, tiles(), H200)
    assert found.traffic.read_bytes == compulsory(w).read_bytes
    assert found.reason.endswith("100% of its inputs stay in L2 between its kernels")
    # Inputs of two thirds of L2: halfway between a third (all stays) and all of it (none does).
    w = square(4096, heads=16, kv_heads=16, pass_="bwd")
    tensor, statistic = 16 * 4096 * 64 * 2, 16 * 4096 * 4
    once, apart = 5 * tensor + statistic, 2 * tensor + 2 * (4 * tensor + 2 * statistic)
    capacity = once * 3 // 2
    expected = once + (apart - once) / 2
    assert flash_dram(w, tiles(), with_l2(capacity)).traffic.read_bytes == pytest.approx(expected, rel=1e-6)


def test_both_passes_are_their_sum() -> None:
    parts = [flash_dram(square(32768, pass_=one), tiles(), with_l2(MIB)).traffic for one in ("fwd", "bwd")]
    both = flash_dram(square(32768, pass_="fwd-bwd"), tiles(), with_l2(MIB))
    assert both.traffic == parts[0] + parts[1]


def test_standard_past_l2_moves_all_of_it() -> None:
    w = square(16384, heads=16, kv_heads=16)  # S is 8 GiB
    found = standard_dram(w, (), H200)
    assert found.traffic == standard_traffic(w)
    assert found.reason == "S and P exceed L2: every pass over them reaches DRAM"


def test_standard_in_l2_reads_its_inputs_only() -> None:
    w = square(512)  # S is half a MiB of 60
    found = standard_dram(w, (), H200)
    tensor = 512 * 64 * 2
    assert found.traffic == Traffic(read_bytes=3 * tensor, write_bytes=2 * 512 * 512 * 2 + tensor)
    assert found.reason == "S takes 1% of L2 and stays in L2: it is written, and re-read there"


def test_standard_near_l2_reads_a_part_again() -> None:
    """S of 16 heads, N 1024, is 2^25 B, 0.533 of 60 MiB: (0.533 - 0.37) / 0.30 * 72 % = 39.2 % is missed."""
    w = square(1024, heads=16, kv_heads=16)
    found = standard_dram(w, (), H200)
    missed = (2**25 / (60 * MIB) - 0.37) / 0.30 * 0.72
    tensor = 16 * 1024 * 64 * 2
    assert found.traffic.read_bytes == 3 * tensor + round(missed * 2 * 2**25)
    assert found.traffic.write_bytes == 2 * 2**25 + tensor  # every matrix is written in the end
    assert found.reason == "S takes 53% of L2 and in part stays in L2: 39% of its re-reads miss"


def test_standard_backward_needs_room_for_more_than_s() -> None:
    """P waits while dP is made: 1.4 matrices are in use, so that less is found again than forward."""
    forward, backward = (
        standard_dram(square(1024, heads=16, kv_heads=16, pass_=one), (), H200).reason
        for one in ("fwd", "bwd")
    )
    assert forward.endswith("39% of its re-reads miss")
    assert backward.endswith("74% of its re-reads miss")  # 0.747 of L2: 72 % + 28 % * 0.077 / 0.93


def test_standard_backward_in_l2_reads_p_once() -> None:
    """P of the forward pass is an input of the backward: cold, it comes from DRAM, as dO, Q, K and V do."""
    w = square(512, pass_="bwd")
    assert (
        standard_dram(w, (), H200).traffic.read_bytes >= w.scores_bytes + 2 * w.query_bytes + 2 * w.key_bytes
    )


CASES = [
    {"causal": causal, "pass_": pass_, "heads": heads, "kv_heads": 2}
    for causal in (False, True)
    for pass_ in ("fwd", "bwd", "fwd-bwd")
    for heads in (2, 8)
]


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: "-".join(map(str, fields.values())))
@pytest.mark.parametrize(
    "row", [row for row in ATTENTION.implementations if row.io], ids=lambda row: row.name
)
def test_more_l2_never_means_more_dram_traffic(row: Any, fields: dict[str, Any]) -> None:
    w = square(32768, **fields)
    uses = row.plan(w, (9, 0)) if row.plan else ()
    sizes = [MIB // 8 * 2**step for step in range(22)]  # to 256 GiB
    moved = [row.io.dram(w, uses, with_l2(size)).traffic.total_bytes for size in sizes]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[-1]


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: "-".join(map(str, fields.values())))
@pytest.mark.parametrize("n", [113, 5000, 65536])
def test_flash_at_dram_lies_between_compulsory_and_what_the_sms_ask_for(
    n: int, fields: dict[str, Any]
) -> None:
    w = square(n, **fields)
    least, asked = compulsory(w), flash_traffic(w, tiles())
    for l2 in (MIB, 60 * MIB, 1 << 40):
        found = flash_dram(w, tiles(), with_l2(l2)).traffic
        assert least.read_bytes <= found.read_bytes <= asked.read_bytes
        assert least.write_bytes <= found.write_bytes == asked.write_bytes


def test_softmax_reads_long_rows_again() -> None:
    """Rows of 32k fit an SM (64 KiB) and are read once; rows of 64k do not, and 0.86 of S is read again."""
    row = ATTENTION.implementation("standard")
    assert row is not None
    assert row.io is not None
    for n, again in ((32768, 0), (65536, round(0.86 * 2 * 65536**2))):
        w = square(n)
        found = row.io.dram(w, (), H200)
        assert found.traffic == row.io.traffic(w, ()) + Traffic(read_bytes=again, write_bytes=0)
        assert ("softmax reads rows of 131 kB again" in found.reason) == bool(again)
