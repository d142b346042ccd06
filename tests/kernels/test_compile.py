"""The kernels compiled for GPUs that are not here: shared memory, spills, the matrix instructions meant."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from perfkit.kernels.attention import flash, flash1, flash1_backward, flash_backward, tiles  # noqa: E402
from perfkit.kernels.attention.tiles import Tile  # noqa: E402

KERNELS = {
    "forward": flash.flash_forward,
    "dkdv": flash_backward.flash_dkdv,
    "dq": flash_backward.flash_dq,
}
STACK_BYTES = 16  # a few bytes outside the loops are no spill worth a smaller tile
#: Entries that spill more and are still the fastest on an H200 (see `benchmarks/flash_tiles.py`).
SPILLING = {
    (90, "dkdv", 128, True): 128,
    (90, "dkdv", 256, False): 64,
    (90, "dkdv", 256, True): 160,
}

# Causal kernels hold both loops, with and without the mask. All entries for the GPU of our figures.
CASES = [
    *((90, kernel, head_dim, causal)
      for kernel in KERNELS for head_dim in (64, 128, 256) for causal in (False, True)),
    *((80, kernel, head_dim, True) for kernel in KERNELS for head_dim in (64, 128)),
    *((100, kernel, 128, True) for kernel in KERNELS),
]  # fmt: skip


def table_tile(kernel: str, head_dim: int, target: int, causal: bool) -> Tile:
    capability = (target // 10, target % 10)
    if kernel == "forward":
        return tiles.forward_tile(head_dim, capability, causal)
    return tiles.backward_tiles(head_dim, capability, causal)[kernel == "dq"]


def compiled(target: int, kernel: str, head_dim: int, causal: bool) -> Any:
    """The kernel as a launch on even sizes would compile it, with TMA where the wrappers choose it."""
    function, tile = KERNELS[kernel], table_tile(kernel, head_dim, target, causal)
    constants = {
        "CAUSAL": causal, "EVEN_N": True, "CHECK_ROWS": False, "DESCRIPTORS": 90 <= target < 120,
        "HEAD_DIM": head_dim, "WIDTH": head_dim, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
    }  # fmt: skip
    rows = {"q": tile.block_m, "dout": tile.block_m, "k": tile.block_n, "v": tile.block_n}
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in rows and constants["DESCRIPTORS"]:
            signature[name] = f"tensordesc<bf16[1,1,{rows[name]},{head_dim}]>"
            continue
        if name in (*rows, "out", "dk", "dv", "dq"):
            signature[name] = "*bf16"
        elif name in ("lse", "delta"):
            signature[name] = "*fp32"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
        if signature[name].startswith("*") or name.startswith(("stride", "seq")):
            attributes[(position,)] = [["tt.divisibility", 16]]
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def stack_bytes(kernel: Any, folder: Path) -> int:
    """Bytes of local memory per thread, where spilled registers go; by the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"no {tool.name} in this Triton")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    report = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    assert int(found[1]) > 32, "a stub, not a kernel"
    return int(found[2])


@pytest.mark.parametrize(("target", "kernel", "head_dim", "causal"), CASES)
def test_table_entry_compiles_for_its_target(
    target: int, kernel: str, head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = compiled(target, kernel, head_dim, causal)
    assert found.metadata.shared <= tiles.shared_limit((target // 10, target % 10))
    ptx = found.asm["ptx"]
    if target == 90:
        tile = table_tile(kernel, head_dim, target, causal)
        model = {
            "forward": tiles.forward_shared_bytes,
            "dkdv": tiles.dkdv_shared_bytes,
            "dq": tiles.dq_shared_bytes,
        }
        assert abs(found.metadata.shared - model[kernel](tile, head_dim)) <= 2048
        assert "wgmma.mma_async" in ptx
        assert "mma.sync" not in ptx
        assert "cp.async.bulk.tensor" in ptx
    elif target == 100:
        assert "tcgen05.mma" in ptx
    else:
        assert "mma.sync" in ptx
    allowed = SPILLING.get((target, kernel, head_dim, causal), STACK_BYTES)
    assert stack_bytes(found, tmp_path) <= allowed


FLASH1 = {"forward": flash1.flash1_forward, "backward": flash1_backward.flash1_backward}
FLASH1_CASES = [
    *((90, kernel, head_dim, causal)
      for kernel in FLASH1 for head_dim in (64, 128, 256) for causal in (False, True)),
    *((80, kernel, head_dim, True) for kernel in FLASH1 for head_dim in (64, 128, 256)),
    *((100, kernel, head_dim, True) for kernel in FLASH1 for head_dim in (64, 128)),
    *((86, kernel, 128, True) for kernel in FLASH1),
]  # fmt: skip


def compiled_flash1(target: int, kernel: str, head_dim: int, causal: bool) -> Any:
    """A FlashAttention-1 kernel as a launch on dense tensors compiles it: row strides are constants."""
    function = FLASH1[kernel]
    tile = tiles.flash1_tiles(head_dim, (target // 10, target % 10))[kernel == "backward"]
    constants: dict[str, Any] = {
        "CAUSAL": causal, "HEAD_DIM": head_dim, "WIDTH": head_dim,
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        **{name: head_dim for name in function.arg_names if re.fullmatch(r"stride_\w+n", name)},
    }  # fmt: skip
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in ("partial", "row_sum", "row_max"):
            signature[name] = "*fp32"
        elif name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv"):
            signature[name] = "*bf16"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
        if signature[name].startswith("*") or name.startswith(("stride", "seq")):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


@pytest.mark.parametrize(("target", "kernel", "head_dim", "causal"), FLASH1_CASES)
def test_flash1_compiles_for_its_target_without_traffic_that_it_has_not(
    target: int, kernel: str, head_dim: int, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No spills, all reads past L1, and no tensor that several warps read in copies."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = compiled_flash1(target, kernel, head_dim, causal)
    assert found.metadata.shared <= tiles.shared_limit((target // 10, target % 10))
    assert stack_bytes(found, tmp_path) <= STACK_BYTES
    loads = re.findall(r"ld\.global\S*", found.asm["ptx"])
    assert loads
    assert [load for load in loads if ".cg" not in load] == []
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.\w+.*)$", found.asm["ttgir"], re.MULTILINE))
    for kind, layout in re.findall(r"= tt\.load .*x!tt\.ptr<(\w+)>, ([^>]+)>", found.asm["ttgir"]):
        per_thread = re.search(r"sizePerThread = \[1, (\d+)\]", layouts.get(layout, layout))
        assert per_thread, layout  # a slice of another layout holds copies
        assert int(per_thread[1]) <= {"f32": 4, "bf16": 8}[kind], "gaps: sectors would be read twice"
