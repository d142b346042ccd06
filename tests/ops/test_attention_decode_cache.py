"""The IO model of `flash-decode` over a K/V cache: lengths, pages, fp8, appending, and shared prefixes."""

import itertools
from typing import Any

import pytest

from perfkit.errors import UsageError
from perfkit.kernels.attention import tiles as table
from perfkit.model.catalogue import load
from perfkit.ops import attention_decode as io
from perfkit.ops.attention import flops_exact
from perfkit.ops.attention_io import compulsory
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse, Uses, by_tensor, total

H200 = load("h200-141gb-sxm")  # 132 SMs, 60 MiB of L2
PAGES = (1, 2, 7, 16, 24, 64, 100, 200, 256)


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(
        **{"heads": 1, "kv_heads": 1, "seq_q": 1, "seq_k": 256, "head_dim": 32, **fields}
    )


def uses(block_m: int, block_n: int, splits: int = 1, merge: str = "combine", append: int = 1) -> Uses:
    return (
        KernelUse(kernel="decode_append", block_m=append, block_n=0),
        KernelUse(kernel="decode_split", block_m=block_m, block_n=block_n),
        KernelUse(kernel=f"decode_{merge}", block_m=splits, block_n=0),
    )


def moved(w: AttentionWorkload, ran: Uses) -> dict[tuple[str, str], tuple[int, int]]:
    """(kernel, tensor) -> (read, written)."""
    found = by_tensor(io.decode_ledger(w, ran))
    return {(kernel[7:], name): (t.read_bytes, t.write_bytes) for (kernel, name), t in found.items()}


# Blocks of keys.


@pytest.mark.parametrize(
    ("page", "block_n", "pages", "whole", "blocks"),
    [
        (0, 64, 1, True, 5),  # 320 keys in one piece
        (16, 64, 4, True, 5),
        (64, 64, 1, True, 5),
        (1, 64, 64, True, 5),
        (256, 64, 1, True, 5),  # 4 parts of the first page and 1 of the second
        (24, 64, 2, False, 7),  # two pages of 32 rows each: 48 keys a block
        (100, 64, 1, False, 7),  # 64 and 36 of each page, and 20 of the last
        (100, 128, 1, False, 4),  # a page a block
        (7, 64, 8, False, 6),  # 56 keys a block
    ],
)
def test_blocks_by_hand(page: int, block_n: int, pages: int, whole: bool, blocks: int) -> None:
    assert table.decode_pages(page, block_n) == pages
    assert table.decode_whole(320, page, block_n) is whole
    assert table.decode_blocks(320, page, block_n) == blocks


def chunks(keys: int, page: int, block_n: int) -> list[list[int]]:
    """The keys of each block, one by one, by the rule in words: no block holds parts of two pages."""
    pieces = [list(range(at, min(at + (page or keys), keys))) for at in range(0, keys, page or keys)]
    if page:
        rows = next(2**n for n in range(9) if 2**n >= page)  # of the tile, that a page takes
        most = block_n // rows
        if most > 1:
            return [list(itertools.chain(*pieces[at : at + most])) for at in range(0, len(pieces), most)]
    return [piece[at : at + block_n] for piece in pieces for at in range(0, len(piece), block_n)]


@pytest.mark.parametrize("page", [0, *PAGES])
@pytest.mark.parametrize("block_n", [16, 32, 64, 128])
def test_blocks_hold_all_keys_once(page: int, block_n: int) -> None:
    for keys in (1, 15, 16, 100, 101, 257, 512, 700):
        found = chunks(keys, page, block_n)
        assert list(itertools.chain(*found)) == list(range(keys))
        assert table.decode_blocks(keys, page, block_n) == len(found)
        long = chunks(len(found) * 256, page, block_n)
        for count in (0, 1, len(found)):
            assert table.decode_covered(count, page, block_n) == sum(map(len, long[:count]))


# By hand.


