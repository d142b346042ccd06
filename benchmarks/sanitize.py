"""The attention kernels under NVIDIA's compute-sanitizer: memory, shared-memory races, barriers.

    python benchmarks/sanitize.py [--tools memcheck,racecheck,synccheck] [--paths hopper,flash]

Every shape runs forward and backward in a process of its own, with each tensor in an allocation of its own,
so that memcheck sees every access outside of one. First memcheck has to find an error that is planted. One
line for each tool and shape: clean, errors, failed, or timeout, which decides nothing. Exits with 1 on
errors, with 2 where there is no compute-sanitizer (it comes with the CUDA toolkit).

racecheck does not follow barriers in shared memory, nor those by which Triton hands work to warps. What it
reports of accesses that these order is counted as explained: between lines of the kernel functions
themselves, which allocate and hand out, between those that say and read which tile Q is of, and between
those that pass P from one warpgroup to another.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TOOLS: Final = ("memcheck", "racecheck", "synccheck")
PLACES: Final = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/cuda/bin")
#: The exit code that compute-sanitizer is told to give where it found an error, and nothing else did.
FOUND: Final = 86
PLANTED: Final = "planted"
KERNELS: Final = Path(__file__).resolve().parents[1] / "kernels" / "attention"
#: Functions -> how accesses of theirs are ordered among each other.
ORDERED: Final = {
    "flash_hopper_forward": "dispatch",
    "flash_hopper_dkdv": "dispatch",
    "flash_hopper_dkdv_wide": "dispatch",
    "flash_hopper_dq": "dispatch",
    "_announce": "number",
    "_announced": "number",
}
#: Texts of lines -> how accesses of these lines are ordered among each other.
ORDERED_LINES: Final = {"weights_tile.store(": "weights", "weights_tile.load(": "weights"}


class Shape(NamedTuple):
    """One call of one path: small, for a kernel runs 10 to 100 times as long."""

    path: str
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    head_dim: int
    causal: bool
    dtype: str

    def __str__(self) -> str:
        mask = "causal" if self.causal else "full"
        heads = f"{self.heads}/{self.kv_heads} heads"
        return f"{self.path} d{self.head_dim} {self.seq_q}x{self.seq_k} {heads} {mask} {self.dtype}"


SHAPES: Final = (
    Shape("hopper", 2, 1, 130, 300, 64, True, "bfloat16"),
    Shape("hopper", 2, 2, 300, 130, 64, False, "float16"),
    Shape("hopper", 150, 75, 70, 70, 64, True, "bfloat16"),  # more tiles than multiprocessors
    Shape("hopper", 2, 1, 130, 300, 128, True, "float16"),
    Shape("hopper", 2, 1, 200, 130, 96, False, "bfloat16"),
    Shape("hopper", 2, 2, 130, 200, 96, True, "float16"),
    Shape("hopper", 2, 1, 130, 200, 192, True, "bfloat16"),
    Shape("hopper", 2, 2, 300, 130, 192, False, "float16"),
    Shape("hopper", 2, 1, 130, 200, 256, True, "bfloat16"),
    Shape("hopper", 2, 2, 200, 130, 256, False, "float16"),
    Shape("flash", 2, 1, 130, 200, 64, True, "bfloat16"),
    Shape("flash", 2, 1, 200, 130, 128, False, "float16"),
    Shape("flash", 2, 1, 130, 130, 192, True, "bfloat16"),
)


class Outcome(NamedTuple):
    """What a tool says of a shape: `text` is all of its output."""

    words: str
    bad: bool
    text: str = ""

    @property
    def worth_reading(self) -> list[str]:
        """The first lines and the last, where something is wrong."""
        lines = [line for line in self.text.splitlines() if line.strip(" =")]
        return lines if len(lines) < 16 else [*lines[:12], "...", *lines[-3:]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--paths", default="hopper,flash")
    parser.add_argument("--patience", type=float, default=150, help="seconds for a tool on a shape")
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        run_child(given.child)
        return 0
    tool = find_sanitizer()
    if tool is None:
        print(f"compute-sanitizer is not installed: neither on PATH nor in {', '.join(PLACES)}")
        return 2
    planted = check(tool, "memcheck", PLANTED, given.patience)
    if "Invalid __global__ read" not in planted.text:
        print("memcheck did not find the planted error, so no `clean` can be believed:", planted.words)
        print(*planted.worth_reading, sep="\n")
        return 1
    print("memcheck found the planted error", flush=True)
    shapes = [at for at, shape in enumerate(SHAPES) if shape.path in given.paths.split(",")]
    asked = [(name, at) for name in given.tools.split(",") for at in shapes]
    bad = False
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = pool.map(lambda one: check(tool, one[0], str(one[1]), given.patience), asked)
        for (name, at), outcome in zip(asked, outcomes, strict=True):
            shown = outcome.worth_reading if outcome.bad else []
            print(f"{name:10} {SHAPES[at]}: {outcome.words}", *shown, sep="\n    ", flush=True)
            bad |= outcome.bad
    return int(bad)


def find_sanitizer(places: Sequence[str] = PLACES) -> str | None:
    """The binary on PATH, or in the newest CUDA toolkit that has one."""
    found = [path for place in places for path in sorted(glob(f"{place}/compute-sanitizer"), reverse=True)]
    return shutil.which("compute-sanitizer") or next(filter(os.path.isfile, found), None)


def check(sanitizer: str, tool: str, what: str, patience_s: float) -> Outcome:
    """One tool on one shape (its number) or on the planted error, in a process of its own."""
    helped = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False).stdout
    name = "--kernel-name" if "--kernel-name" in helped else "--kernel-regex"  # as older ones call it
    command = [
        sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "application-only",
        name, "kns=flash", sys.executable, __file__, "--child", what,
    ]  # fmt: skip
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            text, _ = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the child too, which may hang in a kernel
            return Outcome(f"timeout after {patience_s:.0f} s", bad=False)
    took = f"({time.perf_counter() - began:.0f} s)"
    if process.returncode == 0:
        return Outcome(f"clean {took}", bad=False, text=text)
    if tool == "racecheck" and (hazards := explained(text)):
        return Outcome(f"clean but for {hazards} explained hazards {took}", bad=False, text=text)
    # An access that is not allowed ends the process with a code of its own.
    found = process.returncode == FOUND or re.search(r"SUMMARY: [1-9]", text)
    words = "errors" if found else f"failed with {process.returncode}"
    return Outcome(f"{words} {took}", bad=True, text=text)


def explained(text: str) -> int:
    """How many hazards racecheck reports, if barriers that it does not follow order all of them; else 0."""
    count, first = 0, None
    for line in text.splitlines():
        place = re.search(r"access at \S+ in (\w+\.py):(\d+)", line)
        if "Race reported" in line:
            first = place and order_of(place[1], int(place[2]))
            if first is None:
                return 0
        elif place:
            if order_of(place[1], int(place[2])) != first:
                return 0
            count += 1
    return count


def order_of(file: str, line: int) -> str | None:
    """How the accesses of a line of one of our kernels are ordered; None where nothing above says so."""
    source = (KERNELS / file).read_text() if (KERNELS / file).is_file() else ""
    lines = source.splitlines()
    if line > len(lines):  # Triton's own files may have the same name
        return None
    for text, order in ORDERED_LINES.items():
        if text in lines[line - 1]:
            return order
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0):
            return ORDERED.get(node.name)
    return None


def run_child(what: str) -> None:
    """Forward and backward of one shape, both ways of summing dQ; or the planted error."""
    import torch

    if what == PLANTED:
        plant()
        return
    from perfkit.kernels.attention import flash, hopper

    shape = SHAPES[int(what)]
    dtype = getattr(torch, shape.dtype)

    def draw(heads: int, rows: int) -> torch.Tensor:
        return torch.randn(1, heads, rows, shape.head_dim, device="cuda", dtype=dtype, requires_grad=True)

    q, k, v = (
        draw(heads, rows)
        for heads, rows in ((shape.heads, shape.seq_q), *[(shape.kv_heads, shape.seq_k)] * 2)
    )
    functions = [flash.attention]
    if shape.path == "hopper":
        functions = [partial(hopper.attention, deterministic=fixed) for fixed in (False, True)]
    for attention in functions:
        out = attention(q, k, v, causal=shape.causal)
        for result in (out, *torch.autograd.grad(out, (q, k, v), torch.randn_like(out))):
            assert result.isfinite().all()
    torch.cuda.synchronize()


def plant() -> None:
    """The portable forward kernel on a Q of which only the first 64 bytes are there."""
    import torch

    from perfkit.kernels.attention import flash

    q, k, v = (torch.randn(1, 1, 128, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    q.untyped_storage().resize_(64)
    flash.forward(q, k, v, descriptors=False)
    torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
