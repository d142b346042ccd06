"""The Gluon kernels compiled for Hopper, which is not here: registers, spills, what it loads with."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton")
torch = pytest.importorskip("torch")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

gluon_runtime = pytest.importorskip("triton.experimental.gluon._runtime")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402

from perfkit.kernels import attention as package  # noqa: E402
from perfkit.kernels.attention import flash_hopper, flash_hopper_backward, hopper, tiles  # noqa: E402
from perfkit.kernels.attention.tiles import HopperBackwardTile, HopperTile  # noqa: E402


class Taken(NamedTuple):
    """What a compiled kernel takes: registers a thread at launch, those of the warpgroups that compute after
    they were dealt out anew, bytes of local memory a thread at most, where spills go, and shared memory."""

    registers: int
    computing: int
    stack: int
    shared: int


#: (head dim, causal) -> what the table's tile takes; shared memory within 1 KiB, for barriers.
TAKEN = {
    (64, False): Taken(128, 160, 0, 139264),  # 65536 registers / 512 threads
    (64, True): Taken(128, 160, 0, 172032),
    (96, False): Taken(168, 240, 0, 172032),  # 65536 / 384, in steps of 8; 3/4 of what 128 takes
    (96, True): Taken(168, 240, 0, 172032),
    (128, False): Taken(168, 240, 0, 229376),
    (128, True): Taken(168, 240, 0, 229376),
    (192, False): Taken(168, 240, 0, 229376),  # two of Q, two stages of 64 keys, O of 128 columns at a time
    (192, True): Taken(168, 240, 0, 229376),
    (256, False): Taken(168, 240, 0, 196608),  # Q, whose memory is that of O, and two stages
    (256, True): Taken(168, 240, 0, 196608),
}


def compiled(head_dim: int, tile: HopperTile, causal: bool, steep: bool = False, even: bool = True) -> Any:
    """The kernel as a launch on bfloat16 tensors whose lengths are multiples of 16, if `even` of block_n."""
    function = flash_hopper.flash_hopper_forward
    rows = {"q": 64, "k": tile.block_n, "v": tile.block_n, "out": 64}
    first, *second = tiles.hopper_parts(head_dim)
    blocks = {f"{name}_desc": (rows[name], first) for name in rows}
    blocks |= {f"{name}_tail": (rows[name], width) for width in second for name in rows}
    constants = {
        "CAUSAL": causal, "EVEN_N": even, "STEEP": steep, "PERSISTENT": tile.persistent,
        "OUT_COLUMNS": tiles.hopper_out_columns(head_dim, tile.persistent), "STAGES": tile.stages,
        "Q_STAGES": tile.q_stages, "GROUPS": tile.groups,
        **({} if second else {f"{name}_tail": None for name in rows}),
    }  # fmt: skip
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in blocks:
            # A row of 32 columns is 64 bytes, which is then what its swizzle takes; of more, 128.
            layout = gl.NVMMASharedLayout(64 if blocks[name][1] == 32 else 128, 16, rank=4)
            signature[name] = "tensordesc<bf16[1,1,{},{}],{!r}>".format(*blocks[name], layout)
        elif name in ("lse", "counter"):
            signature[name] = "*fp32" if name == "lse" else "*i32"
        else:
            signature[name] = "fp32" if name == "scale_log2" else "i32"
        if name in ("lse", "counter") or name.startswith("seq"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = gluon_runtime.GluonASTSource(function, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def registers_and_stack(kernel: Any, folder: Path) -> tuple[int, int]:
    """Registers a thread, and bytes of local memory a thread, by the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"no {tool.name} in this Triton")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    report = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1]), int(found[2])


