"""The decode kernels compiled for GPUs that are not here: no spills, two thread blocks a multiprocessor."""

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

from perfkit.kernels.attention import decode, tiles  # noqa: E402

#: Shared memory of a multiprocessor in KiB; CUDA programming guide, specifications per compute capability.
SHARED_KIB = {80: 164, 90: 228, 100: 228}
#: (query rows of a K/V head, head dim, whether a causal mask and a partial block, shares or one).
SHAPES = [
    (4, 128, False, True),
    (4, 128, True, False),
    (1, 64, True, True),
    (8, 256, True, True),
    (32, 128, True, True),
    (64, 128, True, True),
    (64, 256, True, True),
    (5, 80, True, True),
]


def compiled(function: Any, target: int, constants: dict[str, Any], rows: int, tile: tiles.Tile) -> Any:
    """The kernel as a launch on dense tensors would compile it; `rows` are those of a descriptor."""
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in ("k", "v") and constants["DESCRIPTORS"]:
            signature[name] = f"tensordesc<bf16[1,1,{rows},{constants['WIDTH']}]>"
            continue
        if name in ("partial", "lse"):
            signature[name] = "*fp32"
        elif name in ("q", "k", "v", "out"):
            signature[name] = "*bf16"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
        if signature[name].startswith("*") or name.startswith("stride"):
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


@pytest.mark.parametrize(("rows", "head_dim", "masked", "split"), SHAPES)
@pytest.mark.parametrize("target", [80, 90, 100])
def test_the_keys_stream_through_shared_memory_without_spills(
    target: int,
    rows: int,
    head_dim: int,
    masked: bool,
    split: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = tiles.decode_tile(head_dim, rows, (target // 10, target % 10))
    constants: dict[str, Any] = {
        "CAUSAL": masked, "MASKED": masked, "SPLIT": split, "DESCRIPTORS": target >= 90,
        "HEAD_DIM": head_dim, "WIDTH": 1 << (head_dim - 1).bit_length(),
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        **(dict.fromkeys(["out"]) if split else dict.fromkeys(["partial", "lse"])),
    }  # fmt: skip
    found = compiled(decode.decode_split, target, constants, tile.block_n, tile)
    assert stack_bytes(found, tmp_path) == 0
    # A thread block pays 1 KiB on top of its own. `decode_splits` counts on two.
    assert 2 * (found.metadata.shared + 1024) <= SHARED_KIB[target] * 1024
    ptx = found.asm["ptx"]
    if target == 80:
        assert set(re.findall(r"cp\.async\.\S+\.shared\.global", ptx)) == {"cp.async.cg.shared.global"}
    else:
        assert "cp.async.bulk.tensor" in ptx
    assert ("wgmma.mma_async" in ptx) == (target == 90 and tile.block_m == 64)
    assert ("tcgen05.mma" in ptx) == (target == 100 and tile.block_m == 64)
    assert ("mma.sync" in ptx) == (target == 80 or tile.block_m < 64)


@pytest.mark.parametrize(("splits", "head_dim"), [(2, 128), (23, 256), (128, 80)])
@pytest.mark.parametrize("target", [80, 90])
def test_partial_results_are_merged_without_spills(
    target: int, splits: int, head_dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {
        "HEAD_DIM": head_dim, "WIDTH": 1 << (head_dim - 1).bit_length(),
        "BLOCK_M": splits, "AT_ONCE": min(16, splits), "DESCRIPTORS": False,
    }  # fmt: skip
    constants = {name: constants[name] for name in constants if name in decode.decode_combine.arg_names}
    found = compiled(decode.decode_combine, target, constants, 0, tiles.combine_tile(splits))
    assert stack_bytes(found, tmp_path) == 0
    # Partial O in pieces of 16 bytes; two shares of 128 columns are too little for that.
    assert ("ld.global.v2" if splits == 2 else "ld.global.v4") in found.asm["ptx"]
