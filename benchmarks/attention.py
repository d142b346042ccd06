"""Exact attention on one Hopper GPU: are the tile variants right, and how fast are we beside every peer?

    python benchmarks/attention.py check [--pass fwd,bwd] [--tiles NAME,...]
    python benchmarks/attention.py time [--pass fwd,bwd] [--cells 64x2048f,...] [--impl NAME,...]
                                        [--without flex,...] [--tiles NAME,...] [--rounds 15]
                                        [--compile-limit 180] [--record FILE]

`check` holds each variant against attention in float32, with poisoned outputs and bitwise repeats: one
process for each compiled kernel, all at once, the smallest problem first. `time` compiles in parallel, then
times our rows, every peer that is installed and the named variants, interleaved, cold L2, bf16,
heads = 2048 // d, batch = 16384 // N. TFLOP/s by convention: 4 N^2 d h B, causal half, backward times 2.5.
Backward includes all launches. A kernel that hangs costs its process and its place in the table. flex is
compiled for each cell and pass: what is not within the limit has no place in the table either. What was is
in torch's cache, for the next run too.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_cases import (
    BASELINE,
    CELLS,
    COMPILE_S,
    PUBLISHED,
    ROW,
    TILES,
    Cell,
    Child,
    brief,
    default_columns,
)
from attention_compile import Lost, place, warm_all

from perfkit.errors import PerfkitError
from perfkit.ops.attention import flops_convention

SCHEMA: Final = "perfkit.attention-benchmark/1"
PASSES: Final = {"fwd": "forward", "bwd": "backward"}
#: The least of cuDNN's rate in the same run that is the first rung.
FIRST_RUNG: Final = {"fwd": 1.0, "bwd": 0.9}
LEGEND: Final = (
    f"TFLOP/s by convention, medians; spread: the largest IQR / median; ratio: {ROW} over {BASELINE}.\n"
    "FA4*: FlashAttention-4's path for Hopper, from another machine.\n"
    f"rung of {ROW}: 1 from 1.0x of {BASELINE} forward and 0.9x backward, 2 from 1.0x, 3 from 1.0x of the\n"
    f"better of {BASELINE} and FA4*."
)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        from attention_gpu import serve

        serve(json.loads(sys.argv[2]))
        return
    arguments = parsed(sys.argv[1:])
    began = time.perf_counter()
    if arguments.command == "check":
        right = check_all(arguments.tiles)
        print(f"right: {' '.join(right) or 'none'}  ({time.perf_counter() - began:.0f} s)")
        sys.exit(len(right) < len(arguments.tiles))
    report = Report(arguments.rounds, arguments.record)
    columns = [name for name in arguments.impl if name not in arguments.without]
    jobs = jobs_of(arguments.passes, arguments.cells, [*columns, *arguments.tiles])
    try:
        lost = warm_all(jobs, arguments.compile_limit)
        print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
        time_all(jobs, arguments.rounds, lost, report)
    except KeyboardInterrupt:
        print("interrupted")
    print(tables(report.cells))
    print(f"{time.perf_counter() - began:.0f} s in all")


def parsed(argv: list[str]) -> argparse.Namespace:
    """The options: passes, cells, impl and tiles as lists."""
    parser = argparse.ArgumentParser(
        prog="attention.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--pass", dest="passes", type=names_of, default=list(PASSES), metavar="fwd,bwd")
    check = commands.add_parser("check", parents=[both], help="hold tile variants against the oracle")
    check.add_argument("--tiles", type=names_of, default=["all"], metavar="NAME,...")
    timed = commands.add_parser("time", parents=[both], help="time ours, the peers and tile variants")
    timed.add_argument("--tiles", type=names_of, default=[], metavar="NAME,...", help="variants; or all")
    timed.add_argument("--cells", type=cells_of, default=CELLS, metavar="64x2048f,...")
    timed.add_argument("--impl", type=names_of, default=default_columns(), metavar="NAME,...")
    timed.add_argument("--without", type=names_of, default=[], metavar="NAME,...", help="rows to leave out")
    timed.add_argument("--rounds", type=int, default=15)
    timed.add_argument(
        "--compile-limit", type=float, default=COMPILE_S, metavar="SECONDS", help="for all of flex together"
    )
    timed.add_argument("--record", type=Path, metavar="FILE", help="JSON, written after each cell")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.passes) - set(PASSES):
        parser.error(f"no such pass: {', '.join(sorted(unknown))} (there are fwd and bwd)")
    known = [name for pass_ in PASSES if pass_ in arguments.passes for name in TILES[pass_]]
    if arguments.tiles == ["all"]:
        arguments.tiles = known
    if unknown := set(arguments.tiles) - set(known):
        parser.error(f"no such variant: {', '.join(sorted(unknown))} (there are {', '.join(known)})")
    if arguments.command == "time":
        if arguments.rounds < 1:
            parser.error("--rounds must be at least 1")
        if unknown := set(arguments.without) - set(arguments.impl):
            parser.error(f"not among the rows: {', '.join(sorted(unknown))}")
    return arguments


def names_of(text: str) -> list[str]:
    return list(dict.fromkeys(name for name in text.split(",") if name))


def cells_of(text: str) -> list[Cell]:
    try:
        cells = [Cell.parse(name) for name in names_of(text)]
        for cell in cells:
            cell.workload("fwd")
        return cells
    except (ValueError, PerfkitError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# The check.


def check_all(names: list[str]) -> list[str]:
    """The names that were right in all checks, each in a process of its own."""
    results: list[tuple[str, Child, list[str], threading.Thread]] = []
    for name in names:
        lines: list[str] = []
        child = Child({"do": "check", "tile": name})
        thread = threading.Thread(target=lambda to=lines, c=child: to.extend(c.lines()))
        thread.start()
        results.append((name, child, lines, thread))
    good: list[str] = []
    for name, child, lines, thread in results:
        thread.join()
        if f"done {name}" in lines:
            good.append(name)
            print(f"== {name}: right", *(line for line in lines if "worst" in line), sep="\n", flush=True)
        else:
            print(f"== {name}: {'HUNG' if child.hung else 'FAILED'}", *lines[-30:], sep="\n", flush=True)
    return good


# The timing.


def jobs_of(passes: Iterable[str], cells: Iterable[Cell], columns: list[str]) -> list[dict[str, Any]]:
    """Each pass and cell with the columns that it has: a variant is of one pass and one head dim."""
    every = {name for variants in TILES.values() for name in variants}

    def has(pass_: str, cell: Cell, name: str) -> bool:
        variant = TILES[pass_].get(name)
        return variant.head_dim == cell.head_dim if variant else name not in every

    return [
        {"pass": pass_, "cell": str(cell), "columns": [name for name in columns if has(pass_, cell, name)]}
        for pass_ in PASSES
        if pass_ in passes
        for cell in cells
    ]


def time_all(jobs: list[dict[str, Any]], rounds: int, lost: Lost, report: "Report") -> None:
    """Times all jobs in one process; after a hang or a crash goes on without the column that it was at."""
    left, lost = list(jobs), dict(lost)
    while left:
        asked = [
            {**job, "columns": [name for name in job["columns"] if place(name, job) not in lost]}
            for job in left
        ]
        child = Child({"do": "time", "jobs": asked, "rounds": rounds})
        at, said = "", ""
        tail: list[str] = []
        for line in child.lines():
            if line.startswith("@ "):
                at, said, tail = line[2:], "", []
            elif line.startswith("! "):
                said = line[2:]
            elif line.startswith("environment {"):
                report.environment = json.loads(line.partition(" ")[2])
            elif line.startswith("cell {"):
                report.add(json.loads(line.partition(" ")[2]), left.pop(0), lost)
                at, said, tail = "", "", []
            elif line:
                tail.append(line)
        if not left:
            return
        why = "hung" if child.hung else f"stopped: {brief(said or (tail[-1] if tail else ''))}"
        where = f"{left[0]['pass']} {left[0]['cell']}"
        print(f"{where} at {at or 'the start'}: {why}", *tail[-8:], sep="\n  ", flush=True)
        if at in left[0]["columns"]:
            lost = {place(at, job): f"{why} (in {where})" for job in left} | lost
            continue
        # Nobody's fault in particular: this cell is given up, and all of them where nothing has begun.
        for job in [left.pop(0) for _ in (left[:1] if at else list(left))]:
            report.add({**job, "columns": {}, "errors": dict.fromkeys(job["columns"], why)}, job, lost)


class Report:
    """What was measured so far, on the screen and in a file."""

    def __init__(self, rounds: int, path: Path | None = None) -> None:
        self.rounds, self.path = rounds, path
        self.environment: dict[str, Any] = {}
        self.cells: list[dict[str, Any]] = []

    def add(self, found: dict[str, Any], job: dict[str, Any], lost: Lost) -> None:
        """Takes what a child says of a job: completes it, prints a line, writes the file.

        `lost` says of columns why the child was not asked for them.
        """
        gone = {name: lost[place(name, job)] for name in job["columns"] if place(name, job) in lost}
        cell = completed({**found, "asked": job["columns"], "errors": {**found["errors"], **gone}})
        self.cells.append(cell)
        rates = "  ".join(f"{name} {column['tflops']:.0f}" for name, column in cell["columns"].items())
        print(f"{cell['pass']} {cell['cell']:10} {rates}", flush=True)
        if self.path is not None:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(self.record(), indent=1) + "\n")
            os.replace(part, self.path)

    def record(self) -> dict[str, Any]:
        """Everything, as JSON has it. Base units: second, hertz, watt; `tflops` by convention."""
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "setting": "bf16, heads = 2048 // d, batch = 16384 // N, cold L2, interleaved",
            "rounds": self.rounds,
            "cells": self.cells,
        }


def completed(found: dict[str, Any]) -> dict[str, Any]:
    """A child's result, and which columns were asked for, with sizes, rates and tiles."""
    pass_, cell = found["pass"], Cell.parse(found["cell"])
    w = cell.workload(pass_)
    flops = flops_convention(w)
    columns = {
        name: {
            **column,
            "tflops": flops / column["median_s"] / 1e12,
            "tile": TILES[pass_][name].tile._asdict() if name in TILES[pass_] else None,
        }
        for name, column in found["columns"].items()
    }
    return {
        "pass": pass_,
        "cell": found["cell"],
        "batch": w.batch,
        "heads": w.heads,
        "seq": cell.seq,
        "head_dim": cell.head_dim,
        "causal": cell.causal,
        "flops": flops,
        "sm_clock_hz": found.get("sm_clock_hz"),
        "power_w": found.get("power_w"),
        "asked": found["asked"],
        "columns": columns,
        "errors": found["errors"],
    }


