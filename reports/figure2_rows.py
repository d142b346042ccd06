"""What the tables and pictures of Figure 2 hold, alike in the terminal, in HTML and in Markdown."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from perfkit.analysis.figure2 import BlockPoint, Left, SharePoint
from perfkit.analysis.sweeps import Source
from perfkit.model.units import Hint, show
from perfkit.ops import find_op
from perfkit.ops.base import total
from perfkit.record import Run

#: The runs of the left table in the order of their columns.
HERE: Final = ("gpt2", "standard", "flash")

_SHORT: Final = {"flops": "FLOPs", "dram_bytes": "HBM bytes", "time": "runtime"}
_UNITS: Final[dict[Hint, tuple[float, str]]] = {
    "flop": (1e9, "GFLOP"), "bytes": (1e9, "GB"), "time": (1e-3, "ms"),
}  # fmt: skip


class LeftRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the left table: a quantity from one source, None where that source has none.

    `paper` and `formula` are of (standard, flash), `here` is of the runs `HERE`.
    """

    label: str
    source: Source | Literal["printed"]
    hint: Hint
    paper: tuple[float | None, ...] = (None, None)
    formula: tuple[float | None, ...] = (None, None)
    here: tuple[float | None, ...] = (None, None, None)


def _passes(run: Run) -> float | None:
    """Counted bytes of an implementation whose ledger is of DRAM: passes over tensors."""
    row = find_op("attention").implementation(run.impl)
    if not run.counted or row is None or row.io is None or row.io.level != "DRAM":
        return None
    return total(run.counted).total_bytes


_Here = dict[Source, Callable[[Run], float | None]]
_OF: Final[dict[str, _Here]] = {
    "flops": {
        "modelled": lambda run: run.value("flops_issued"),
        "measured": lambda run: run.value("flops_tensor"),
    },
    "dram_bytes": {
        "modelled": lambda run: run.moved("DRAM", "_modelled"),
        "counted": _passes,
        "measured": lambda run: run.moved("DRAM"),
    },
    "time": {"measured": lambda run: run.value("time")},
}
_L2: Final[_Here] = {
    "modelled": lambda run: run.moved("L2", "_modelled"),
    "counted": lambda run: run.moved("L2", "_counted"),
    "measured": lambda run: run.moved("L2"),
}


def left_rows(left: Left) -> tuple[LeftRow, ...]:
    """FLOPs, HBM bytes and runtime: printed, modelled, counted, measured; and the bytes between SMs and L2.

    Lines of which nothing is known are left out.
    """
    found: list[LeftRow] = []
    for figure in left.printed:
        label, hint = _SHORT[figure.tag], figure.hint
        paper = (figure.standard, figure.flash)
        found.append(LeftRow(label=label, source="printed", hint=hint, paper=paper))
        found += _of_runs(left, label, hint, _OF[figure.tag])
    found += _of_runs(left, "SM<->L2", "bytes", _L2)
    return tuple(found)


def _of_runs(left: Left, label: str, hint: Hint, sources: _Here) -> Iterator[LeftRow]:
    by_impl = {run.impl: run for run in left.runs}
    for source, value in sources.items():
        here = tuple(value(by_impl[impl]) if impl in by_impl else None for impl in HERE)
        formula: tuple[float | None, ...] = (None, None)
        if source == "modelled" and label in _SHORT.values():
            formula = tuple(_formula(left, hint, impl) for impl in ("standard", "flash"))
        if any(number is not None for number in (*formula, *here)):
            yield LeftRow(label=label, source=source, hint=hint, formula=formula, here=here)


def _formula(left: Left, hint: Hint, impl: str) -> float:
    """Bytes: the sum that fits. FLOPs: the products of all heads, the most, though they do not fit."""
    entries = [one for one in left.reconciled if (one.hint, one.impl) == (hint, impl)]
    return max(one.value for one in entries if one.fits or hint == "flop")


def missing(left: Left) -> tuple[str, ...]:
    """Why runs of the left table have no time or no measured bytes, each reason once."""
    numbers = (run.numbers.get(tag) for run in left.runs for tag in ("time", "dram_read"))
    return tuple(dict.fromkeys(n.reason for n in numbers if n is not None and n.value is None and n.reason))


#: How the reason begins where nobody tried to count.
_NOT_TRIED: Final = "not counted"


def uncounted(runs: Sequence[Run]) -> tuple[str, ...]:
    """Why executing a run counted nothing, where that was tried."""
    numbers = ((run, run.numbers.get("l2_read_counted")) for run in runs if not run.counted)
    failed = ((run.impl, number.reason) for run, number in numbers if number and number.reason)
    said = (f"{impl}: not counted: {why}" for impl, why in failed if not why.startswith(_NOT_TRIED))
    return tuple(dict.fromkeys(said))


def printed_text(value: float, hint: Hint) -> str:
    """A figure as the paper prints it, with one decimal: `40.3 GB`."""
    scale, unit = _UNITS[hint]
    return f"{value / scale:.1f} {unit}"


def exact_text(value: float, hint: Hint) -> str:
    """What a formula gives, with one decimal more than is printed: `40.27 GB`."""
    scale, unit = _UNITS[hint]
    return f"{value / scale:.2f} {unit}"


def number_text(value: float | None, hint: Hint) -> str:
    """A number in a narrow column; empty where there is none."""
    return "" if value is None else show(value, hint).removesuffix("FLOP")


def block_bytes(points: Sequence[BlockPoint]) -> tuple[Source, tuple[float | None, ...]]:
    """The best source that has SM<->L2 bytes of every point, and these bytes; modelled ones at last."""
    columns: tuple[tuple[Source, tuple[float | None, ...]], ...] = (
        ("measured", tuple(point.l2_measured for point in points)),
        ("counted", tuple(point.l2_counted for point in points)),
        ("modelled", tuple(point.l2_modelled for point in points)),
    )
    return next((found for found in columns if None not in found[1]), columns[-1])


def share_bytes(points: Sequence[SharePoint]) -> tuple[Source, tuple[float | None, ...]]:
    """The same of the right panel, where nothing is counted."""
    measured = tuple(point.l2_measured for point in points)
    if None not in measured:
        return "measured", measured
    return "modelled", tuple(point.l2_modelled for point in points)
