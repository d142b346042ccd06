"""The compilation before the timing of `benchmarks/attention.py`: in parallel, in processes of its own.

What is compiled is found in the caches of Triton and torch on disk, by this run and by later ones.
"""

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from attention_cases import COMPILE_S, COMPILED, TILES, Cell, Child, brief

from perfkit.ops import find_op

#: Processes in which torch compiles at a time.
COMPILERS: Final = min(os.cpu_count() or 1, 8)
#: (column, pass, cell) -> why it is not timed.
Lost = dict[tuple[str, str, str], str]


def place(name: str, job: dict[str, Any]) -> tuple[str, str, str]:
    """Where a column of a job is in the table."""
    return name, job["pass"], job["cell"]


def warm_all(jobs: list[dict[str, Any]], limit_s: float = COMPILE_S) -> Lost:
    """Fills the caches with what the jobs need. What is not to be timed, and why.

    One process for a variant and for a row's head dim and mask, all at once; beside them COMPILERS at a time
    for the peers that torch compiles, one for each cell and pass, the backward ones, which take longest,
    first. Of ours only who hung is lost: whatever else goes wrong will do so again when it is timed, and is
    reported there.
    """
    until = time.monotonic() + limit_s
    ours = list(compiled_together(jobs))
    theirs = [(name, job) for job in reversed(jobs) for name in job["columns"] if name in COMPILED]
    began, count = time.perf_counter(), itertools.count(1)

    def compiled(one: tuple[str, dict[str, Any]]) -> str | None:
        why = compile_peer(*one, until, limit_s)
        done = f"{next(count)} of {len(theirs)}, {time.perf_counter() - began:.0f} s"
        print(f"{' '.join(place(*one))}: {why or 'compiled'} ({done})", flush=True)
        return why

    lost: Lost = {}
    with ThreadPoolExecutor(len(ours) or 1) as all_of_ours, ThreadPoolExecutor(COMPILERS) as some:
        hangs = all_of_ours.map(where_hung, ours)
        for (name, job), why in zip(theirs, some.map(compiled, theirs), strict=True):
            if why is not None:
                lost[place(name, job)] = why
        for mine, at in zip(ours, hangs, strict=True):
            if at is not None:
                why = f"hung while it was compiled for {at}"
                lost |= {place(mine[0]["columns"][0], job): why for job in jobs}
    return lost


def compiled_together(jobs: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The jobs of each process, of one column: a variant, or a row of ours with a head dim and mask."""
    shared: dict[Any, list[dict[str, Any]]] = {}
    for job in jobs:
        cell = Cell.parse(job["cell"])
        for name in job["columns"]:
            row = find_op("attention").implementation(name)
            if row is None and name not in TILES[job["pass"]]:
                continue
            if row is None or row.role == "shipped":
                key = (name, cell.head_dim, cell.causal) if row else name
                shared.setdefault(key, []).append({**job, "columns": [name]})
    yield from shared.values()


def where_hung(mine: list[dict[str, Any]]) -> str | None:
    """Runs the jobs in a process; the pass and cell at which it hung, if so."""
    child = Child({"do": "warm", "jobs": mine})
    ready = sum(line.startswith("warm ") for line in child.lines())
    at = mine[min(ready, len(mine) - 1)]
    return f"{at['pass']} {at['cell']}" if child.hung else None


def compile_peer(name: str, job: dict[str, Any], until: float, limit_s: float) -> str | None:
    """Compiles a peer for one cell and pass in a process; why it cannot be timed, if so."""
    late = f"not compiled within {limit_s:.0f} s"
    if time.monotonic() >= until:
        return late
    child = Child({"do": "warm", "jobs": [{**job, "columns": [name]}]})
    ready, why, said = False, None, ""
    for line in child.lines(until):
        ready = ready or line.startswith("warm ")
        why = line[2:] if line.startswith("! ") else why
        said = line or said
    if ready:
        return why
    return late if child.hung else f"stopped: {brief(said)}"
