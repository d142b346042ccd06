"""The Gluon forward kernel compiled for Hopper, which is not here: registers, spills, what it loads with."""

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
from perfkit.kernels.attention import flash_hopper, hopper, tiles  # noqa: E402
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
