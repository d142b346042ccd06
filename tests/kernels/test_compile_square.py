"""The kernels of square tiles compiled for GPUs that are not here: no traffic that the algorithm has not."""

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

from perfkit.kernels.attention import square, tiles  # noqa: E402

KERNELS = {
    "scores": square.square_scores,
    "statistics": square.square_statistics,
    "output": square.square_output,
}
SHARED = {
    "scores": tiles.square_scores_shared_bytes,
    "statistics": tiles.square_statistics_shared_bytes,
    "output": tiles.square_output_shared_bytes,
}
#: (target, kernel, side, head dim, whether the lengths are multiples of 16).
CASES = [
    *((90, kernel, side, 256, True) for kernel in KERNELS for side in (16, 32, 64, 128)),
    *((90, kernel, 64, 48, False) for kernel in ("scores", "output")),
    *((80, kernel, side, 256, True) for kernel in KERNELS for side in (16, 64, 128)),
    *((80, kernel, 64, 48, False) for kernel in KERNELS),
]


def compiled(target: int, kernel: str, side: int, head_dim: int, even: bool) -> Any:
    """The kernel as a launch on dense tensors would compile it."""
    function, tile = KERNELS[kernel], tiles.square_tile(side)
    constants = {
        "HEAD_DIM": head_dim, "BLOCK_M": side, "BLOCK_N": side,
        "SLICE": tiles.square_slice(side, head_dim if kernel == "scores" else None),
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in ("row_sum", "row_max"):
            signature[name] = "*fp32"
        elif name in ("q", "k", "v", "out", "scores"):
            signature[name] = "*bf16"
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
        dense = signature[name].startswith("*") or name.startswith(("stride", "pitch"))
        if dense or (even and name.startswith("seq")):
            attributes[(position,)] = [["tt.divisibility", 16]]
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
    assert int(found[1]) > 16, "a stub, not a kernel"
    return int(found[2])


@pytest.mark.parametrize(("target", "kernel", "side", "head_dim", "even"), CASES)
def test_compiles_without_traffic_that_it_has_not(
    target: int,
    kernel: str,
    side: int,
    head_dim: int,
    even: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No spills, all reads past L1, and whole sectors: matrices are loaded 16 bytes at a time."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = compiled(target, kernel, side, head_dim, even)
    ptx = found.asm["ptx"]
    assert stack_bytes(found, tmp_path) == 0
    loads = re.findall(r"ld\.global\S*|cp\.async\.c[ag]\.shared\.global", ptx)
    assert loads
    assert [load for load in loads if ".cg" not in load] == []
    # Alone l and m, where their rows begin anywhere, may be loaded one by one.
    narrow = {load for load in loads if load.startswith("ld") and not load.endswith("v4.b32")}
    assert narrow <= ({"ld.global.cg.b32"} if kernel == "output" and not even else set())
    # The compiler may do with less than modelled, and takes a few bytes for barriers.
    need = SHARED[kernel](tiles.square_tile(side), head_dim)
    assert found.metadata.shared <= min(need + 1024, tiles.shared_limit((target // 10, target % 10)))
    if kernel != "statistics":
        assert ("wgmma.mma_async" in ptx) == (target == 90 and side >= 64)
        assert ("mma.sync" in ptx) == (target == 80 or side < 64)


@pytest.mark.parametrize("kernel", ["scores", "output"])
def test_the_smallest_tile_has_no_copies_of_its_products(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warp: 16 x 16 sums are two products of 16 x 8, a slice of 16 deep."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = compiled(80, kernel, 16, 256, True)
    assert re.search(r"warpsPerCTA = \[1, 1\]", found.asm["ttgir"])
    assert len(re.findall(r"mma\.sync\.aligned\.m16n8k16", found.asm["ptx"])) % 2 == 0
