"""Sweep of the decode kernels on one GPU, beside torch's kernels in the same run.

    python benchmarks/decode.py [--shapes 0,1,2,3] [--quick] [--workers 12] [--out decode.json]

bf16, d 128, one query token. For each shape: tiles and shares of the keys; of the best, the three ways to
merge (a kernel apart, one that overlaps, the last program), TMA or pointers; then pages and fp8; at last the
best ones and torch's kernels in turn. TB/s is that of K and V, with a cold L2. Candidates are compiled in
parallel and each is checked against torch's flash kernel.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
from torch import Tensor

from perfkit.kernels.attention import decode, sdpa
from perfkit.kernels.attention.cache import Cache
from perfkit.kernels.attention.tiles import (
    Tile,
    decode_blocks,
    decode_resident,
    decode_splits,
    decode_tile,
    without_empty,
)
from perfkit.kernels.attention.use import KernelUse
from perfkit.measure.flush import L2Flush
from perfkit.measure.torch_cuda import cuda

HEAD_DIM = 128
TOLERANCE = 2e-2
"""Largest |a - b| / |b| (Frobenius) against torch's bf16 kernel; right results differ by about 4e-3."""
SCALE = 2.0**-6
"""Of the fp8 cache. K and V are what it can represent, so that all variants have one right result."""
SHAPES = [(1, 32, 32, 16384), (16, 32, 8, 16384), (64, 32, 8, 8192), (64, 32, 1, 8192)]
#: Keys of a tile, warps, stages.
TILES = [
    (64, 4, 4), (64, 4, 3), (64, 4, 2), (64, 8, 4), (64, 8, 3), (32, 4, 4), (32, 4, 6), (32, 2, 4),
    (32, 2, 3), (128, 4, 2), (128, 8, 2), (128, 8, 3), (16, 1, 6), (16, 2, 6),
]  # fmt: skip
QUICK = [(64, 4, 4), (64, 4, 3), (32, 4, 4), (128, 8, 2)]
FP8_TILES = [(64, 4, 4), (64, 4, 6), (64, 8, 4), (128, 4, 3), (128, 8, 3), (128, 4, 4), (32, 4, 6)]
#: Programs a multiprocessor that a number of shares is to give.
FILLED = (1, 2, 3, 4, 6, 8, 12)
MODES = ("apart", "overlap", "fused")
#: Times that the sleep before a sample is longer than what the host needs.
SLEEP_CYCLES = 1_000_000


