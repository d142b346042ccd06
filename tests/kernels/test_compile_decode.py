"""The decode kernels compiled for GPUs that are not here: no spills, enough of them on a multiprocessor."""

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

from perfkit.kernels.attention import tiles  # noqa: E402
from perfkit.kernels.attention.decode_append import decode_append  # noqa: E402
from perfkit.kernels.attention.decode_combine import decode_combine  # noqa: E402
from perfkit.kernels.attention.decode_split import decode_split  # noqa: E402

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
#: Arguments that are not there in the plainest call.
OPTIONAL = ("arrivals", "table", "lengths", "k_scale", "v_scale")
WORDS = {"partial": "*fp32", "lse": "*fp32", "k_scale": "*fp32", "v_scale": "*fp32"} | dict.fromkeys(
    ("arrivals", "table", "lengths"), "*i32"
)


def compiled(
    function: Any, target: int, constants: dict[str, Any], tile: tiles.Tile, stored: str = "bf16"
) -> Any:
    """The kernel as a launch on dense tensors would compile it, of a cache of `stored`."""
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in ("k", "v") and constants.get("DESCRIPTORS"):
            signature[name] = f"tensordesc<{stored}[1,1,{tile.block_n},{constants['WIDTH']}]>"
            continue
        if name in ("k", "v"):
            signature[name] = f"*{stored}"
        elif name in ("q", "out", "new_k", "new_v"):
            signature[name] = "*bf16"
        else:
            signature[name] = WORDS.get(name, "fp32" if name.startswith("scale") else "i32")
        # Rows of a block table may have any length.
        if signature[name].startswith("*") or (name.startswith("stride") and name != "stride_tb"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def constants_of(tile: tiles.Tile, head_dim: int, given: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """The constants of `decode_split`, where of what is optional only `given` is there."""
    fused = "arrivals" in given
    page = more.get("PAGE", 0)
    merged = ["out"] if not fused and more.pop("SPLIT", True) else []
    return {
        "CAUSAL": False, "MASKED": False, "DESCRIPTORS": False, "OVERLAP": False, "PAGE": 0,
        "PAGES": tiles.decode_pages(page, tile.block_n), "HEAD_DIM": head_dim,
        "WIDTH": 1 << (head_dim - 1).bit_length(), "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        "ROWS": 1, "AT_ONCE": 1,
        **dict.fromkeys([name for name in OPTIONAL if name not in given] + merged), **more,
    }  # fmt: skip


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


def fit(kernel: Any, tile: tiles.Tile, target: int) -> int:
    """Thread blocks that a multiprocessor has shared memory and warps for; 64 warps, 1 KiB more a block."""
    return min(SHARED_KIB[target] * 1024 // (kernel.metadata.shared + 1024), 64 // tile.num_warps)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(("rows", "head_dim", "masked", "split"), SHAPES)
@pytest.mark.parametrize("target", [80, 90, 100])
def test_the_keys_stream_through_shared_memory_without_spills(
    target: int, rows: int, head_dim: int, masked: bool, split: bool, tmp_path: Path
) -> None:
    tile = tiles.decode_tile(head_dim, rows, (target // 10, target % 10))
    constants = constants_of(
        tile, head_dim, (), CAUSAL=masked, MASKED=masked, DESCRIPTORS=target >= 90, SPLIT=split,
        **({} if split else dict.fromkeys(["partial", "lse"])),
    )  # fmt: skip
    found = compiled(decode_split, target, constants, tile)
    assert stack_bytes(found, tmp_path) == 0
    assert fit(found, tile, target) >= tiles.decode_resident(tile)
    ptx = found.asm["ptx"]
    if target == 80:
        assert set(re.findall(r"cp\.async\.\S+\.shared\.global", ptx)) == {"cp.async.cg.shared.global"}
    else:
        assert "cp.async.bulk.tensor" in ptx
    assert ("wgmma.mma_async" in ptx) == (target == 90 and tile.block_m == 64)
    assert ("tcgen05.mma" in ptx) == (target == 100 and tile.block_m == 64)
    assert ("mma.sync" in ptx) == (target == 80 or tile.block_m < 64)


#: (page, whether some row is masked, what is there, elements of the cache).
CACHES: list[tuple[int, bool, tuple[str, ...], str]] = [
    (0, True, ("lengths",), "bf16"),
    (1, False, ("table",), "bf16"),
    (16, False, ("table",), "bf16"),
    (16, True, ("table", "lengths"), "bf16"),
    (24, True, ("table",), "bf16"),
    (64, False, ("table",), "bf16"),
    (100, True, ("table", "lengths"), "bf16"),
    (256, False, ("table", "arrivals"), "bf16"),
    (0, False, ("k_scale", "v_scale"), "fp8e4nv"),
    (16, False, ("table", "k_scale", "v_scale"), "fp8e4nv"),
    (16, True, ("table", "lengths", "k_scale", "v_scale", "arrivals"), "fp8e4nv"),
]


@pytest.mark.parametrize(("page", "masked", "given", "stored"), CACHES)
@pytest.mark.parametrize("target", [80, 90])
def test_a_cache_of_any_form_is_loaded_ahead_in_pieces_of_16_bytes(
    target: int, page: int, masked: bool, given: tuple[str, ...], stored: str, tmp_path: Path
) -> None:
    if stored != "bf16" and target < 89:
        pytest.skip("fp8 is refused below 8.9")
    fp8 = stored != "bf16"
    tile = tiles.decode_tile(128, 4, (target // 10, target % 10), page, fp8)
    constants = constants_of(tile, 128, given, PAGE=page, MASKED=masked)
    if "arrivals" in given:
        constants |= dict(zip(("ROWS", "AT_ONCE"), tiles.decode_at_once(tile, 4, 128, 32), strict=True))
    found = compiled(decode_split, target, constants, tile, stored)
    assert stack_bytes(found, tmp_path) == 0
    assert fit(found, tile, target) >= tiles.decode_resident(tile, fp8)
    ptx = found.asm["ptx"]
    pieces = re.findall(r"cp\.async\.\S+\.shared\.global \[ ?\S+ \+ \S+ ?\], \[[^]]+\], (\w+)", ptx)
    # A tile of K or V of 64 x 128 elements takes 128 threads 8 copies of 16 bytes, as one of 128 x 128 does
    # 256, for each stage but one ahead and in the loop; in fp8 the tile of V, which has to be transposed, is
    # copied in pieces of 8.
    assert 32 * tile.num_warps * 8 * 16 == tile.block_n * 128 * 2
    copies = (4 + 8) * tile.num_stages if fp8 else 2 * 8 * tile.num_stages
    assert sum(int(piece, 0) >= 8 for piece in pieces) == copies
    assert fp8 or {int(piece, 0) for piece in pieces} == {16}
    # Loads of the table do not wait in shared memory, and none but those of Q and fp8 conversions is split.
    assert fp8 == ("cvt.rn.f16x2.e4m3x2" in ptx)


#: (query rows, page that chooses the tile, shares of 32 that are merged at a time): 32 numbers a thread of
#: 256 or 128, so 8192 or 4096 of 128 columns.
MERGES = [(1, 0, 32), (4, 0, 16), (16, 0, 4), (1, 16, 32), (4, 16, 8), (16, 16, 2)]


@pytest.mark.parametrize(("rows", "page", "at_once"), MERGES)
def test_merging_at_the_end_takes_few_registers(rows: int, page: int, at_once: int, tmp_path: Path) -> None:
    tile = tiles.decode_tile(128, rows, (9, 0), page)
    assert tiles.decode_at_once(tile, rows, 128, 32) == (rows, at_once)
    constants = constants_of(
        tile, 128, ("arrivals",), DESCRIPTORS=True, MASKED=False, ROWS=rows, AT_ONCE=at_once
    )
    found = compiled(decode_split, 90, constants, tile)
    assert stack_bytes(found, tmp_path) <= 16, "two pointers may wait there for the end"
    code = re.findall(r"\b(HMMA|STL|LDL)\b", found.asm["sass"])
    first, last = code.index("HMMA"), len(code) - code[::-1].index("HMMA")
    assert "LDL" not in code[:last], "loaded before the last product: perhaps in the loop"
    assert "STL" not in code[first:], "stored after the first product: perhaps in the loop"
    assert "atom.global.gpu.acq_rel.add.u32" in found.asm["ptx"]


@pytest.mark.parametrize(("splits", "head_dim"), [(2, 128), (23, 256), (128, 80)])
@pytest.mark.parametrize("target", [80, 90])
def test_partial_results_are_merged_without_spills(
    target: int, splits: int, head_dim: int, tmp_path: Path
) -> None:
    constants = {
        "HEAD_DIM": head_dim, "WIDTH": 1 << (head_dim - 1).bit_length(), "PAGE": 0, "PAGES": 1, "KEYS": 64,
        "BLOCK_M": splits, "AT_ONCE": min(16, splits), "OVERLAP": target >= 90, "lengths": None,
    }  # fmt: skip
    found = compiled(decode_combine, target, constants, tiles.combine_tile(splits))
    assert stack_bytes(found, tmp_path) == 0
    ptx = found.asm["ptx"]
    # Partial O in pieces of 16 bytes; two shares of 128 columns are too little for that.
    assert ("ld.global.v2" if splits == 2 else "ld.global.v4") in ptx
    assert ("griddepcontrol.wait" in ptx) == (target >= 90)


@pytest.mark.parametrize(("target", "stored"), [(80, "bf16"), (90, "fp8e4nv")])
@pytest.mark.parametrize("page", [0, 16])
def test_new_rows_are_written_without_spills(target: int, stored: str, page: int, tmp_path: Path) -> None:
    tile = tiles.decode_append_tile(1)
    missing = [*(() if page else ("table",)), *(("k_scale", "v_scale") if stored == "bf16" else ())]
    constants = {"PAGE": page, "HEAD_DIM": 128, "WIDTH": 128, "BLOCK_M": tile.block_m}
    found = compiled(decode_append, target, constants | dict.fromkeys(missing), tile, stored)
    assert stack_bytes(found, tmp_path) == 0
    assert ("cvt.rn.satfinite.e4m3x2.f32" in found.asm["ptx"]) == (stored != "bf16")
