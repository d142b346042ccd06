"""Zeros by TMA: what an H200 counted beside the ledger, boxes by hand, and all boxes of the loops walked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perfkit.kernels.attention import tiles as table
from perfkit.model.catalogue import load
from perfkit.ops import attention_hopper as hopper
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_flash import flash_plan
from perfkit.ops.attention_hopper_backward import shares_of
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.attention_zeros import flash_zeros, hopper_zeros
from perfkit.ops.base import KernelUse, Uses, Zeros

KERNELS = Path(__file__).parents[2] / "kernels/attention"
H200 = load("h200-141gb-sxm")


def make(**fields: Any) -> AttentionWorkload:
    return AttentionWorkload(
        **{"heads": 1, "kv_heads": 1, "seq_q": 200, "seq_k": 200, "head_dim": 64, **fields}
    )


def of(found: tuple[Zeros, ...]) -> list[tuple[str, int, int]]:
    return [(one.kernel, one.columns, one.rows) for one in found]


def total(found: tuple[Zeros, ...]) -> int:
    return sum(one.counted for one in found)


# What an H200 counted at the SM (`l1tex__m_xbar2l1tex_read_bytes`) beside the ledger.


@pytest.mark.parametrize(
    ("heads", "head_dim", "counted"), [(21, 96, 11_362_369_536), (10, 192, 10_821_304_320)]
)
def test_columns_that_an_h200_counted(heads: int, head_dim: int, counted: int) -> None:
    """`flash-triton`, N 8k, batch 2: the ledger and a third of it, in tiles of 128 and 256 columns."""
    w = make(batch=2, heads=heads, kv_heads=heads, seq_q=8192, seq_k=8192, head_dim=head_dim)
    uses = (KernelUse(kernel="flash_forward", block_m=128, block_n=64),)
    row = ATTENTION.implementation("flash-triton")
    assert row is not None
    assert row.io is not None
    moved = row.io.traffic(w, uses).read_bytes
    assert moved + total(row.io.zeros(w, uses, H200)) == counted
    assert of(row.io.zeros(w, uses, H200)) == [("flash_forward", moved // 3, 0)]


def test_rows_that_an_h200_counted() -> None:
    """`flash-hopper`, N 16k, 32 heads of d 64: 86 tiles of 192 rows, of which 128 rows a head are beyond N.

    They are two whole boxes of 64 rows. What is left are 32 bytes for each tile that was taken.
    """
    w = make(heads=32, kv_heads=32, seq_q=16384, seq_k=16384)
    uses = (KernelUse(kernel="flash_hopper_forward", block_m=192, block_n=128),)
    found = hopper_zeros(w, uses, H200)
    assert of(found) == [("flash_hopper_forward", 0, 32 * 128 * 128)]
    moved = hopper.hopper_ledger(w, uses)
    read = sum(one.traffic.read_bytes for one in moved)
    assert read + total(found) + 32 * (32 * 86) == 11_610_445_824


# By hand. A row is 2 d bytes, of a box 2 columns.


def test_forward_by_hand() -> None:
    # d 40 in boxes of 64 columns, N 200: 2 tiles of 192 rows are 384 rows of Q. Each loads 2 blocks of 128
    # rows of K and of V, of which 200 are there.
    uses = hopper.hopper_plan(make(head_dim=40), (9, 0))
    assert of(hopper_zeros(make(head_dim=40), uses, H200)) == [
        ("flash_hopper_forward", 24 * 2 * (200 + 2 * 2 * 200), (184 + 2 * 2 * 56) * 128)
    ]
    # The portable kernel has tiles of 64 x 128 here: 4 of them, and 256 rows of Q.
    w = make(head_dim=40, batch=3, heads=4, kv_heads=2)
    uses = (KernelUse(kernel="flash_forward", block_m=64, block_n=128),)
    assert of(flash_zeros(w, uses, H200)) == [
        ("flash_forward", 12 * 24 * 2 * (200 + 4 * 2 * 200), 12 * (56 + 4 * 2 * 56) * 128)
    ]


def test_backward_by_hand() -> None:
    # d 96 in boxes of 128 columns, causal: 2 blocks of 128 keys load 256 rows of K and V. They visit 4 and 2
    # blocks of 64 rows of Q and dO, of which 200 and 72 rows are there.
    w = make(head_dim=96, causal=True, pass_="bwd")
    uses = hopper.hopper_plan(w, (9, 0))
    inside, loaded = 2 * 200 + 2 * (200 + 72), 2 * 256 + 2 * 6 * 64
    assert of(hopper_zeros(w, uses, H200)) == [
        ("flash_hopper_dkdv", 32 * 2 * inside, (loaded - inside) * 256)
    ]
    # d 136 in three panels: 4 blocks of 64 keys, 4 + 3 + 2 + 1 of rows, of which 200, 136, 72 and 8 rows are.
    w = make(head_dim=136, causal=True, pass_="bwd")
    uses = hopper.hopper_plan(w, (9, 0))
    inside, loaded = 2 * 200 + 2 * (200 + 136 + 72 + 8), 2 * 256 + 2 * 10 * 64
    # dQ: 2 blocks of 128 rows load 256 of Q and dO, and 2 and 4 blocks of 64 keys, of which 128 and 200 are.
    keys, blocks = 2 * 200 + 2 * (128 + 200), 2 * 256 + 2 * 6 * 64
    assert of(hopper_zeros(w, uses, H200)) == [
        ("flash_hopper_dkdv_wide", 56 * 2 * inside, (loaded - inside) * 384),
        ("flash_hopper_dq", 56 * 2 * keys, (blocks - keys) * 384),
    ]
    # Portable, tiles of 64 x 64 and of 128 x 64: dQ's kernel has 2 tiles of queries, of 4 blocks of keys.
    w = make(head_dim=96, pass_="bwd")
    uses = tuple(
        KernelUse(kernel=k, block_m=m, block_n=64) for k, m in (("flash_dkdv", 64), ("flash_dq", 128))
    )
    assert of(flash_zeros(w, uses, H200)) == [
        ("flash_dkdv", 32 * 2 * (2 * 200 + 2 * 4 * 200), (2 * 56 + 2 * 4 * 56) * 256),
        ("flash_dq", 32 * 2 * (2 * 200 + 2 * 2 * 200), (2 * 56 + 2 * 2 * 56) * 256),
    ]


def test_none_where_all_boxes_are_full() -> None:
    w = make(seq_q=384, seq_k=384, head_dim=64, pass_="fwd-bwd")
    assert [one.counted for one in hopper_zeros(w, hopper.hopper_plan(w, (9, 0)), H200)] == [0, 0]
    assert [one.counted for one in flash_zeros(w, flash_plan(w, (9, 0)), H200)] == [0, 0, 0]
    # Parts of 64 and 32 columns forward, of 64 backward.
    for head_dim, pass_ in ((96, "fwd"), (192, "fwd"), (192, "bwd")):
        w = make(seq_q=384, seq_k=384, head_dim=head_dim, pass_=pass_)
        assert total(hopper_zeros(w, hopper.hopper_plan(w, (9, 0)), H200)) == 0


def test_who_loads_by_tma() -> None:
    """The portable kernels on compute capability 9 to 11 alone, whatever NVIDIA's tiles elsewhere."""
    w = make(head_dim=96, pass_="fwd-bwd")
    uses = flash_plan(w, (9, 0))
    for name, loads in (
        ("h200-141gb-sxm", 3),
        ("b200-180gb-sxm", 3),
        ("a100-80gb-sxm", 0),
        ("rtx-5090", 0),
        ("mi300x", 0),
    ):
        assert len(flash_zeros(w, uses, load(name))) == loads, name
    source = (KERNELS / "tile_io.py").read_text()
    assert '"cuda" and (9, 0) <= capability(tensors[0]) < (12, 0)' in source
    for name in ("standard", "flash1", "square"):
        row = ATTENTION.implementation(name)
        assert row is not None
        assert row.io is not None
        assert row.io.zeros is not None
        assert row.io.zeros(w, uses, H200) == ()
    for name in ("block-sparse", "flash-decode"):  # they do, and theirs are not modelled
        row = ATTENTION.implementation(name)
        assert row is not None
        assert row.io is not None
        assert row.io.zeros is None


