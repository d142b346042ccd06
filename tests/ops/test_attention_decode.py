"""The IO model of `flash-decode`: integers derived by hand, the loops walked, intensity, and invariants.

Caches in pages and in fp8, of several lengths and appended to, are in `test_attention_decode_cache.py`.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles as table
from perfkit.model.cache import STAYS
from perfkit.model.catalogue import load
from perfkit.model.traffic import Traffic
from perfkit.ops import attention_decode as io
from perfkit.ops import attention_decode_ledger as names
from perfkit.ops.attention import ATTENTION, flops_convention, flops_exact
from perfkit.ops.attention_io import compulsory
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, KernelUse, Uses, total

H200 = load("h200-141gb-sxm")  # 132 SMs, 60 MiB of L2
KERNELS = Path(__file__).parents[2] / "kernels/attention"


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(
        **{"heads": 1, "kv_heads": 1, "seq_q": 1, "seq_k": 256, "head_dim": 32, **fields}
    )


def uses(block_m: int, block_n: int, splits: int = 1) -> Uses:
    return (
        KernelUse(kernel="decode_split", block_m=block_m, block_n=block_n),
        KernelUse(kernel="decode_combine", block_m=splits, block_n=0),
    )


def planned(w: AttentionWorkload, capability: tuple[int, int] = (9, 0)) -> tuple[int, int, int]:
    """(rows, keys of a tile, shares) of the plan."""
    split, combine = io.decode_plan(w, capability)
    return split.block_m, split.block_n, combine.block_m


def row() -> Implementation:
    found = ATTENTION.implementation("flash-decode")
    assert found is not None
    return found


def plain(w: AttentionWorkload, ran: Uses) -> list[tuple[str, str, int, int]]:
    """(kernel, tensor, read, written) of each entry."""
    ledger = io.decode_ledger(w, ran)
    return [(m.kernel[7:], m.tensor, m.traffic.read_bytes, m.traffic.write_bytes) for m in ledger]


# By hand.


def test_one_share_by_hand() -> None:
    # 4 query heads of d 32 over one K/V head of 256 keys: Q and O 4 x 64 B, K and V 256 x 64 B.
    assert plain(make(heads=4), uses(16, 64)) == [
        ("split", "Q", 256, 0),
        ("split", "K", 16384, 0),
        ("split", "V", 16384, 0),
        ("split", "O", 0, 256),
    ]
    assert total(io.decode_ledger(make(heads=4), uses(16, 64))) == compulsory(make(heads=4))


def test_three_shares_by_hand() -> None:
    # As above: each share reads Q and leaves 4 rows of 32 + 1 numbers in fp32, 4 x 128 B and 4 x 4 B.
    assert plain(make(heads=4), uses(16, 64, 3)) == [
        ("split", "Q", 768, 0),
        ("split", "K", 16384, 0),
        ("split", "V", 16384, 0),
        ("split", "O in fp32", 0, 1536),
        ("split", "LSE", 0, 48),
        ("combine", "O in fp32", 1536, 0),
        ("combine", "LSE", 48, 0),
        ("combine", "O", 0, 256),
    ]


def test_row_tiles_of_a_causal_mask_by_hand() -> None:
    # 2 query heads, 5 tokens, 100 keys: 10 rows token by token, in tiles of 4: last tokens 1, 3, 4, which see
    # 97, 99 and 100 keys. Blocks of 49 keys: 98, 100 (two blocks and a bit) and 100 keys are read.
    w = make(heads=2, seq_q=5, seq_k=100, causal=True)
    assert plain(w, uses(4, 49))[1] == ("split", "K", (98 + 100 + 100) * 64, 0)
    full = make(heads=2, seq_q=5, seq_k=100)
    assert plain(full, uses(4, 49))[1] == ("split", "K", 300 * 64, 0)


def test_more_queries_than_keys_by_hand() -> None:
    # 9 tokens, 5 keys: token i sees i - 3. Tiles of 2 rows end with tokens 1, 3, 5, 7, 8: 0, 0, 2, 4, 5 keys.
    w = make(seq_q=9, seq_k=5, causal=True)
    assert plain(w, uses(2, 2))[1] == ("split", "K", (0 + 0 + 2 + 4 + 5) * 64, 0)


def test_work_by_hand() -> None:
    # Two K/V heads of 4 rows in a tile of 16, 100 keys in 2 blocks of 64, d 48 padded to 64.
    w = make(heads=8, kv_heads=2, seq_k=100, head_dim=48)
    assert io.decode_flops(w, uses(16, 64)) == 2 * 4 * 16 * 128 * 64
    assert io.decode_exps(w, uses(16, 64)) == 8 * 100
    assert io.decode_exps(w, uses(16, 64, 2)) == 8 * 100 + 2 * 8
    assert io.decode_extra_flops(w) == (
        "4 query rows of a K/V head in tiles of at least 16",
        "head dim 48 padded to a power of two",
    )
    assert io.decode_extra_flops(make(heads=16, seq_q=2, causal=True)) == ("masked part of diagonal tiles",)
    assert io.decode_extra_flops(make(heads=16, causal=True)) == ()  # one token sees all keys


@pytest.mark.parametrize("group", [1, 4, 8])
def test_intensity_is_g(group: int) -> None:
    """4 h N_k d FLOP over 2 h_kv N_k d e bytes: g FLOP/byte in 16 bit, and Q and O cost g / N_k of that."""
    w = make(batch=16, heads=8 * group, kv_heads=8, seq_k=16384, head_dim=128)
    least = compulsory(w)
    assert flops_convention(w) == 4 * 16 * 8 * group * 16384 * 128
    assert flops_convention(w) / least.total_bytes == pytest.approx(group / (1 + group / 16384), rel=1e-12)
    ran = io.decode_plan(w, (9, 0))
    dram = io.decode_dram(w, ran, H200).traffic
    assert flops_convention(w) / dram.total_bytes == pytest.approx(group, rel=0.002)


# Shares.


@pytest.mark.parametrize(
    ("blocks", "key_blocks", "sms", "resident", "splits"),
    [
        (212, 1000, 132, 2, 1),  # 0.8 of 264 is 211.2
        (211, 1000, 132, 2, 5),  # 211 n / 264 in whole waves: 0.80, 0.80, 0.80, 0.80, then 1055 / 1056
        (128, 256, 132, 2, 2),  # 256 of 264
        (32, 256, 132, 2, 7),  # 224 of 264 is 0.848, and the best is 8 with 256 of 264, 0.970
        (32, 33, 132, 2, 33),  # 33 fill four waves, and now 0.848 is too little; 8 would be as 7
        (1, 128, 132, 2, 128),  # shares of 2 or more leave half the device idle
        (1, 3, 132, 2, 3),
        (1, 1, 132, 2, 1),
        (8, 1000, 108, 2, 23),  # 27 shares fill the 216 slots, and 23 are 184 of them, 0.852
        (106, 128, 132, 1, 1),  # 0.8 of 132 is 105.6
        (105, 128, 132, 1, 5),  # 105 n / 132 in whole waves: 0.795 four times, then 525 / 528
        (64, 64, 132, 1, 2),  # 128 of 132
        (32, 128, 132, 1, 4),  # 128 of 132; 3 are 96, 0.727
        (128, 256, 132, 4, 4),  # 512 of 528; 3 are 384, 0.727
    ],
)
def test_shares_by_hand(blocks: int, key_blocks: int, sms: int, resident: int, splits: int) -> None:
    assert table.decode_splits(blocks, key_blocks, sms, resident) == splits


@pytest.mark.parametrize("resident", [1, 2, 4])
def test_no_share_is_empty(resident: int) -> None:
    for key_blocks in (1, 2, 3, 7, 64, 71, 100, 128, 129, 257, 1000):
        for blocks in (1, 2, 8, 32, 100, 128, 211, 212, 5000):
            splits = table.decode_splits(blocks, key_blocks, 132, resident)
            share = -(-key_blocks // splits)
            assert (splits - 1) * share < key_blocks <= splits * share
            assert 1 <= splits <= min(128, key_blocks)


@pytest.mark.parametrize("asked", [1, 2, 3, 40, 71, 500])
def test_shares_that_are_asked_for_are_not_empty(asked: int) -> None:
    found = table.without_empty(asked, 71)
    share = -(-71 // found)
    assert found <= asked
    assert (found - 1) * share < 71 <= found * share


@pytest.mark.parametrize("resident", [1, 2, 4])
def test_more_blocks_alone_never_need_more_shares(resident: int) -> None:
    """Doubling the batch, until the blocks fill the device without."""
    found = [table.decode_splits(1 << n, 256, 132, resident) for n in range(10)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 1


# The loops of the kernels, walked program by program.


def walked(w: AttentionWorkload, block_m: int, block_n: int, splits: int) -> Traffic:
    """What the programs of the two kernels load and store."""
    reads, writes = 0, 0
    group = w.heads // w.kv_heads
    blocks = -(-w.seq_k // block_n)
    share = -(-blocks // splits) * block_n
    row_bytes = w.head_dim * w.element_bytes
    for start in range(0, group * w.seq_q, block_m):
        rows = list(range(start, min(start + block_m, group * w.seq_q)))
        visible = w.seq_k
        if w.causal:
            visible = max(r // group for r in rows) + 1 + w.seq_k - w.seq_q
        for split in range(splits):
            reads += len(rows) * row_bytes
            end = min((split + 1) * share, w.seq_k, visible)
            for first in range(split * share, end, block_n):
                reads += 2 * min(block_n, w.seq_k - first) * row_bytes
            writes += len(rows) * (w.head_dim * 4 + 4 if splits > 1 else row_bytes)
        if splits > 1:
            reads += splits * len(rows) * (w.head_dim * 4 + 4)
            writes += len(rows) * row_bytes
    heads = w.batch * w.kv_heads
    return Traffic(read_bytes=heads * reads, write_bytes=heads * writes)


@pytest.mark.parametrize("block_n", [32, 64, 128])
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (40, 1)])
@pytest.mark.parametrize(("seq_q", "seq_k"), [(1, 300), (3, 257), (64, 384), (17, 640), (64, 290)])
def test_ledger_against_the_loops(
    seq_q: int, seq_k: int, heads: int, kv_heads: int, causal: bool, splits: int, block_n: int
) -> None:
    w = make(
        batch=2, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, head_dim=48, causal=causal,
        dtype="fp16",
    )  # fmt: skip
    block_m = table.decode_tile(48, heads // kv_heads * seq_q, (9, 0)).block_m
    ran = uses(block_m, block_n, splits)
    assert total(io.decode_ledger(w, ran)) == walked(w, block_m, block_n, splits)
    assert io.decode_flops(w, ran) >= flops_exact(w)


# Invariants.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seq_q", [1, 3, 64])
@pytest.mark.parametrize("group", [1, 5, 8])
def test_more_keys_shares_or_heads_move_more(group: int, seq_q: int, causal: bool) -> None:
    def moved(seq_k: int, kv_heads: int, splits: int) -> int:
        w = make(heads=group * kv_heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, causal=causal)
        return total(io.decode_ledger(w, uses(16, 64, splits))).total_bytes

    for sizes in (
        [(n, 2, 2) for n in (128, 129, 1000, 4096)],
        [(1000, n, 2) for n in (1, 2, 8)],
        [(1000, 2, n) for n in (1, 2, 3, 16)],
    ):
        found = [moved(*size) for size in sizes]
        assert found == sorted(set(found))


@pytest.mark.parametrize("l2", ["h200-141gb-sxm", "t4"])
@pytest.mark.parametrize("seq_q", [1, 17, 64])
@pytest.mark.parametrize("seq_k", [113, 16384, 1 << 20])
def test_dram_lies_between_compulsory_and_what_the_sms_ask_for(seq_k: int, seq_q: int, l2: str) -> None:
    w = make(heads=8, kv_heads=2, seq_q=seq_q, seq_k=seq_k, head_dim=128)
    ran = io.decode_plan(w, (9, 0))
    least, asked = compulsory(w), total(io.decode_ledger(w, ran))
    found = io.decode_dram(w, ran, load(l2)).traffic
    assert least.read_bytes <= found.read_bytes <= asked.read_bytes
    assert found.write_bytes == asked.write_bytes


def test_partial_results_stay_in_l2() -> None:
    # 64 sequences of one K/V head: 64 blocks of 32 rows in 2 shares; 2048 rows x 129 x 4 B each.
    w = make(batch=64, heads=32, kv_heads=1, seq_k=8192, head_dim=128)
    found = io.decode_dram(w, io.decode_plan(w, (9, 0)), H200)
    q, k, partial = 2048 * 256, 64 * 8192 * 256, 2 * 2048 * 516
    assert found.traffic == Traffic(read_bytes=q + 2 * k, write_bytes=q + partial)
    assert found.reason.startswith("K and V once; what 2 shares leave, 2.11")
    assert found.reason.endswith(STAYS)


# The row.


def test_the_plan_by_hand() -> None:
    # (16, 32, 8, 16k, 128): 128 tiles of 4 rows fill 97 % of 132 SMs, a program each. Two on an A100's 108: 2
    # shares would be 256 of 432 slots, and 3 are 384; on a B200's 148, 2 are 256 of 296.
    w = make(batch=16, heads=32, kv_heads=8, seq_k=16384, head_dim=128)
    assert planned(w) == (16, 128, 1)
    assert planned(w, (8, 0)) == (16, 64, 3)
    assert planned(w, (10, 0)) == (16, 64, 2)
    # Pages below 64 tokens: two programs, 256 of 264 slots. Four in fp8: 512 of 528.
    paged, eight = (msgspec.structs.replace(w, **one) for one in ({"page": 16}, {"cache_dtype": "fp8"}))
    assert planned(paged) == (16, 64, 2)
    assert planned(eight) == (16, 64, 4)
    assert planned(msgspec.structs.replace(w, page=64)) == (16, 128, 1)
    assert planned(make(heads=64, seq_q=64, head_dim=256))[:2] == (64, 32)
    assert planned(make(heads=3, seq_q=6, head_dim=64))[:2] == (32, 128)


@pytest.mark.parametrize("capability", [(0, 0), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 1)])
def test_every_device_has_a_plan(capability: tuple[int, int]) -> None:
    for head_dim in (16, 80, 128, 256):
        block_m, block_n, splits = planned(make(heads=8, seq_k=5000, head_dim=head_dim), capability)
        assert block_m == 16
        assert block_n in (32, 64, 128)
        assert 1 < splits <= -(-5000 // block_n)


def test_sizes_without_a_device_are_those_on_132_sms() -> None:
    # 2 shares of 64 tiles fill 128 of 132 slots; each leaves 2048 rows of 129 numbers of 4 bytes.
    w = make(batch=64, heads=32, kv_heads=1, seq_k=8192, head_dim=128)
    assert (io.decode_launches(w), io.decode_workspace(w)) == (2, 2 * 2048 * 516)
    full = make(batch=64, heads=32, kv_heads=8, seq_k=16384, head_dim=128)
    assert (io.decode_launches(full), io.decode_workspace(full)) == (1, 0)


def test_device_counts_are_those_of_the_profiles() -> None:
    names = {
        (7, 5): "t4", (8, 0): "a100-80gb-sxm", (8, 6): "rtx-3090", (8, 9): "rtx-4090",
        (9, 0): "h100-80gb-sxm", (10, 0): "b200-180gb-sxm", (12, 0): "rtx-5090", (0, 0): "v100-16gb-sxm2",
    }  # fmt: skip
    assert {key: load(name).sm_count for key, name in names.items()} == io.SM_COUNTS


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pass_": "bwd"}, "pass bwd: flash-decode has a forward pass only"),
        ({"pass_": "fwd-bwd"}, "pass fwd-bwd: flash-decode has a forward pass only"),
        ({"seq_q": 65}, "65 query tokens: flash-decode takes up to 64"),
        ({"head_dim": 8}, "head dim 8: flash-decode takes multiples of 8 from 16 to 256"),
        ({"head_dim": 100}, "head dim 100: flash-decode takes multiples of 8 from 16 to 256"),
        ({"head_dim": 264}, "head dim 264: flash-decode takes multiples of 8 from 16 to 256"),
        ({"dtype": "fp32"}, "dtype fp32: flash-decode takes bf16, fp16"),
        ({"dropout": 0.1}, "flash-decode has no dropout"),
    ],
)
def test_what_it_cannot_serve(fields: dict[str, Any], reason: str) -> None:
    assert row().refusal(make(**fields)) == reason


def test_what_it_serves() -> None:
    assert [row().refusal(make(head_dim=d, seq_q=64, causal=True)) for d in (16, 72, 256)] == [None] * 3
    assert row().named_only


def test_the_kernel_s_limits_are_the_model_s() -> None:
    source = (KERNELS / "decode.py").read_text()
    found = re.search(r"^MOST_TOKENS = (\d+)$", source, re.MULTILINE)
    assert found is not None
    assert int(found[1]) == io.MOST_TOKENS
    launched = set(re.findall(r"\b(decode_\w+)\[\(", source))
    assert launched == {names.APPEND, names.SPLIT, names.COMBINE}


def test_a_missing_tile_is_named() -> None:
    with pytest.raises(UsageError, match="the tile of kernel 'decode_split' is not in the record"):
        io.decode_ledger(make(), uses(16, 64)[1:])
    assert io.splits_of(uses(16, 64)[:1]) == 1