def test_lengths_by_hand() -> None:
    # 256 and 56 keys in blocks of 64 and shares of 2: the second sequence has work for one share of two, and
    # reads 56 rows of 64 B. All four programs and the two rows that are merged read a length.
    w = make(batch=2, padding=200)
    assert moved(w, uses(16, 64, 2)) == {
        ("split", "Q"): (3 * 64, 0),
        ("split", "K"): ((256 + 56) * 64, 0),
        ("split", "V"): ((256 + 56) * 64, 0),
        ("split", "lengths"): (4 * 4, 0),
        ("split", "O in fp32"): (0, 3 * 128),
        ("split", "LSE"): (0, 3 * 4),
        ("combine", "O in fp32"): (3 * 128, 0),
        ("combine", "LSE"): (3 * 4, 0),
        ("combine", "lengths"): (2 * 4, 0),
        ("combine", "O"): (0, 2 * 64),
    }
    assert io.decode_flops(w, uses(16, 64, 2)) == 4 * 16 * 64 * 32 * (4 + 1)
    assert io.decode_exps(w, uses(16, 64, 2)) == 256 + 56 + 3


def test_pages_by_hand() -> None:
    # 250 keys in 16 pages of 16, four a block; the last page holds 10. Two K/V heads read the same table.
    w = make(heads=2, kv_heads=2, seq_k=250, page=16)
    assert moved(w, uses(16, 64)) == {
        ("split", "Q"): (2 * 64, 0),
        ("split", "K"): (2 * 250 * 64, 0),
        ("split", "V"): (2 * 250 * 64, 0),
        ("split", "block table"): (2 * 16 * 4, 0),
        ("split", "O"): (0, 2 * 64),
    }
    # Each block of a page of 256 reads its one entry: 4 of them.
    assert moved(make(page=256), uses(16, 64))[("split", "block table")] == (4 * 4, 0)


def test_fp8_by_hand() -> None:
    # A byte an element. In one piece each of three shares reads two scales; in pages of 16 each page's two.
    w = make(seq_k=384, cache_dtype="fp8")
    found = moved(w, uses(16, 64, 3))
    assert found[("split", "K")] == found[("split", "V")] == (384 * 32, 0)
    assert found[("split", "K scale")] == found[("split", "V scale")] == (3 * 4, 0)
    paged = moved(make(seq_k=384, cache_dtype="fp8", page=16), uses(16, 64, 3))
    assert paged[("split", "V scale")] == paged[("split", "block table")] == (24 * 4, 0)


def test_appending_by_hand() -> None:
    # 20 new tokens of two sequences, in programs of 16 rows: they read 2 x 20 x 64 B of K and write as much,
    # in fp8 half of it, with an entry of the table and two scales each.
    w = make(batch=2, seq_q=20, append=True)
    assert {
        key: value for key, value in moved(w, uses(32, 64, 1, append=16)).items() if key[0] == "append"
    } == {
        ("append", "new K"): (2560, 0),
        ("append", "new V"): (2560, 0),
        ("append", "K"): (0, 2560),
        ("append", "V"): (0, 2560),
    }
    paged = make(batch=2, seq_q=20, append=True, page=16, cache_dtype="fp8", padding=100)
    found = moved(paged, uses(32, 64, 1, append=16))
    assert found[("append", "new K")] == (2560, 0)
    assert found[("append", "K")] == (0, 1280)
    assert found[("append", "block table")] == found[("append", "K scale")] == (40 * 4, 0)
    assert found[("append", "lengths")] == (2 * 2 * 4, 0)
    # In one piece a program reads the scale of its head.
    whole = make(batch=2, seq_q=20, append=True, cache_dtype="fp8")
    assert moved(whole, uses(32, 64, 1, append=16))[("append", "V scale")] == (2 * 2 * 4, 0)


