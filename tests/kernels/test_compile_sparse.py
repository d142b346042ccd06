"""The block-sparse kernels compiled for GPUs that are not here: shared memory, spills, instructions."""

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

from perfkit.kernels.attention import (  # noqa: E402
    block_sparse,
    block_sparse_backward,
    sparse1,
    sparse1_backward,
    tiles,
)
from perfkit.kernels.attention.tiles import Tile  # noqa: E402

MODERN = {
    "forward": block_sparse.block_sparse_forward,
    "dkdv": block_sparse_backward.block_sparse_dkdv,
    "dq": block_sparse_backward.block_sparse_dq,
}
FIRST = {"forward": sparse1.sparse1_forward, "backward": sparse1_backward.sparse1_backward}
STACK_BYTES = 16  # a few bytes outside the loops are no spill worth a smaller tile
#: `flash`'s own tile spills there too, and was the fastest (see `benchmarks/flash_tiles.py`).
SPILLING = {(90, "dkdv", 256): 80}
#: The same with the loop over tiles that are met in part; `flash`'s causal dK/dV kernel spills as much. On
#: 8.0 what is spilled are addresses within a tile, read again once a turn.
SPILLING_IN_PART = {(90, "dkdv", 128): 128, (80, "forward", 128): 48}
TYPES = {
    "bf16": ("q", "k", "v", "out", "dout", "dq", "dk", "dv"),
    "fp32": ("lse", "delta", "partial", "row_sum", "row_max"),
    "i32": ("offsets", "members", "ends"),
    "u8": ("mask",),
}

#: Target, kernel, head dim, the pattern's block, whether it divides N.
CASES = [
    *((90, kernel, head_dim, 128, even)
      for kernel in MODERN for head_dim in (64, 128, 256) for even in (True, False)),
    *((90, kernel, head_dim, 64, True) for kernel in MODERN for head_dim in (64, 128)),
    *((80, kernel, head_dim, 128, False) for kernel in MODERN for head_dim in (64, 128)),
    *((100, kernel, 128, 128, True) for kernel in MODERN),
]  # fmt: skip
#: Target, kernel, head dim, spans a row, whether what is met in full are neighbours.
IN_PART = [
    *((90, kernel, head_dim, spans, spans == 1)
      for kernel in MODERN for head_dim in (64, 128) for spans in (1, 2)),
    *((80, kernel, head_dim, 1, True) for kernel in MODERN for head_dim in (64, 128)),
    *((100, kernel, 128, 1, True) for kernel in MODERN),
]  # fmt: skip
FIRST_CASES = [
    *((90, kernel, head_dim, 128) for kernel in FIRST for head_dim in (64, 128, 256)),
    *((80, kernel, head_dim, 128) for kernel in FIRST for head_dim in (64, 128)),
    *((100, kernel, 64, 64) for kernel in FIRST),
]


def compiled(function: Any, target: int, tile: Tile, constants: dict[str, Any], even: bool = True) -> Any:
    """The kernel as a launch on dense tensors would compile it, with TMA where `constants` say so."""
    taken = {name: value for name, value in constants.items() if name in function.arg_names}
    described = {"q": tile.block_m, "dout": tile.block_m, "k": tile.block_n, "v": tile.block_n}
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in taken:
            signature[name] = "constexpr"
            continue
        if name in described and taken.get("DESCRIPTORS"):
            signature[name] = f"tensordesc<bf16[1,1,{described[name]},{taken['HEAD_DIM']}]>"
            continue
        pointer = next((kind for kind, names in TYPES.items() if name in names), None)
        if name == "partial" and "members" in function.arg_names:  # of a list, not an accumulator
            pointer = "i32"
        plain = "fp32" if name.startswith("scale") else "i32"
        signature[name] = plain if pointer is None else f"*{pointer}"
        if pointer or name.startswith("stride") or (name.startswith("seq") and even):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=taken, attrs=attributes)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def sizes(head_dim: int, tile: Tile) -> dict[str, Any]:
    sides = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    return {"HEAD_DIM": head_dim, "WIDTH": head_dim, **sides}


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


