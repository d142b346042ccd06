"""What `perfkit io` prints: the ledger, counted beside modelled, each level, M, the bounds, and the law."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from perfkit.analysis.held import held, uncounted
from perfkit.analysis.io_check import zeros_counted
from perfkit.analysis.io_model import Subject, subjects
from perfkit.analysis.law import laws
from perfkit.analysis.onchip import on_chip
from perfkit.analysis.regimes import regimes
from perfkit.analysis.study import Study
from perfkit.model.traffic import Traffic
from perfkit.model.units import show, significant
from perfkit.ops.attention_counted import Difference
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import by_tensor
from perfkit.record import Run
from perfkit.reports import levels
from perfkit.reports.grid import Column, Row, grid
from perfkit.reports.kernel_words import needed, tile_words
from perfkit.reports.kv_words import kv_words
from perfkit.reports.law import law_parts
from perfkit.reports.lines import note, title
from perfkit.reports.onchip import memory_table
from perfkit.reports.places import common, place
from perfkit.reports.regimes import regimes_table

#: Up to so many workloads have their ledgers shown tensor by tensor.
LEDGERS = 2


def render(study: Study, width: int = 80) -> RenderableType:
    """The whole output: what was asked for by itself, the trials as their law."""
    record = study.record
    plain = [run for run in record.runs if not run.trial]
    asked = list(dict.fromkeys(run.setting for run in plain))
    found = [one for one in subjects(record) if any(one.run is run for run in plain)]
    parts: list[RenderableType] = [title(f"{record.op} on {record.device.model}"), Text(common(asked))]
    parts += [Text(kv_words(plain)), *provenance(study)]
    if len(asked) <= LEDGERS:
        for w in asked:
            of_workload = [one for one in found if one.run.setting == w]
            where = place(w, asked)
            parts += [Text(), title("Ledger", f"bytes of each kernel and tensor{where and f', {where}'}")]
            parts += [ledgers(record.op, of_workload, width)]
    parts += map(note, dict.fromkeys(_remarks(study, found, plain)))
    if levels.worth_showing(found):
        parts += [Text(), title("Levels", "bytes by the model, counted and measured")]
        parts += [levels.table(found, width)]
    near = [one for one in found if one.distance is not None]
    if near and len(asked) == 1:
        parts += [Text(), title("Lower bounds", "elements a head"), lower_bounds(near, width)]
    parts += _two_regimes(found, asked, width)
    memory = on_chip(record)
    if memory:
        parts += [Text(), title("On-chip memory", "M by the law, and what a thread block holds")]
        parts += [memory_table(memory, width)]
    parts += law_parts(laws(record), width)
    return Group(*parts)


def _two_regimes(
    found: Sequence[Subject], asked: Sequence[AttentionWorkload], width: int
) -> Iterator[RenderableType]:
    """Where the square-tiled algorithm is looked at, on a workload that has both regimes."""
    w = asked[0]
    wanted = any(one.run.impl == "square" for one in found) and len(asked) == 1
    if wanted and w.seq_q == w.seq_k >= w.head_dim:
        yield Text()
        yield title("Two regimes", "elements a head that either algorithm moves, by fast memory M")
        yield regimes_table(regimes(w.seq_q, w.head_dim), width)


def provenance(study: Study) -> Iterator[RenderableType]:
    """That nothing was measured, where nothing was."""
    if study.record.backend == "model":
        yield Text("MODELLED: no number here was measured", "bold yellow")
    elif study.record.backend == "fake":
        yield Text("FAKE: no number here was measured", "bold yellow")


def _remarks(study: Study, found: Sequence[Subject], plain: Sequence[Run]) -> Iterator[str]:
    """The tiles, zeros in what was measured, what failed, how counts were made, and why some differ."""
    for one in found:
        if uses := needed(study.record.op, one.run):
            yield f"{one.run.impl}: {tile_words(uses)}"
    yield from _zeros(plain)
    for run in study.record.runs:
        if run.status not in ("measured", "modelled"):
            yield f"{run.impl}: {run.status}, {run.reason}"
    for run in study.record.runs:
        if reason := uncounted(run):
            yield f"{run.impl}: not counted: {reason}"
    yield from (text for run in plain for text in run.notes)
    for run in plain:
        differing = held(study.record.op, run) or ()
        yield from (f"{run.impl}, {found.kernel}: {found.reason}" for found in differing if found.reason)
    yield from study.record.notes


def _zeros(plain: Sequence[Run]) -> Iterator[str]:
    """What is measured beyond the model, and yet not off it."""
    among = list(dict.fromkeys(run.setting for run in plain))
    for run in plain:
        if zeros := zeros_counted(run):
            where, beyond = place(run.setting, among), run.numbers["l2_zeros_modelled"].reason or ""
            text = f"SM<->L2 'off' is without {show(zeros, 'bytes')} of zeros by TMA {beyond}".rstrip()
            yield f"{run.impl}{f' at {where}' if where else ''}: {text}"


def ledgers(op: str, found: Sequence[Subject], width: int) -> RenderableType:
    """Bytes of each kernel and tensor by the closed form, and whether executing the kernels gave the same."""
    right = ("read", "written")
    counted = any(one.run.counted for one in found)
    names = ("impl", "kernel", "tensor", "level", *right, *(("counted",) if counted else ()))
    columns = tuple(
        Column(name=name, justify="right" if name in right else "left", wide=name == "counted")
        for name in names
    )
    return grid(columns, [row for one in found for row in _rows(op, one, counted)], width)


def _rows(op: str, subject: Subject, counted: bool) -> Iterator[Row]:
    modelled, deviations = by_tensor(subject.ledger), held(op, subject.run)
    differing = {(d.kernel, d.tensor): d for d in deviations or ()}
    name, last = subject.run.impl, ""
    for key in {**modelled, **differing}:
        moved = modelled.get(key, Traffic(read_bytes=0, write_bytes=0))
        cells = [name, key[0] if key[0] != last else "", key[1], subject.level if name else ""]
        cells += [show(moved.read_bytes, "bytes"), show(moved.write_bytes, "bytes")]
        if counted:
            found = differing.get(key)
            cells.append("not counted" if deviations is None else deviation_text(found) if found else "equal")
        yield Row(cells=tuple(cells))
        name, last = "", key[0]


def deviation_text(found: Difference) -> str:
    """By how many bytes a count differs, and whether that is explained."""
    read = found.counted.read_bytes - found.expected.read_bytes
    written = found.counted.write_bytes - found.expected.write_bytes
    sides = [f"{name} {off:+,} B" for name, off in (("read", read), ("written", written)) if off]
    return f"{'explained' if found.reason else 'DIFFERS'}: {', '.join(sides)}"


def lower_bounds(found: Sequence[Subject], width: int) -> RenderableType:
    """What is moved beside what nothing can go below, for the M of each implementation's tile."""
    columns = (
        Column(name="impl", justify="left"), Column(name="M"), Column(name="moved"),
        Column(name="compulsory"), Column(name="N^2 d^2/M"), Column(name="N^2 d/sqrt M"),
        Column(name="regime", justify="left"), Column(name="over least"),
    )  # fmt: skip
    rows = []
    for subject in found:
        near = subject.distance
        if near is not None:
            least = near.bounds
            numbers = (near.moved, least.compulsory, least.flash, least.square)
            shown = (f"{number:.3g}" for number in numbers)
            over = f"{significant(near.moved / least.least)}x"
            rows.append(Row(cells=(subject.run.impl, f"{near.memory:,.0f}", *shown, least.regime, over)))
    source = "bounds without constants: FA1 Proposition 3; Saha and Ye, arXiv 2402.07443, Theorem 3.1"
    return Group(grid(columns, rows, width), note(source))