# The table.


def rung(pass_: str, ours: float | None, baseline: float | None, published: float | None) -> int | None:
    """How far up, 0 to 3 (see LEGEND); None without our rate, or that of cuDNN in the same run."""
    if ours is None or baseline is None:
        return None
    if ours < FIRST_RUNG[pass_] * baseline:
        return 0
    if ours < baseline:
        return 1
    return 3 if published is not None and ours >= max(baseline, published) else 2


def tables(cells: list[dict[str, Any]]) -> str:
    """One table for each pass and head dim, the reasons for what is missing, and the legend."""
    parts = []
    for pass_, head_dim in dict.fromkeys((cell["pass"], cell["head_dim"]) for cell in cells):
        mine = [cell for cell in cells if (cell["pass"], cell["head_dim"]) == (pass_, head_dim)]
        parts.append(f"\n{PASSES[pass_]}, d {head_dim}\n{table(mine)}")
    return "\n".join([*parts, *missing(cells), "", LEGEND])


def table(cells: list[dict[str, Any]]) -> str:
    """Rows of one pass and head dim."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["asked"]))
    rows = [["cell", *names, "ratio", "FA4*", "rung", "spread", "MHz", "W"]]
    rows += [[cell["cell"], *(rate_of(cell, name) for name in names), *ends(cell)] for cell in cells]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) if not at else text.rjust(width)
                  for at, (text, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def rate_of(cell: dict[str, Any], name: str) -> str:
    return shown(cell["columns"].get(name, {}).get("tflops"), "{:.0f}")


def ends(cell: dict[str, Any]) -> list[str]:
    """Ratio, published figure, rung, spread, clock and power of a cell."""
    rates = {name: column["tflops"] for name, column in cell["columns"].items()}
    ours, baseline = rates.get(ROW), rates.get(BASELINE)
    published = PUBLISHED.get((cell["pass"], Cell.parse(cell["cell"])))
    spreads = [spread(column) for column in cell["columns"].values()]
    return [
        shown(ours / baseline if ours and baseline else None, "{:.3f}"),
        shown(published, "{:.0f}"),
        shown(rung(cell["pass"], ours, baseline, published), "{}"),
        shown(max(spreads, default=None), "{:.1%}"),
        shown(cell["sm_clock_hz"], "{:.0f}", 1e6),
        shown(cell["power_w"], "{:.0f}"),
    ]


def spread(column: dict[str, Any]) -> float:
    """The distance of the quartiles over the median."""
    low, high = column["quartiles_s"]
    return float((high - low) / column["median_s"])


def shown(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else form.format(value / unit if unit != 1 else value)


def missing(cells: list[dict[str, Any]]) -> list[str]:
    """A line for each column and reason, with the cells."""
    where: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for name, why in cell["errors"].items():
            where.setdefault((name, why), []).append(f"{cell['pass']} {cell['cell']}")
    return ["", *(f"- {name}: {why} ({scope(found, len(cells))})" for (name, why), found in where.items())]


def scope(found: list[str], all_of_them: int) -> str:
    return "everywhere" if len(found) == all_of_them else ", ".join(found)


if __name__ == "__main__":
    main()
