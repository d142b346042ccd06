"""What `benchmarks/attention.py` runs: tile variants, problems of the check, cells of the timing, a process.

Everything here does without torch and without a GPU.
"""

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from perfkit.kernels.attention.tiles import HopperBackwardTile, HopperTile
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload, Pass

SCRIPT = Path(__file__).with_name("attention.py")
PATIENCE_S = 40.0
STARTUP_S = 150.0
"""Until the first line: imports and, on a machine of few cores, compilation."""
COMPILE_S = 180.0
"""For all that torch compiles together, and for one of them where it has to be compiled once more."""


Tile = TypeVar("Tile", HopperTile, HopperBackwardTile)


class Variant(NamedTuple, Generic[Tile]):
    """A tile of the Hopper kernels, the head dim that it is for, and how a backward is called with it."""

    head_dim: int
    tile: Tile
    deterministic: bool = False


# Names: head dim - warpgroups; p persistent, s3 three stages, q1 one tile of Q, q2 two.
FORWARD: dict[str, Variant[HopperTile]] = {
    "64-3p": Variant(64, HopperTile(3, 128, 2, 2, persistent=True)),
    "64-3p-s3": Variant(64, HopperTile(3, 128, 3, 2, persistent=True)),
    "64-3": Variant(64, HopperTile(3, 128, 2)),
    "64-2p": Variant(64, HopperTile(2, 128, 3, 2, persistent=True)),
    "96-2p": Variant(96, HopperTile(2, 128, 2, 2, persistent=True)),
    "96-2p-s3": Variant(96, HopperTile(2, 128, 3, 2, persistent=True)),
    "128-2p": Variant(128, HopperTile(2, 128, 2, 2, persistent=True)),
    "128-2p-q1": Variant(128, HopperTile(2, 128, 2, 1, persistent=True)),
    "128-2": Variant(128, HopperTile(2, 128, 2)),
    "192-2": Variant(192, HopperTile(2, 64, 3)),
    "192-2p": Variant(192, HopperTile(2, 64, 3, 1, persistent=True)),
    "192-2p-q2": Variant(192, HopperTile(2, 64, 2, 2, persistent=True)),
    "256-2": Variant(256, HopperTile(2, 64, 2)),
}
# Names: head dim; s4 four stages, ahead dS^T Q beside the next block, det deterministic. The table has "64"
# with and without a mask, "128" without, "128-ahead" with a mask.
BACKWARD: dict[str, Variant[HopperBackwardTile]] = {
    "64": Variant(64, HopperBackwardTile(64, 3, 128, 2, apart=True)),
    "64-s4": Variant(64, HopperBackwardTile(64, 4, 128, 2, apart=True)),
    "64-det": Variant(64, HopperBackwardTile(128, 2, 128, 2), deterministic=True),
    "128": Variant(128, HopperBackwardTile(64, 2, 128, 2)),
    "128-ahead": Variant(128, HopperBackwardTile(64, 2, 128, 2, ahead=True)),
    "128-det": Variant(128, HopperBackwardTile(64, 2, 128, 2), deterministic=True),
    "192": Variant(192, HopperBackwardTile(64, 2, 64, 2, wide=True)),
    "192-s3": Variant(192, HopperBackwardTile(64, 3, 64, 2, wide=True)),
    "256": Variant(256, HopperBackwardTile(64, 2, 64, 2, wide=True)),
}
TILES: dict[str, dict[str, Any]] = {"fwd": dict(FORWARD), "bwd": dict(BACKWARD)}

OURS = ("flash", "flash-triton", "flash-hopper")
#: What the rungs are of, and what they are held against.
ROW, BASELINE = "flash", "sdpa-cudnn"
#: torch compiles them for each cell and pass, which takes up to a minute.
COMPILED = ("flex",)
#: Packages of peers whose versions belong in a record.
PACKAGES = ("flash-attn", "flash-attn-3", "flash-attn-4", "xformers", "flashinfer-python")


def default_columns() -> list[str]:
    """Our rows, and every peer of perfkit's op that runs on a GPU alone and stores no N x N matrix."""
    peers = [
        row.name
        for row in find_op("attention").implementations
        if row.role == "peer" and row.hardware == ("cuda",) and not row.materialises
    ]
    return [*OURS, *sorted(peers, key=lambda name: name != BASELINE)]