def forward_products(head_dim: int, tile: HopperTile, scores: int, values: int) -> int:
    """Matrix instructions for `scores` times Q K^T and `values` times P V in the code of each warpgroup.

    One is 16 deep: Q K^T takes width / 16, of all parts together, and P V block_n / 16 for each part.
    """
    depth, parts = tiles.hopper_width(head_dim) // 16, len(tiles.hopper_parts(head_dim))
    return tile.groups * (scores * depth + values * parts * tile.block_n // 16)


def awaited(ptx: str) -> set[int]:
    """The numbers of bytes that barriers wait for."""
    return set(map(int, re.findall(r"expect_tx\S+ _, \[%\w+\], (\d+);", ptx)))


def assert_forward_bytes(ptx: str, head_dim: int, tile: HopperTile) -> None:
    """Barriers wait for whole tiles, all parts of them: Q of all warpgroups, K alone or V alone, K with V."""
    row = 2 * tiles.hopper_width(head_dim)
    expected = {64 * tile.groups * row, tile.block_n * row, 2 * tile.block_n * row}
    assert awaited(ptx) == expected


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_the_tile_of_the_table(
    head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile, taken = tiles.hopper_tile(head_dim, causal), TAKEN[head_dim, causal]
    found = compiled(head_dim, tile, causal)

    registers, stack = registers_and_stack(found, tmp_path)
    assert registers == taken.registers
    assert stack <= taken.stack
    modelled = tiles.hopper_shared_bytes(tile.held, head_dim, tile.q_stages)
    assert modelled == taken.shared
    assert modelled < found.metadata.shared <= min(modelled + 1024, tiles.shared_limit((9, 0)))

    ptx = found.asm["ptx"]
    assert f".reqntid {32 * tile.held.num_warps}" in ptx
    # The producer gives registers up, and those that compute take them. 168 at most where all share them.
    dealt = set(map(int, re.findall(r"setmaxnreg\.\S+\s+(\d+);", ptx)))
    assert {24, taken.computing} <= dealt
    assert 128 * (tile.groups * taken.computing + 24) <= 65536
    assert_forward_bytes(ptx, head_dim, tile)

    # All is read by TMA, and O is written by it; LSE is all that threads write.
    assert re.search(r"cp\.async\.bulk\.tensor\.4d\.shared::\w+\.global\.mbarrier", ptx)
    assert "cp.async.bulk.tensor.4d.global.shared::cta" in ptx
    assert re.findall(r"ld\.global|cp\.async\.c[ag]|mma\.sync", ptx) == []
    assert set(re.findall(r"st\.global\S*", ptx)) == {"st.global.b32"}

    # Which tile is next comes from a counter.
    assert len(re.findall(r"atom\.global\S*add", ptx)) == (1 if tile.persistent else 0)
    # A warpgroup has Q K^T of its first block, Q K^T and P V in the loop, and P V of its last block, beside
    # which the Q K^T of the next tile's first is, if there may be a next tile.
    scores = 3 if tile.persistent else 2
    assert len(re.findall(r"wgmma\.mma_async", ptx)) == forward_products(head_dim, tile, scores, 2)


#: Head dim -> bytes a thread that ptxas may spill (store) in the causal kernel where the diagonal crosses
#: blocks anyhow: the larger of what it does with Triton 3.6 and 3.8, of persistent programs and of others.
STEEP = {64: 112, 96: 12, 192: 20}


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_steep_and_uneven(head_dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths that no tile divides: N_k - N_q no multiple of 64, and N_k none of block_n."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    steep = compiled(head_dim, tiles.hopper_tile(head_dim, True), True, steep=True)
    assert spilled(steep, tmp_path) <= STEEP.get(head_dim, 0)
    uneven = compiled(head_dim, tiles.hopper_tile(head_dim, False), False, even=False)
    assert spilled(uneven, tmp_path) == 0


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_one_tile_a_program(head_dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not persistent it has no counter and no product of a next tile; steep, a loop of masked blocks."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = tiles.hopper_tile(head_dim, True)._replace(persistent=False, q_stages=1)
    for steep in (False, True):
        found = compiled(head_dim, tile, True, steep)
        assert "atom.global" not in found.asm["ptx"]
        # Q K^T of the first block, each loop's two, P V of the last block.
        expected = forward_products(head_dim, tile, 3 if steep else 2, 3 if steep else 2)
        assert len(re.findall(r"wgmma\.mma_async", found.asm["ptx"])) == expected
        assert spilled(found, tmp_path) <= (STEEP.get(head_dim, 0) if steep else 0)
        modelled = tiles.hopper_shared_bytes(tile.held, head_dim, tile.q_stages, tile.persistent)
        assert modelled < found.metadata.shared <= modelled + 1024


@pytest.mark.parametrize(
    ("head_dim", "tile", "shared"),
    [
        # 2 B an element: two of Q and O 128 x 96, three stages of K and of V 128 x 96.
        (96, HopperTile(2, 128, 3, 2, persistent=True), 2 * 96 * (3 * 128 + 6 * 128)),
        # Q 128 x 192, three stages of K and of V 64 x 192; O 128 x 128, of which 64 columns take a half.
        (192, HopperTile(2, 64, 3, 1, persistent=True), 2 * 192 * (128 + 6 * 64) + 2 * 128 * 128),
        (192, HopperTile(2, 64, 2, 2, persistent=True), 2 * 192 * (256 + 4 * 64) + 2 * 128 * 128),
    ],
    ids=str,
)
def test_persistent_tiles_of_two_parts(
    head_dim: int, tile: HopperTile, shared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are timed beside the table's."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = compiled(head_dim, tile, True)
    assert registers_and_stack(found, tmp_path) == (168, 0)
    assert tiles.hopper_shared_bytes(tile.held, head_dim, tile.q_stages, tile.persistent) == shared
    assert shared < found.metadata.shared <= min(shared + 1024, tiles.shared_limit((9, 0)))
    ptx = found.asm["ptx"]
    assert_forward_bytes(ptx, head_dim, tile)
    assert len(re.findall(r"wgmma\.mma_async", ptx)) == forward_products(head_dim, tile, 3, 2)
    # Each warpgroup writes O in two parts.
    assert ptx.count("cp.async.bulk.tensor.4d.global.shared::cta") == 2 * tile.groups


def test_parts_of_a_tile() -> None:
    widths = {16: 64, 64: 64, 72: 96, 96: 96, 104: 128, 128: 128, 136: 192, 192: 192, 200: 256, 256: 256}
    assert {head_dim: tiles.hopper_width(head_dim) for head_dim in widths} == widths
    assert [tiles.hopper_parts(width) for width in (64, 96, 128, 192, 256)] == [
        (64,), (64, 32), (128,), (128, 64), (256,)
    ]  # fmt: skip
    for head_dim in range(8, 257, 8):
        first, *second = tiles.hopper_parts(head_dim)
        assert second in ([], [first // 2])  # which the kernel builds on
        assert first < head_dim or not second  # no part holds padding alone
    for function in (tiles.hopper_parts, tiles.hopper_width):
        with pytest.raises(ValueError, match="head dim 264: it must be 256 or smaller"):
            function(264)


def test_where_o_goes_out() -> None:
    for persistent in (False, True):
        found = [tiles.hopper_out_columns(d, persistent) for d in (40, 96, 128, 192, 256)]
        assert found == [64, 96, 128, *((128, 256) if persistent else (0, 0))]
    # What the model takes from the table is alike with a mask and without.
    for full, causal in tiles._HOPPER.values():
        assert (full.q_stages, full.persistent) == (causal.q_stages, causal.persistent)
    # 256 columns of O, Q and two stages of 64 keys: 64 + 64 + 2 * 2 * 32 KiB, which no thread block may use.
    assert tiles.hopper_shared_bytes(tiles.Tile(128, 64, 12, 2), 256, 1, True) == 256 * 1024
    assert tiles.shared_limit((9, 0)) < 256 * 1024


# The backward kernels.

#: (head dim, causal) -> bytes a thread that ptxas may spill (store) in the dK/dV kernel, once a program, with
#: atomic additions and without: the larger of what it does with Triton 3.6 and 3.8. All others spill nothing.
SPILLED = {(128, False): (4, 0), (128, True): (4, 0)}

#: (head dim, causal) -> a tile that is timed beside that of the table, and the same of it.
BESIDE = {
    (64, False): (HopperBackwardTile(64, 4, 128, 2, apart=True), 8),
    (64, True): (HopperBackwardTile(64, 4, 128, 2, apart=True), 8),
    (128, False): (HopperBackwardTile(64, 2, 128, 2, ahead=True), 4),
    (128, True): (HopperBackwardTile(64, 2, 128, 2), 4),
}


def compiled_backward(name: str, head_dim: int, causal: bool, fused: bool, tile: HopperBackwardTile) -> Any:
    """`flash_hopper_dkdv`, `_dkdv_wide` or `_dq` as a launch on bfloat16 tensors of whole blocks."""
    function = getattr(flash_hopper_backward, name)
    numbers = {"lse_desc": tile.block_m, "delta_desc": tile.block_m}
    columns = 64 if tile.wide else head_dim
    constants = {"CAUSAL": causal, "EVEN_N": True}
    rows = dict.fromkeys(("q_desc", "g_desc", "k_desc", "v_desc", "dk_desc", "dv_desc", "dq_desc"), 64)
    if name == "flash_hopper_dq":
        constants |= {"COLUMNS": columns, "PANELS": head_dim // columns}
        constants |= {"BLOCK_N": tile.block_n, "STAGES": tile.stages_n}
        rows |= {"k_desc": tile.block_n, "v_desc": tile.block_n}
    elif tile.wide:
        constants |= {"PANELS": head_dim // columns, "STAGES": tile.stages}
    else:
        constants |= {
            "DQ": "none" if not fused else "apart" if tile.apart else "shared", "AHEAD": tile.ahead,
            "WIDTH": head_dim, "BLOCK_M": tile.block_m, "STAGES": tile.stages,
        }  # fmt: skip
        rows |= {"q_desc": tile.block_m, "g_desc": tile.block_m}
    layout, flat = gl.NVMMASharedLayout(128, 16, rank=4), gl.NVMMASharedLayout(0, 32, rank=1)
    signature, attributes = {}, {}
    for position, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in numbers:
            signature[argument] = f"tensordesc<fp32[{numbers[argument]}],{flat!r}>"
        elif argument in rows:
            signature[argument] = f"tensordesc<bf16[1,1,{rows[argument]},{columns}],{layout!r}>"
        elif argument in ("dq_sum", "log_sums", "delta"):
            signature[argument] = "*fp32"
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "fp32" if argument.startswith("scale") else "i32"
    source = gluon_runtime.GluonASTSource(function, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def spilled(kernel: Any, folder: Path) -> int:
    """Bytes a thread that Triton's ptxas spills (store). It may serialise no product."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not tool.exists():
        pytest.skip(f"no {tool.name} in this Triton")
    text = folder / "kernel.ptx"
    text.write_text(kernel.asm["ptx"])
    command = [tool, "-v", "-arch=sm_90a", text, "-o", folder / "out.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    # Products that wait for one another, because a register of theirs is touched in between, are reported.
    assert "serializ" not in report
    (found,) = map(int, re.findall(r"(\d+) bytes spill stores", report))
    return found


def assert_dealt(ptx: str, *shares: int) -> None:
    """Warpgroups have these registers a thread, and together no more than there are."""
    assert f".reqntid {128 * len(shares)}" in ptx
    assert set(shares) <= set(map(int, re.findall(r"setmaxnreg\.\S+\s+(\d+);", ptx)))
    assert 128 * sum(shares) <= 65536


def products(ptx: str) -> int:
    """Matrix instructions, each of 64 rows and 16 deep, which must all be those of warpgroups."""
    assert "mma.sync" not in ptx
    return len(re.findall(r"wgmma\.mma_async", ptx))


def additions(ptx: str) -> int:
    """Instructions that add four numbers to dQ's sum: eight for 64 x 64 of a warpgroup."""
    return len(re.findall(r"red\.\S*v4\.f32|atom\.\S*v4\.f32", ptx))


def check_dkdv(
    found: Any, tile: HopperBackwardTile, head_dim: int, causal: bool, fused: bool, allowed: int, folder: Path
) -> None:
    assert spilled(found, folder) <= allowed
    modelled = tiles.hopper_dkdv_shared_bytes(tile.held, head_dim, fused)
    assert modelled <= found.metadata.shared <= min(modelled + 1024, tiles.shared_limit((9, 0)))
    ptx = found.asm["ptx"]
    # Two warpgroups compute dK and dV, one perhaps dQ, and one loads.
    assert_dealt(ptx, *((208, 208, 72, 24) if tile.apart else (240, 240, 24)))

    # K and V of 128 keys together; Q and dO of block_m rows with LSE and D, of 4 B each.
    kept, row = 2 * 128 * 2 * head_dim, 2 * 2 * head_dim + 2 * 4
    assert awaited(ptx) == {kept, tile.block_m * row}
    # S and dP are head_dim deep, dV and dK block_m, dQ of 64 rows the 128 keys. One loop, or two if causal;
    # one for dQ apart. Where the second warpgroup passes over a block, it has the 64 keys of the first.
    loops = 2 if causal else 1
    expected = loops * 2 * (2 * head_dim // 16 + 2 * tile.block_m // 16)
    added = 0
    if fused and tile.apart:
        expected, added = expected + 128 // 16, 8
    elif fused:
        expected, added = expected + loops * 2 * 128 // 16, loops * 2 * 8
        if causal:
            expected, added = expected + 64 // 16, added + 8
    assert products(ptx) == expected
    assert additions(ptx) == added


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("fused", [True, False])
def test_dk_and_dv(
    fused: bool, head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = tiles.hopper_backward_tile(head_dim, causal, not fused)
    found = compiled_backward("flash_hopper_dkdv", head_dim, causal, fused, tile)
    check_dkdv(
        found,
        tile,
        head_dim,
        causal,
        fused,
        SPILLED.get((head_dim, causal), (0, 0))[0 if fused else 1],
        tmp_path,
    )


@pytest.mark.parametrize(("head_dim", "causal"), BESIDE)
def test_dk_and_dv_of_other_tiles(
    head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile, allowed = BESIDE[head_dim, causal]
    assert tile != tiles.hopper_backward_tile(head_dim, causal)
    found = compiled_backward("flash_hopper_dkdv", head_dim, causal, True, tile)
    check_dkdv(found, tile, head_dim, causal, True, allowed, tmp_path)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [192, 256])
def test_dk_and_dv_of_wide_heads(
    head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = tiles.hopper_backward_tile(head_dim, causal)
    found = compiled_backward(tile.kernel, head_dim, causal, False, tile)
    assert spilled(found, tmp_path) == 0
    modelled = tiles.hopper_dkdv_shared_bytes(tile.held, head_dim)
    assert modelled <= found.metadata.shared <= min(modelled + 1024, tiles.shared_limit((9, 0)))
    ptx = found.asm["ptx"]
    assert_dealt(ptx, 240, 240, 24)
    # K and V of 64 keys together; Q and dO of 64 rows with LSE and D, of 4 B each.
    assert awaited(ptx) == {2 * 64 * 2 * head_dim, 2 * 64 * 2 * head_dim + 2 * 64 * 4}
    # S and dV of one warpgroup, dP and dK of the other: head_dim deep, and 64 deep for each 64 columns.
    assert products(ptx) == (2 if causal else 1) * 2 * (head_dim // 16 + head_dim // 64 * 64 // 16)
    assert additions(ptx) == 0


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
def test_dq(head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = tiles.hopper_backward_tile(head_dim, causal, deterministic=True)
    found = compiled_backward("flash_hopper_dq", head_dim, causal, False, tile)
    assert spilled(found, tmp_path) == 0
    modelled = tiles.hopper_dq_shared_bytes(tile.held_dq, head_dim)
    assert modelled <= found.metadata.shared <= min(modelled + 1024, tiles.shared_limit((9, 0)))
    ptx = found.asm["ptx"]
    assert_dealt(ptx, 240, 240, 24)
    # Q and dO of 128 rows together; K alone and V alone. 2 B an element.
    assert awaited(ptx) == {2 * 128 * 2 * head_dim, tile.block_n * 2 * head_dim}
    # S and dP are head_dim deep, dQ block_n, in panels of 64 columns above 128; two warpgroups.
    panels = head_dim // 64 if head_dim > 128 else 1
    assert products(ptx) == (2 if causal else 1) * 2 * (2 * head_dim // 16 + panels * tile.block_n // 16)
    assert additions(ptx) == 0


def test_tiles_that_cannot_be_are_refused() -> None:
    check = flash_hopper_backward._check_tile
    for head_dim in (64, 128):
        for causal in (False, True):
            check(tiles.hopper_backward_tile(head_dim, causal), head_dim, False)
        check(tiles.hopper_backward_tile(head_dim, False, deterministic=True), head_dim, True)
    wide = tiles.hopper_backward_tile(192, False)
    for deterministic in (False, True):
        check(wide, 192, deterministic)
    apart, shared = (HopperBackwardTile(64, 2, 128, 2, apart=one) for one in (True, False))
    for wrong, width, deterministic, reason in (
        (apart, 64, True, "only a call that is not deterministic has dQ apart or a block ahead"),
        (shared._replace(ahead=True), 128, True, "only a call that is not deterministic"),
        (apart, 128, False, "dQ is added 64 rows at a time, apart up to 64 columns and not above"),
        (shared, 64, False, "apart up to 64 columns and not above"),
        (shared._replace(block_m=128), 128, False, "dQ is added 64 rows at a time"),
        (apart._replace(ahead=True), 64, False, "a block ahead takes two stages, and dQ not apart"),
        (shared._replace(ahead=True, stages=1), 128, False, "a block ahead takes two stages"),
        (shared, 192, False, "above 128 columns, and only there, a tile is wide, of 64 rows"),
        (wide, 128, True, "above 128 columns, and only there, a tile is wide"),
        (wide._replace(block_m=128), 256, False, "a tile is wide, of 64 rows"),
        (wide._replace(ahead=True), 256, False, "a block ahead takes two stages, and dQ not apart"),
    ):
        with pytest.raises(ValueError, match=reason):
            check(wrong, width, deterministic)


def test_gradients_that_tma_cannot_address_are_copied() -> None:
    """A sum's has strides of 0; a transposed one's last is not 1; a slice's base may be anywhere."""
    dense = torch.randn(2, 3, 16, 64, dtype=torch.bfloat16)
    rows_first = dense.transpose(1, 2)
    for kept in (dense, rows_first, dense[:, :, 1::2]):
        assert flash_hopper_backward._addressable(kept) is kept
    off = torch.randn(dense.numel() + 1, dtype=torch.bfloat16)[1:].view(dense.shape)
    assert off.is_contiguous()
    wide = torch.randn(2, 3, 16, 68, dtype=torch.bfloat16)[..., :64]  # rows of 136 bytes
    one = torch.ones((), dtype=torch.bfloat16)
    for strided in (one.expand(2, 3, 16, 64), dense[:1].expand(2, -1, -1, -1), dense.mT, off, wide):
        copy = flash_hopper_backward._addressable(strided)
        assert torch.equal(copy, strided)
        assert copy.stride() == torch.empty(strided.shape).stride()
        assert copy.data_ptr() % 16 == 0


def test_shared_memory_of_the_backward_by_hand() -> None:
    # d 40: K and V 128 x 64; three stages of Q and dO 64 x 64, LSE and D; dS 64 x 128, twice.
    held = tiles.hopper_backward_tile(40, True).held
    assert held == (64, 128, 16, 3)
    assert tiles.hopper_dkdv_shared_bytes(held, 40) == 32768 + 3 * (16384 + 512) + 2 * 16384
    # Deterministic: two stages of 128 rows, and no dS.
    held = tiles.hopper_backward_tile(40, True, deterministic=True).held
    assert tiles.hopper_dkdv_shared_bytes(held, 40, fused=False) == 32768 + 2 * (32768 + 1024)
    # d 128: two stages of 64 rows; dS 64 x 128.
    held = tiles.hopper_backward_tile(128, False).held
    assert held == (64, 128, 12, 2)
    assert tiles.hopper_dkdv_shared_bytes(held, 128) == 65536 + 2 * (32768 + 512) + 16384
    assert tiles.hopper_dkdv_shared_bytes(held, 128, fused=False) == 65536 + 2 * (32768 + 512)
    # d 136, three panels: K and V 64 x 192; two stages; P in 32 bit. Then dQ: Q and dO 128 x 192, two stages.
    tile = tiles.hopper_backward_tile(136, False)
    assert tile.held == (64, 64, 12, 2)
    assert tiles.hopper_dkdv_shared_bytes(tile.held, 136) == 49152 + 2 * (49152 + 512) + 16384
    assert tile.held_dq == (128, 64, 12, 2)
    assert tiles.hopper_dq_shared_bytes(tile.held_dq, 136) == 2 * 49152 + 2 * 2 * 24576
    # d 256: two stages of K and one of V.
    assert tiles.hopper_dq_shared_bytes(tile.held_dq, 256) == 2 * 65536 + 3 * 32768
    with pytest.raises(ValueError, match="head dim 264: it must be 256 or smaller"):
        tiles.hopper_backward_tile(264, False)


# What is refused before anything is compiled.


def test_a_call_on_the_cpu_is_refused() -> None:
    """What else `hopper.refusal` finds is in test_picked.py."""
    q = torch.randn(1, 1, 64, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^flash_hopper needs a GPU of compute capability 9\.0, got cpu$"):
        hopper.attention(q, q, q)


def test_a_triton_without_gluon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(package, "flash_hopper", raising=False)
    monkeypatch.setitem(sys.modules, "perfkit.kernels.attention.flash_hopper", None)
    monkeypatch.setattr(hopper, "_without_gluon", hopper._without_gluon.__wrapped__)  # not what it remembers
    q = torch.randn(1, 1, 64, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^flash_hopper needs Gluon, of Triton 3\.6 or newer, got 3\."):
        hopper.attention(q, q, q)