def test_merging_within_the_kernel_moves_the_same_and_a_counter() -> None:
    w = make(heads=6, kv_heads=2, seq_q=9, seq_k=640, padding=300, batch=2)  # 27 rows: two tiles of 16
    apart, fused = moved(w, uses(16, 64, 4)), moved(w, uses(16, 64, 4, "merge"))
    for name in ("O in fp32", "LSE"):
        assert fused[("split", name)] == (apart[("combine", name)][0], apart[("split", name)][1])
    assert fused[("split", "O")] == apart[("combine", "O")]
    assert fused[("split", "arrivals")] == (0, 2 * 2 * 2 * 4)
    assert {kernel for kernel, _ in fused} == {"split"}
    assert io.splits_of(uses(16, 64, 4, "merge")) == 4


def test_extra_work_of_pages() -> None:
    assert io.decode_extra_flops(make(heads=16, page=24)) == ("pages of 24 tokens in tiles of powers of two",)
    assert io.decode_extra_flops(make(heads=16, page=16)) == ()


# The loops of the kernels, walked program by program.


def walked(w: AttentionWorkload, block_m: int, block_n: int, splits: int) -> dict[str, int]:
    """Bytes of each tensor that the programs of `decode_split` load, key by key."""
    found = dict.fromkeys(("Q", "K", "block table", "K scale", "lengths"), 0)
    group, every = w.heads // w.kv_heads, chunks(w.seq_k, w.page, block_n)
    share = -(-len(every) // splits)
    row = w.head_dim * w.cache_element_bytes
    tiles_m = [range(at, min(at + block_m, group * w.seq_q)) for at in range(0, group * w.seq_q, block_m)]
    for length, rows, split in itertools.product(w.lengths, tiles_m, range(splits)):
        found["lengths"] += 4 if w.padding else 0
        own = every[split * share : (split + 1) * share]
        if w.padding and split and not any(key < length for block in own for key in block):
            continue
        found["Q"] += len(rows) * w.head_dim * w.element_bytes
        found["K scale"] += 4 if w.cache_dtype and not w.page else 0
        visible = rows[-1] // group + 1 + length - w.seq_q if w.causal else length
        for block in own:
            if block[0] >= min(visible, length):
                break
            found["K"] += sum(key < length for key in block) * row
            if w.page:
                entries = len({key // w.page for key in block if key < length})
                found["block table"] += 4 * entries
                found["K scale"] += 4 * entries if w.cache_dtype else 0
    return {name: w.kv_heads * size for name, size in found.items() if size}


@pytest.mark.parametrize("page", [0, *PAGES])
@pytest.mark.parametrize("padding", [0, 200])
@pytest.mark.parametrize("cache_dtype", [None, "fp8"])
@pytest.mark.parametrize(("seq_q", "seq_k", "causal"), [(1, 257, False), (5, 640, True), (64, 300, True)])
def test_ledger_against_the_loops(
    seq_q: int, seq_k: int, causal: bool, cache_dtype: str | None, padding: int, page: int
) -> None:
    w = make(
        batch=3, heads=6, kv_heads=2, seq_q=seq_q, seq_k=seq_k, causal=causal, cache_dtype=cache_dtype,
        padding=padding, page=page,
    )  # fmt: skip
    for block_m, block_n, splits in ((16, 64, 1), (16, 32, 3), (64, 128, 2)):
        splits = table.without_empty(splits, table.decode_blocks(seq_k, page, block_n))
        found, ran = walked(w, block_m, block_n, splits), uses(block_m, block_n, splits)
        ledger = moved(w, ran)
        assert {name: ledger[("split", name)][0] for name in found} == found
        assert ledger[("split", "V")] == ledger[("split", "K")]
        assert io.decode_flops(w, ran) >= flops_exact(w)


# DRAM.


@pytest.mark.parametrize("page", [0, 16, 100])
@pytest.mark.parametrize("cache_dtype", [None, "fp8"])
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("padding", [0, 3000])
@pytest.mark.parametrize("seq_k", [4000, 1 << 17])
def test_dram_lies_between_compulsory_and_what_the_sms_ask_for(
    seq_k: int, padding: int, append: bool, cache_dtype: str | None, page: int
) -> None:
    w = make(
        batch=8, heads=8, kv_heads=2, seq_k=seq_k, head_dim=128, padding=padding, append=append, page=page,
        cache_dtype=cache_dtype, prefix=800 if page else 0,
    )  # fmt: skip
    ran = io.decode_plan(w, (9, 0))
    least, asked = compulsory(w), total(io.decode_ledger(w, ran))
    found = io.decode_dram(w, ran, H200).traffic
    assert least.read_bytes <= found.read_bytes <= asked.read_bytes
    assert least.write_bytes <= found.write_bytes == asked.write_bytes
    # One token over a cache: nothing but tables and partial results beyond what is compulsory.
    assert found.read_bytes <= 1.01 * least.read_bytes


def test_fp8_halves_and_a_prefix_is_read_once() -> None:
    # 64 sequences of 8 K/V heads, 8192 tokens of d 128: 4096 B a token and sequence, 2048 in fp8.
    full = make(batch=64, heads=32, kv_heads=8, seq_k=8192, head_dim=128)
    eight = make(batch=64, heads=32, kv_heads=8, seq_k=8192, head_dim=128, cache_dtype="fp8")
    reads = [io.decode_dram(w, io.decode_plan(w, (9, 0)), H200).traffic.read_bytes for w in (full, eight)]
    q = 64 * 32 * 256
    assert reads == [64 * 8192 * 4096 + q, 64 * 8192 * 2048 + q + 2 * 8 * 4]
    # Half of each sequence a prefix of 4096 tokens, 16 MiB and little beside 60 MiB of L2: read once.
    shared = make(batch=64, heads=32, kv_heads=8, seq_k=8192, head_dim=128, page=16, prefix=4096)
    found = io.decode_dram(shared, io.decode_plan(shared, (9, 0)), H200)
    assert found.traffic.read_bytes == (64 * 4096 + 4096) * 4096 + q + 64 * 512 * 4
    assert found.reason.endswith("once")
    # A prefix of 128 Ki tokens, 512 MiB, is lost between the turns that 64 sequences of 8 heads take.
    long = make(batch=64, heads=32, kv_heads=8, seq_k=135168, head_dim=128, page=16, prefix=131072)
    split, combine = io.decode_plan(long, (9, 0))
    found = io.decode_dram(long, (split, combine), H200)
    turns = -(-64 // (132 // 8))  # a thread block an SM where nothing was compiled: 16 sequences at a time
    assert f"in {turns} turns, 100% of which miss L2" in found.reason
    own = 64 * 4096 * 4096 + q + 64 * 8448 * 4
    assert found.traffic.read_bytes == own + turns * 131072 * 4096


# The row.


def test_the_plan_says_what_appends() -> None:
    plan = io.decode_plan(make(seq_q=5, append=True), (9, 0))
    assert (plan[0].kernel, plan[0].block_m) == ("decode_append", 8)
    assert io.decode_tiled(make(append=True)) == ("decode_append", "decode_split")
    assert io.decode_tiled(make()) == ("decode_split",)
    assert io.decode_launches(make(append=True, seq_k=100)) == 2
    assert io.decode_launches(make(append=True, seq_k=10000)) == 3
    with pytest.raises(UsageError, match="the tile of kernel 'decode_append' is not in the record"):
        io.decode_ledger(make(append=True), uses(16, 64)[1:])


def test_shares_are_those_of_blocks_over_pages() -> None:
    # 32 tiles, 14400 keys. In pages of 24 they are 300 blocks of 48 keys, two programs a multiprocessor: 7
    # shares fill 224 of 264 slots, 0.848, and no number more than 0.970 (8). Pages of 16 make 225 blocks of
    # 64, of which 33 shares of 7 fill four waves: 0.848 is less than 85 % of that, and 8 are enough. In one
    # piece, and a program a multiprocessor, 4 shares fill 128 of 132 slots; 3 would be 96.
    for page, blocks, splits in ((24, 300, 7), (16, 225, 8), (0, 113, 4)):
        w = make(heads=32, kv_heads=32, seq_k=14400, head_dim=128, page=page)
        split, combine = io.decode_plan(w, (9, 0))
        assert table.decode_blocks(14400, page, split.block_n) == blocks
        assert combine.block_m == splits