# Every box of the kernels' loops.


class Box(NamedTuple):
    """Rows and columns from a first one on, of a tensor of `length` rows."""

    row: int
    rows: int
    column: int
    columns: int
    length: int


def outside(box: Box, head_dim: int) -> int:
    """Elements of a box that lie outside of its tensor."""
    rows = max(0, min(box.row + box.rows, box.length) - box.row)
    columns = max(0, min(box.column + box.columns, head_dim) - box.column)
    return box.rows * box.columns - rows * columns


def tiles_of(start: int, rows: int, length: int, parts: list[int]) -> Iterator[Box]:
    """A tile of `rows` rows in parts of so many columns, side by side."""
    for at, columns in enumerate(parts):
        yield Box(start, rows, sum(parts[:at]), columns, length)


def along_keys(w: AttentionWorkload, m: int, n: int, own: int, least: int, parts: list[int]) -> Iterator[Box]:
    """Of one head: `own` tensors of a block of queries, then K and V block by block."""
    for start in range(0, w.seq_q, m):
        for first in [*range(start, start + m, min(m, 64))] * own:
            yield from tiles_of(first, min(m, 64), w.seq_q, parts)
        end = max(0, min(start + m, w.seq_q) + w.seq_k - w.seq_q) if w.causal else w.seq_k
        for block in range(max(least, -(-end // n))):
            for _ in "KV":
                yield from tiles_of(block * n, n, w.seq_k, parts)


def along_queries(w: AttentionWorkload, m: int, n: int, heads: int, parts: list[int]) -> Iterator[Box]:
    """Of one program's `heads` query heads: K and V of a block of keys, then Q and dO block by block."""
    for start in range(0, w.seq_k, n):
        for _ in "KV":
            yield from tiles_of(start, n, w.seq_k, parts)
        first = max(start - (w.seq_k - w.seq_q), 0) // m if w.causal else 0
        for block in [*range(first, -(-w.seq_q // m))] * heads:
            for _ in ("Q", "dO"):
                yield from tiles_of(block * m, m, w.seq_q, parts)


def walked(w: AttentionWorkload, uses: Uses) -> list[tuple[str, int]]:
    """(kernel, bytes of zeros) of each kernel that loads by TMA."""
    power = [1 << (w.head_dim - 1).bit_length()]
    found = []
    for use in uses:
        m, n, heads = use.block_m, use.block_n, w.batch * w.heads
        boxes: Iterator[Box]
        if use.kernel == "flash_forward":
            boxes = along_keys(w, m, n, 1, 0, power)
        elif use.kernel == "flash_dq":
            boxes = along_keys(w, m, n, 2, 0, power)
        elif use.kernel == "flash_hopper_forward":
            boxes = along_keys(w, m, n, 1, 1, list(table.hopper_parts(w.head_dim)))
        elif use.kernel == "flash_hopper_dq":
            boxes = along_keys(w, m, n, 2, 0, [64] * -(-w.head_dim // 64))
        else:
            parts = {
                "flash_dkdv": power,
                "flash_hopper_dkdv": [max(64, *power)],
                "flash_hopper_dkdv_wide": [64] * -(-w.head_dim // 64),
            }[use.kernel]
            shares = 1 if use.kernel == "flash_dkdv" else shares_of(w)
            heads = w.batch * w.kv_heads * shares
            boxes = along_queries(w, m, n, w.heads // w.kv_heads // shares, parts)
        found.append((use.kernel, 2 * heads * sum(outside(box, w.head_dim) for box in boxes)))
    return found


@pytest.mark.parametrize("head_dim", [16, 40, 64, 72, 80, 96, 104, 128, 136, 192, 200, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_zeros_are_those_of_all_boxes(causal: bool, head_dim: int) -> None:
    for seq_q, seq_k in [(1, 1), (1, 777), (64, 64), (113, 203), (203, 113), (500, 17), (640, 1500)]:
        w = make(
            batch=2, heads=6, kv_heads=2, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim, causal=causal,
            pass_="fwd-bwd",
        )  # fmt: skip
        for zeros, uses in (
            (flash_zeros, flash_plan(w, (9, 0))),
            (hopper_zeros, hopper.hopper_plan(w, (9, 0))),
        ):
            found = [(one.kernel, one.counted) for one in zeros(w, uses, H200)]
            assert found == walked(w, uses)
            # A pass has those of its own kernels.
            passes = [make_pass(w, pass_) for pass_ in ("fwd", "bwd")]
            assert zeros(w, uses, H200) == sum((zeros(one, uses, H200) for one in passes), ())


def make_pass(w: AttentionWorkload, pass_: Any) -> AttentionWorkload:
    fields = {name: getattr(w, name) for name in w.__struct_fields__}
    return AttentionWorkload(**{**fields, "pass_": pass_})


def test_the_walk_has_the_boxes_of_the_source() -> None:
    """If one of these lines changes, the walk above and the model have to."""
    for name, lines in {
        "flash_hopper.py": (
            "start + w * 64,",
            "[batch, head, row, p * descs[0].block_type.shape[3]]",
        ),
        "flash_hopper_dkdv.py": (
            "row = start_n + w * 64",
            "[batch, head, row, 0], full, q_tiles.index(stage)",
        ),
        "flash_hopper_wide.py": ("load_panels(k_desc, where,", "load_panels(q_desc, (batch, head, row),"),
        "flash_hopper_dq.py": (
            "for w in gl.static_range(2):\n        place = (batch, head, tile * 128 + w * 64)",
            "place = (batch, kv_head, block * BLOCK_N)",
        ),
        "flash_hopper_panels.py": ("[batch, head, row, p * COLUMNS]",),
        "tile_io.py": ("[1, 1, rows, padded_width(row)]",),
    }.items():
        source = (KERNELS / name).read_text()
        for line in lines:
            assert line in source, (name, line)