class Shape(NamedTuple):
    """Sizes of one problem."""

    batch: int
    heads: int
    kv_heads: int
    keys: int

    @property
    def tile_rows(self) -> int:
        return max(16, 1 << (self.heads // self.kv_heads - 1).bit_length())

    @property
    def cache_bytes(self) -> int:
        """Of K and V in bf16."""
        return 4 * self.batch * self.kv_heads * self.keys * HEAD_DIM


class Candidate(NamedTuple):
    """One way to run the kernels. `page` 0 is a cache in one piece."""

    tile: Tile
    splits: int
    mode: str = "apart"
    descriptors: bool | None = None
    page: int = 0
    fp8: bool = False

    @property
    def label(self) -> str:
        tile = "x".join(map(str, self.tile[:2])) + " w{} s{}".format(*self.tile[2:])
        cache = ("fp8 " if self.fp8 else "") + (f"page {self.page}" if self.page else "")
        reads = {None: "", True: "tma", False: "ptr"}[self.descriptors]
        return f"{tile:14} S {self.splits:<3} {self.mode:7} {reads:3} {cache}"


class Problem:
    """q, K and V, what is right, and the cache in all its forms."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.q = torch.randn(shape.batch, shape.heads, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        size = (shape.batch, shape.kv_heads, shape.keys, HEAD_DIM)
        self.stored = [
            (torch.randn(size, device="cuda", dtype=torch.bfloat16) / SCALE).to(torch.float8_e4m3fn)
            for _ in range(2)
        ]
        self.k, self.v = (one.to(torch.bfloat16).mul_(SCALE) for one in self.stored)
        self.cache = cache(self._cache)

    @property
    def expected(self) -> Tensor:
        return sdpa.flash(self.q, self.k, self.v)

    def _cache(self, page: int, fp8: bool) -> Cache:
        shape = self.shape
        k, v = self.stored if fp8 else (self.k, self.v)
        pages = shape.batch * shape.keys // page if page else 0
        scales = None
        if fp8:
            size = (pages, shape.kv_heads) if page else (shape.kv_heads,)
            scales = torch.full(size, SCALE, device="cuda")
        if not page:
            return Cache(k, v, None, scales, scales)
        order = torch.randperm(pages, device="cuda")
        k, v = (_paged(tensor, page, order) for tensor in (k, v))
        table = order.int().view(shape.batch, -1)
        return Cache(k, v, table, scales, scales)


def _paged(tensor: Tensor, page: int, order: Tensor) -> Tensor:
    """The pages of `tensor`, page i at order[i]."""
    batch, kv_heads, keys, width = tensor.shape
    pages = tensor.view(batch, kv_heads, keys // page, page, width).transpose(1, 2)
    pool = torch.empty(batch * keys // page, kv_heads, page, width, dtype=tensor.dtype, device=tensor.device)
    same = torch.uint8 if tensor.element_size() == 1 else tensor.dtype
    pool.view(same)[order] = pages.reshape(pool.shape).view(same)
    return pool


def run(candidate: Candidate, p: Problem, uses: list[KernelUse] | None = None) -> Tensor:
    """O by the candidate."""
    form = p.cache(candidate.page, candidate.fp8) if candidate.page or candidate.fp8 else None
    return decode.forward(
        p.q,
        p.k,
        p.v,
        splits=candidate.splits,
        cache=form,
        tile=candidate.tile,
        fused=candidate.mode == "fused",
        overlap=candidate.mode == "overlap",
        descriptors=candidate.descriptors,
        uses=uses,
    )


def splits_for(
    shape: Shape, tile: Tile, page: int = 0, filled: Iterable[int] = FILLED, fp8: bool = False
) -> list[int]:
    """Shares that give so many programs a multiprocessor, at least 1, none of them empty."""
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    blocks, key_blocks = shape.batch * shape.kv_heads, decode_blocks(shape.keys, page, tile.block_n)
    wanted = [max(1, sms * count // blocks) for count in filled]
    wanted.append(decode_splits(blocks, key_blocks, sms, decode_resident(tile, fp8)))
    return sorted({without_empty(min(one, key_blocks), key_blocks) for one in wanted})


def tiles_of(shape: Shape, table: list[tuple[int, int, int]]) -> list[Tile]:
    return [Tile(shape.tile_rows, *sides) for sides in table]


@cache
def _small(heads: int, kv_heads: int) -> Problem:
    return Problem(Shape(1, heads, kv_heads, 4096))


def compile_one(job: tuple[Shape, Candidate]) -> str:
    """Compiles the candidate into Triton's cache by running it on few keys; '' or what went wrong."""
    shape, candidate = job
    try:
        run(candidate, _small(shape.heads, shape.kv_heads))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:120]
    return ""


_FLUSH: list[L2Flush] = []


def samples(calls: list[Callable[[], object]], count: int) -> list[list[float]]:
    """Seconds of each call, `count` times in turn, each with a cold L2 and its launches queued before."""
    if not _FLUSH:
        _FLUSH.append(L2Flush())
    taken: list[list[tuple[Any, Any]]] = [[] for _ in calls]
    for _ in range(count):
        for at, call in enumerate(calls):
            start, end = (cuda().Event(enable_timing=True) for _ in range(2))
            _FLUSH[0]()
            cuda()._sleep(SLEEP_CYCLES)
            start.record()
            call()
            end.record()
            taken[at].append((start, end))
    torch.cuda.synchronize()
    return [[start.elapsed_time(end) / 1e3 for start, end in one] for one in taken]


def measure(candidate: Candidate, p: Problem, expected: Tensor, failed: str, count: int) -> dict[str, Any]:
    """One row of the result: time, rate, registers, or the error that kept it from running."""
    row: dict[str, Any] = {**candidate._asdict(), "tile": list(candidate.tile), "label": candidate.label}
    row["shape"] = list(p.shape)
    if failed:
        return row | {"failed": failed}
    try:
        uses: list[KernelUse] = []
        out = run(candidate, p, uses)
        row["error"] = ((out.float() - expected.float()).norm() / expected.float().norm()).item()
        used = uses[0]
        row |= {"registers": used.registers, "spills": used.spills, "shared": used.shared_bytes}
        if not row["error"] < TOLERANCE:
            return row | {"failed": f"wrong: relative error {row['error']:.1e}"}
        seconds = statistics.median(samples([partial(run, candidate, p)], count)[0])
    except Exception as error:
        return row | {"failed": f"{type(error).__name__}: {error}".replace("\n", " ")[:120]}
    return row | {"us": seconds * 1e6, "tb_s": _rate(p.shape, candidate.fp8, seconds)}


def _rate(shape: Shape, fp8: bool, seconds: float) -> float:
    return shape.cache_bytes / (2 if fp8 else 1) / seconds / 1e12


class Sweep:
    """The rows of one shape; what is asked for is compiled together first."""

    def __init__(self, p: Problem, pool: ProcessPoolExecutor, count: int) -> None:
        self._p, self._pool, self._count = p, pool, count
        self._expected = p.expected
        self.rows: dict[Candidate, dict[str, Any]] = {}

    def __call__(self, candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
        """The rows of all candidates, the fastest first."""
        wanted = list(dict.fromkeys(candidates))
        fresh = [one for one in wanted if one not in self.rows]
        failures = self._pool.map(compile_one, [(self._p.shape, one) for one in fresh], chunksize=4)
        for one, failed in zip(fresh, failures, strict=True):
            self.rows[one] = measure(one, self._p, self._expected, failed, self._count)
        return sorted((self.rows[one] for one in wanted), key=lambda row: row.get("us", 1e9))

    def best(self, candidates: Iterable[Candidate], count: int = 1) -> list[Candidate]:
        """The fastest of candidates that were measured."""
        done = [one for one in dict.fromkeys(candidates) if "us" in self.rows.get(one, {})]
        return sorted(done, key=lambda one: float(self.rows[one]["us"]))[:count]


def show(title: str, rows: list[dict[str, Any]], most: int) -> None:
    print(f" {title}")
    good = [row for row in rows if "us" in row]
    for row in good[:most]:
        facts = f"r{row['registers']:<3} sp{row['spills']:<3} {row['shared'] // 1024:4}K"
        print(f"  {row['label']:52} {row['us']:8.1f} us {row['tb_s']:5.2f}  {facts}")
    for row in [row for row in rows if "us" not in row][:3]:
        print(f"  {row['label']:52} {row['failed']}")
    sys.stdout.flush()


def sweep_shape(p: Problem, pool: ProcessPoolExecutor, quick: bool, count: int) -> list[dict[str, Any]]:
    """All of one shape, printed as it goes."""
    shape, sweep = p.shape, Sweep(p, pool, count)
    tiles = tiles_of(shape, QUICK if quick else TILES)
    plain = [Candidate(tile, splits) for tile in tiles for splits in splits_for(shape, tile)]
    show("tiles and shares", sweep(plain), 8)
    tabled = decode_tile(HEAD_DIM, shape.heads // shape.kv_heads, (9, 0))
    shipped = [Candidate(tabled, splits) for splits in splits_for(shape, tabled, filled=())]
    chosen = [*sweep.best(plain, 4), *shipped]
    ways = [
        one._replace(mode=mode, descriptors=descriptors)
        for one in chosen
        for mode in (MODES if one.splits > 1 else MODES[:1])
        for descriptors in (None, False)
    ]
    # What merges well may want more or fewer shares than what merges apart.
    merged = sweep.best(plain, 2)
    ways += [
        Candidate(one.tile, splits, mode)
        for one in merged
        for splits in splits_for(shape, one.tile)
        for mode in MODES[1:]
        if splits > 1
    ]
    show("ways to merge and to load", sweep(ways), 10)
    best = sweep.best([*plain, *ways])[0]
    finals = [best, *shipped]
    for page in (16, 64, 256):
        found = list(_of_pages(shape, page, best, tiles if page == 16 else chosen_tiles(chosen)))
        show(f"page {page}", sweep(found), 5)
        finals += sweep.best(found)
    for page in (0, 16, 64):
        eights = list(_of_fp8(shape, page, best))
        show(f"fp8{f', page {page}' if page else ''}", sweep(eights), 3)
        finals += sweep.best(eights)
    return list(sweep.rows.values()) + compare(p, finals, 3 * count)


def chosen_tiles(candidates: list[Candidate]) -> list[Tile]:
    return list(dict.fromkeys(one.tile for one in candidates))


def _of_pages(shape: Shape, page: int, best: Candidate, tiles: list[Tile]) -> Iterable[Candidate]:
    for tile in tiles:
        for splits in {best.splits, *splits_for(shape, tile, page, (2, 4))}:
            mode = best.mode if splits > 1 else "apart"
            yield Candidate(tile, splits, mode, False, page)
            if page % tile.block_n == 0:
                yield Candidate(tile, splits, mode, None, page)


def _of_fp8(shape: Shape, page: int, best: Candidate) -> Iterable[Candidate]:
    for tile in tiles_of(shape, FP8_TILES):
        for splits in {best.splits, *splits_for(shape, tile, page, (2, 4), True)}:
            mode = best.mode if splits > 1 else "apart"
            for descriptors in (None, False) if not page else (None,):
                yield Candidate(tile, splits, mode, descriptors, page, True)


def compare(p: Problem, candidates: list[Candidate], count: int) -> list[dict[str, Any]]:
    """The candidates and torch's kernels, sampled in turn."""
    calls: dict[str, tuple[Callable[[], object], bool]] = {
        one.label: (partial(run, one, p), one.fp8) for one in candidates
    }
    rows: list[dict[str, Any]] = []
    for name, attention in (("sdpa-flash", sdpa.flash), ("sdpa-cudnn", sdpa.cudnn)):
        try:
            attention(p.q, p.k, p.v)
            calls[name] = (partial(attention, p.q, p.k, p.v), False)
        except Exception as error:
            rows.append({"final": name, "failed": str(error)[:120], "shape": list(p.shape)})
    for call, _ in calls.values():
        call()
    taken = samples([call for call, _ in calls.values()], count)
    print(" in turn")
    for (name, (_, fp8)), seconds in zip(calls.items(), taken, strict=True):
        median = statistics.median(seconds)
        low, high = (1e6 * one for one in statistics.quantiles(seconds, n=4)[::2])
        rate = _rate(p.shape, fp8, median)
        print(f"  {name:52} {1e6 * median:8.1f} us {rate:5.2f}  quartiles {low:.1f} {high:.1f}")
        rows.append({"final": name, "us": 1e6 * median, "tb_s": rate, "shape": list(p.shape)})
    sys.stdout.flush()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="0,1,2,3")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--count", type=int, default=11)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    versions = f"torch {torch.__version__}  triton {triton.__version__}"
    print(f"{torch.cuda.get_device_name()}  {versions}  TB/s of K and V")
    everything: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        for at in map(int, arguments.shapes.split(",")):
            began, shape = time.perf_counter(), Shape(*SHAPES[at])
            print(f"batch {shape.batch} heads {shape.heads} K/V heads {shape.kv_heads} keys {shape.keys}")
            problem = Problem(shape)
            everything += sweep_shape(problem, pool, arguments.quick, arguments.count)
            print(f" {time.perf_counter() - began:.0f} s", flush=True)
            del problem
            torch.cuda.empty_cache()
            if arguments.out:
                arguments.out.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