class Problem(NamedTuple):
    """Sizes of one check; `less_dim` columns fewer than the tile holds; scores near -away^2 sqrt(d)."""

    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    causal: bool
    dtype: str = "bfloat16"
    less_dim: int = 0
    away: float = 0.0


_BOTH = [
    Problem(1, 1, 1, 64, 128, False),
    Problem(1, 2, 2, 128, 128, True),
    Problem(1, 2, 1, 113, 203, False),
    Problem(2, 4, 2, 203, 113, True),
    Problem(1, 3, 3, 1, 777, True),
    Problem(1, 4, 4, 500, 17, True),
    Problem(1, 2, 2, 200, 130, False, away=5.0),  # a weight of a key beyond N_k would be inf backward
    Problem(2, 4, 1, 384, 1500, True, "float16"),
    Problem(1, 4, 2, 777, 1024, False, "float16"),
    Problem(1, 4, 4, 1024, 1024, False),
    Problem(2, 6, 3, 511, 1500, True, "bfloat16", 8),
]
CHECKS: dict[str, list[Problem]] = {
    "fwd": [*_BOTH, Problem(1, 8, 8, 2048, 2048, True), Problem(1, 16, 4, 4096, 4096, True)],
    "bwd": [*_BOTH, Problem(1, 8, 2, 4096, 4096, True)],
}


class Cell(NamedTuple):
    """One problem of the timing: bf16, heads = 2048 // d, batch = 16384 // N, each at least 1."""

    head_dim: int
    seq: int
    causal: bool

    def __str__(self) -> str:
        return f"{self.head_dim}x{self.seq}{'c' if self.causal else 'f'}"

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """The cell of such a name as 64x2048f (full) or 128x16384c (causal). ValueError for others."""
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)([fc])", text)
        if not found:
            raise ValueError(f"'{text}' is no cell: write 64x2048f (full) or 64x2048c (causal)")
        return cls(int(found[1]), int(found[2]), found[3] == "c")

    def workload(self, pass_: Pass) -> AttentionWorkload:
        """What perfkit calls it."""
        heads = max(1, 2048 // self.head_dim)
        return AttentionWorkload(
            batch=max(1, 16384 // self.seq), heads=heads, kv_heads=heads, seq_q=self.seq, seq_k=self.seq,
            head_dim=self.head_dim, causal=self.causal, pass_=pass_,
        )  # fmt: skip


CELLS = [Cell(d, n, causal) for d in (64, 128) for n in (2048, 16384) for causal in (False, True)]

#: FlashAttention-4's path for Hopper, TFLOP/s by convention in bf16, measured on another machine.
PUBLISHED: dict[tuple[str, Cell], float] = dict(
    zip(
        [(pass_, cell) for pass_ in ("fwd", "bwd") for cell in CELLS],
        [461, 347, 530, 452, 590, 480, 651, 591, 456, 392, 511, 505, 529, 447, 604, 596],
        strict=True,
    )
)


def without_folders(text: str) -> str:
    """The text with absolute paths cut to their last part: a record says nothing of the machine's folders."""
    return re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/", "", text)


def brief(line: str) -> str:
    """What a process said last, for a table."""
    return without_folders(line or "without a word")[:200]


class Child:
    """The script in a process of its own, with a request; `lines` ends with it, or with its silence."""

    def __init__(self, request: dict[str, Any], script: Path = SCRIPT) -> None:
        command = [sys.executable, "-u", str(script), "--child", json.dumps(request)]
        # torch's compiler would start a process for each core, in each child.
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.hung = False
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip())
        self._queue.put(None)

    def lines(self, until: float | None = None) -> Iterator[str]:
        """What it prints, line by line. Kills it when it falls silent, and sets `hung`.

        Silent is STARTUP_S without a first line, then PATIENCE_S, or the seconds in its last line `wait
        SECONDS`, which is not passed on. With `until`, a time of `time.monotonic`, it is killed then instead.
        """
        patience, later = STARTUP_S, PATIENCE_S
        try:
            while True:
                left = patience if until is None else max(0.0, until - time.monotonic())
                try:
                    line = self._queue.get(timeout=left)
                except queue.Empty:
                    self.hung = True
                    return
                if line is None:
                    self.process.wait()
                    return
                if asked := re.fullmatch(r"wait (\d+)", line):
                    later = float(asked[1])
                else:
                    yield line
                patience = later
        finally:  # also after Ctrl-C
            self.process.kill()
