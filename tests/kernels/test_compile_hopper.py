"""The Gluon kernels compiled for Hopper, which is not here: registers, spills, what it loads with."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
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
from perfkit.kernels.attention.tiles import HopperTile  # noqa: E402


class Taken(NamedTuple):
    """What a compiled kernel takes: registers a thread at launch, those of the warpgroups that compute after
    they were dealt out anew, bytes of local memory a thread at most, where spills go, and shared memory."""

    registers: int
    computing: int
    stack: int
    shared: int


#: (head dim, causal) -> what the table's tile takes; shared memory within the barriers' 512 bytes.
TAKEN = {
    (64, False): Taken(128, 160, 0, 114688),  # 65536 registers / 512 threads
    (64, True): Taken(128, 160, 128, 114688),  # spills 48 bytes with Triton 3.6, 104 with 3.8
    (128, False): Taken(168, 240, 0, 196608),  # 65536 / 384, in steps of 8
    (128, True): Taken(168, 240, 0, 196608),
}


def compiled(head_dim: int, tile: HopperTile, causal: bool) -> Any:
    """The kernel as a launch on bfloat16 tensors whose lengths are multiples of 16 and of block_n."""
    function = flash_hopper.flash_hopper_forward
    layout = gl.NVMMASharedLayout(128, 16, rank=4)
    rows = {"q": 64, "k": tile.block_n, "v": tile.block_n, "out": 64}
    constants = {
        "CAUSAL": causal, "EVEN_N": True, "PINGPONG": tile.pingpong, "SHARED_OUT": head_dim == 256,
        "WIDTH": head_dim, "BLOCK_N": tile.block_n, "STAGES": tile.stages, "GROUPS": tile.groups,
    }  # fmt: skip
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_desc"):
            block = f"1,1,{rows[name.removesuffix('_desc')]},{head_dim}"
            signature[name] = f"tensordesc<bf16[{block}],{layout!r}>"
        elif name == "lse":
            signature[name] = "*fp32"
        else:
            signature[name] = "fp32" if name == "scale_log2" else "i32"
        if name == "lse" or name.startswith("seq"):
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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_tile_of_the_table(
    head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile, taken = tiles.hopper_tile(head_dim, causal), TAKEN[head_dim, causal]
    found = compiled(head_dim, tile, causal)

    registers, stack = registers_and_stack(found, tmp_path)
    assert registers == taken.registers
    assert stack <= taken.stack
    modelled = tiles.hopper_shared_bytes(tile.held, head_dim)
    assert modelled == taken.shared
    assert modelled < found.metadata.shared <= min(modelled + 512, tiles.shared_limit((9, 0)))

    ptx = found.asm["ptx"]
    assert f".reqntid {32 * tile.held.num_warps}" in ptx
    # The producer gives registers up, and those that compute take them. 168 at most where all share them.
    dealt = set(map(int, re.findall(r"setmaxnreg\.\S+\s+(\d+);", ptx)))
    assert {24, taken.computing} <= dealt
    assert 128 * (tile.groups * taken.computing + 24) <= 65536

    # All is read by TMA, and O is written by it; LSE is all that threads write.
    assert re.search(r"cp\.async\.bulk\.tensor\.4d\.shared::\w+\.global\.mbarrier", ptx)
    assert "cp.async.bulk.tensor.4d.global.shared::cta" in ptx
    assert re.findall(r"ld\.global|cp\.async\.c[ag]|mma\.sync", ptx) == []
    assert set(re.findall(r"st\.global\S*", ptx)) == {"st.global.b32"}

    # wgmma is 16 deep. A warpgroup has Q K^T of its first block, the loop's (causal: a second loop's, masked)
    # Q K^T and P V, and P V of its last: each WIDTH / 16 or block_n / 16 of them.
    scores, values, loops = head_dim // 16, tile.block_n // 16, 2 if causal else 1
    expected = tile.groups * (1 + loops) * (scores + values)
    assert len(re.findall(r"wgmma\.mma_async", ptx)) == expected


def test_turns_take_a_barrier_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ping-pong compiles too, with as many matrix instructions and no more registers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = tiles.hopper_tile(128, False)._replace(pingpong=True)
    found = compiled(128, tile, False)
    assert registers_and_stack(found, tmp_path) == (168, 0)
    assert len(re.findall(r"wgmma\.mma_async", found.asm["ptx"])) == 2 * 2 * (8 + 8)


# The backward kernels.

#: (head dim, causal) -> bytes a thread that ptxas may spill (store), with atomic additions and without: the
#: larger of what it does with Triton 3.6 and 3.8, which are 116 and 112, 200 and 208, 4 and 0, 56 and 48; and
#: without 0 and 0, 28 and 32, 0 and 0, 8 and 0.
SPILLED = {(64, False): (116, 0), (64, True): (208, 32), (128, False): (4, 0), (128, True): (56, 8)}


def compiled_backward(name: str, head_dim: int, causal: bool, fused: bool) -> Any:
    """`flash_hopper_dkdv` or `flash_hopper_dq` as a launch on bfloat16 tensors of whole blocks."""
    function = getattr(flash_hopper_backward, name)
    tile = tiles.hopper_backward_tile(head_dim, not fused)
    numbers = {"lse_desc": tile.block_m, "delta_desc": tile.block_m}
    constants = {"CAUSAL": causal, "EVEN_N": True, "WIDTH": head_dim}
    rows = dict.fromkeys(("q_desc", "g_desc", "k_desc", "v_desc", "dk_desc", "dv_desc", "dq_desc"), 64)
    if name == "flash_hopper_dkdv":
        constants |= {"FUSED": fused, "EARLY": tile.early, "BLOCK_M": tile.block_m, "STAGES": tile.stages}
        rows |= {"q_desc": tile.block_m, "g_desc": tile.block_m}
    else:
        constants |= {"BLOCK_N": tile.block_n, "STAGES": tile.stages_n}
        rows |= {"k_desc": tile.block_n, "v_desc": tile.block_n}
    layout, flat = gl.NVMMASharedLayout(128, 16, rank=4), gl.NVMMASharedLayout(0, 32, rank=1)
    signature, attributes = {}, {}
    for position, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in numbers:
            signature[argument] = f"tensordesc<fp32[{numbers[argument]}],{flat!r}>"
        elif argument in rows:
            signature[argument] = f"tensordesc<bf16[1,1,{rows[argument]},{head_dim}],{layout!r}>"
        elif argument in ("dq_sum", "log_sums", "delta"):
            signature[argument] = "*fp32"
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "fp32" if argument.startswith("scale") else "i32"
    source = gluon_runtime.GluonASTSource(function, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def assembled(kernel: Any, folder: Path) -> str:
    """What Triton's ptxas reports of the kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not tool.exists():
        pytest.skip(f"no {tool.name} in this Triton")
    text = folder / "kernel.ptx"
    text.write_text(kernel.asm["ptx"])
    command = [tool, "-v", "-arch=sm_90a", text, "-o", folder / "out.cubin"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("name", "fused"),
    [("flash_hopper_dkdv", True), ("flash_hopper_dkdv", False), ("flash_hopper_dq", False)],
)
def test_the_backward(
    name: str, fused: bool, head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = compiled_backward(name, head_dim, causal, fused)
    report = assembled(found, tmp_path)
    (spilled,) = map(int, re.findall(r"(\d+) bytes spill stores", report))
    assert spilled <= SPILLED[head_dim, causal][0 if fused else 1]
    # Products that wait for one another, because a register of theirs is touched in between, are reported.
    assert "serializ" not in report

    tile = tiles.hopper_backward_tile(head_dim, not fused)
    if name == "flash_hopper_dkdv":
        modelled = tiles.hopper_dkdv_shared_bytes(tile.held, head_dim, fused)
    else:  # Q and dO 128 rows each, two stages of K and of V: 2 B an element
        modelled = 2 * head_dim * (2 * 128 + 2 * tile.stages_n * tile.block_n)
    assert modelled <= found.metadata.shared <= min(modelled + 1024, tiles.shared_limit((9, 0)))

    ptx = found.asm["ptx"]
    assert ".reqntid 384" in ptx
    assert {24, 240} <= set(map(int, re.findall(r"setmaxnreg\.\S+\s+(\d+);", ptx)))
    assert "wgmma.mma_async" in ptx
    assert "mma.sync" not in ptx
    # Four numbers at once, for all of dQ: 32 a thread of each warpgroup, in one loop or (causal) two.
    added = re.findall(r"red\.\S*v4\.f32|atom\.\S*v4\.f32", ptx)
    assert len(added) == (2 * 8 * (2 if causal else 1) if fused else 0)


def test_shared_memory_of_the_backward_by_hand() -> None:
    # d 40: K and V 128 x 64; two stages of Q and dO 128 x 64, LSE and D; dS 128 x 128.
    tile = tiles.hopper_backward_tile(40)
    assert tiles.hopper_dkdv_shared_bytes(tile.held, 40) == 32768 + 2 * (32768 + 1024) + 32768
    # d 128: 64 rows; dS 64 x 128.
    held = tiles.hopper_backward_tile(128).held
    assert tiles.hopper_dkdv_shared_bytes(held, 128) == 65536 + 2 * (32768 + 512) + 16384
    assert tiles.hopper_dkdv_shared_bytes(held, 128, fused=False) == 65536 + 2 * (32768 + 512)
    with pytest.raises(ValueError, match="head dim 136: it must be 128 or smaller"):
        tiles.hopper_backward_tile(136)


# What is refused before anything is compiled.


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 64, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^flash_hopper needs a GPU of compute capability 9\.0, got cpu$"):
        hopper.attention(q, q, q)
    for found in ((8, 0), (10, 0), (12, 0)):
        monkeypatch.setattr(flash_hopper, "capability", lambda _, found=found: found)
        tensor: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"))
        with pytest.raises(ValueError, match=rf"9\.0 \(wgmma\), got {found[0]}\.{found[1]}$"):
            flash_hopper._check_hopper(tensor)


def test_layouts_that_tma_cannot_address_are_refused() -> None:
    rows = torch.randn(1, 2, 64, 68, dtype=torch.float16)
    for wrong in (rows[..., :64], rows.mT, torch.randn(1, 1, 64, 64).half().expand(1, 2, -1, -1)):
        with pytest.raises(ValueError, match="16-byte aligned bases and strides, none 0"):
            flash_hopper._check_layouts(wrong)
    flash_hopper._check_layouts(torch.randn(1, 64, 2, 64).half().transpose(1, 2))


def test_a_triton_without_gluon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(package, "flash_hopper", raising=False)
    monkeypatch.setitem(sys.modules, "perfkit.kernels.attention.flash_hopper", None)
    q = torch.randn(1, 1, 64, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^flash_hopper needs Gluon, of Triton 3\.6 or newer, got 3\."):
        hopper.attention(q, q, q)