def table_tile(kernel: str, target: int, head_dim: int, causal: bool) -> Tile:
    capability = (target // 10, target % 10)
    dkdv, dq = tiles.backward_tiles(head_dim, capability, causal)
    return {"forward": tiles.forward_tile(head_dim, capability, causal), "dkdv": dkdv, "dq": dq}[kernel]


def assert_instructions(
    found: Any, target: int, kernel: str, tile: Tile, head_dim: int, spans: int = 0
) -> None:
    """Shared memory within the limit and, on 9.0, as the model has it; the matrix instructions meant."""
    assert found.metadata.shared <= tiles.shared_limit((target // 10, target % 10))
    ptx = found.asm["ptx"]
    if target == 90:
        model = {
            "forward": tiles.forward_shared_bytes,
            "dkdv": tiles.dkdv_shared_bytes,
            "dq": tiles.dq_shared_bytes,
        }
        # As many buffers as `flash` has: the loop over a list is pipelined like one over neighbours. Spans of
        # rows are loaded as their LSE and D are.
        more = tile.num_stages * tile.block_m * 8 * spans if kernel == "dkdv" else 0
        assert abs(found.metadata.shared - model[kernel](tile, head_dim) - more) <= 2048
        assert "wgmma.mma_async" in ptx
        assert "mma.sync" not in ptx
        assert "cp.async.bulk.tensor" in ptx
    elif target == 100:
        assert "tcgen05.mma" in ptx
    else:
        assert "mma.sync" in ptx
        assert "cp.async" in ptx


@pytest.mark.parametrize(("target", "kernel", "head_dim", "block", "even"), CASES)
def test_kernels_over_blocks_compile_for_their_target(
    target: int,
    kernel: str,
    head_dim: int,
    block: int,
    even: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = tiles.within(table_tile(kernel, target, head_dim, False), block)
    constants = {
        "SPANS": 0, "EDGE": not even, "CHECK_ROWS": not even and target < 90, "RUNS": False, "LATE": False,
        "DESCRIPTORS": target >= 90, **sizes(head_dim, tile),
    }  # fmt: skip
    found = compiled(MODERN[kernel], target, tile, constants, even)
    assert_instructions(found, target, kernel, tile, head_dim)
    assert stack_bytes(found, tmp_path) <= SPILLING.get((target, kernel, head_dim), STACK_BYTES)


@pytest.mark.parametrize(("target", "kernel", "head_dim", "spans", "runs"), IN_PART)
def test_kernels_over_spans_compile_for_their_target(
    target: int,
    kernel: str,
    head_dim: int,
    spans: int,
    runs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = table_tile(kernel, target, head_dim, True)
    constants = {
        "SPANS": spans, "EDGE": not runs, "CHECK_ROWS": not runs and target < 90, "RUNS": runs,
        "LATE": kernel != "dkdv", "DESCRIPTORS": target >= 90, **sizes(head_dim, tile),
    }  # fmt: skip
    found = compiled(MODERN[kernel], target, tile, constants)
    assert_instructions(found, target, kernel, tile, head_dim, spans)
    assert stack_bytes(found, tmp_path) <= SPILLING_IN_PART.get((target, kernel, head_dim), STACK_BYTES)


@pytest.mark.parametrize(("target", "kernel", "head_dim", "block"), FIRST_CASES)
def test_the_first_order_compiles_without_traffic_that_it_has_not(
    target: int, kernel: str, head_dim: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No spills, and of all reads only those of the mask, which nobody writes, may be served by L1."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    capability = (target // 10, target % 10)
    tile = tiles.within(tiles.sparse1_tiles(head_dim, capability)[kernel == "backward"], block)
    function = FIRST[kernel]
    rows = {name: head_dim for name in function.arg_names if re.fullmatch(r"stride_\w+n", name)}
    found = compiled(function, target, tile, {"BLOCK": block, **sizes(head_dim, tile), **rows})
    assert found.metadata.shared <= tiles.shared_limit(capability)
    assert stack_bytes(found, tmp_path) <= STACK_BYTES
    loads = re.findall(r"ld\.global\S*", found.asm["ptx"])
    assert {load for load in loads if ".cg" not in load} == {"ld.global.b8"}
