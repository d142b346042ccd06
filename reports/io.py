"""What `perfkit io` prints: the ledger, counted beside modelled, the fitted law, and the lower bounds."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from perfkit.analysis.io_model import Deviation, Held, Subject
from perfkit.analysis.law import LAWS, FittedLaw, fit_all
from perfkit.model.traffic import Traffic
from perfkit.model.units import short_count, show, significant
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import by_tensor
from perfkit.reports.grid import Column, Row, grid
from perfkit.reports.places import common


def render(
    op: str,
    w: AttentionWorkload,
    subjects: Sequence[Subject],
    counts: Mapping[str, Held],
    swept: bool,
    width: int = 80,
) -> RenderableType:
    """The whole output; `counts` by implementation where the kernels were executed."""
    parts: list[RenderableType] = [Text(op, "bold"), Text(common([w])), Text()]
    parts += [_title("Ledger", "bytes of each kernel and tensor"), ledgers(subjects, counts, width)]
    parts += [_note(text) for text in _remarks(subjects, counts)]
    near = [subject for subject in subjects if subject.distance is not None]
    if near:
        parts += [Text(), _title("Lower bounds", "elements a head"), lower_bounds(near, width)]
    if swept:
        fits = [one for subject in subjects for one in fit_all(subject.row)]
        parts += [Text(), _title("The law", "bytes against N, d and M"), laws(fits, width)]
    return Group(*parts)


def _note(text: str) -> RenderableType:
    return Padding(Text(text, "dim"), (0, 0, 0, 2), expand=False)


def _remarks(subjects: Sequence[Subject], counts: Mapping[str, Held]) -> Iterator[str]:
    """The tiles, how the counts were made, and why some differ; what is true of several is said once."""
    for subject in subjects:
        if subject.uses:
            tiles = ", ".join(f"{use.kernel} {use.block_m}x{use.block_n}" for use in subject.uses)
            yield f"{subject.row.name}: tiles {tiles}"
    yield from dict.fromkeys(note for held in counts.values() for note in held.notes)
    reasons = ((d, name) for name, held in counts.items() for d in held.deviations if d.reason)
    yield from dict.fromkeys(f"{name}, {d.kernel}: {d.reason}" for d, name in reasons)


def _title(name: str, what: str) -> Text:
    return Text.assemble((name, "bold"), (f"  {what}", "dim"))


def ledgers(subjects: Sequence[Subject], counts: Mapping[str, Held], width: int) -> RenderableType:
    """Bytes of each kernel and tensor by the closed form, and whether executing the kernels gave the same."""
    right = ("read", "written")
    names = ("impl", "kernel", "tensor", "level", *right, *(("counted",) if counts else ()))
    columns = tuple(
        Column(name=name, justify="right" if name in right else "left", wide=name == "counted")
        for name in names
    )
    return grid(columns, [row for one in subjects for row in _rows(one, counts.get(one.row.name))], width)


def _rows(subject: Subject, held: Held | None) -> Iterator[Row]:
    modelled = by_tensor(subject.ledger)
    differing = {(d.kernel, d.tensor): d for d in held.deviations} if held else {}
    name, last = subject.row.name, ""
    for key in {**modelled, **differing}:
        moved = modelled.get(key, Traffic(read_bytes=0, write_bytes=0))
        cells = [name, key[0] if key[0] != last else "", key[1], subject.level if name else ""]
        cells += [show(moved.read_bytes, "bytes"), show(moved.write_bytes, "bytes")]
        if held is not None:
            cells.append(deviation_text(moved, differing[key]) if key in differing else "equal")
        yield Row(cells=tuple(cells))
        name, last = "", key[0]


def deviation_text(modelled: Traffic, found: Deviation) -> str:
    """By how many bytes a count differs, and whether that is explained."""
    read = found.counted.read_bytes - modelled.read_bytes
    written = found.counted.write_bytes - modelled.write_bytes
    sides = [f"{name} {off:+,} B" for name, off in (("read", read), ("written", written)) if off]
    return f"{'explained' if found.reason else 'DIFFERS'}: {', '.join(sides)}"


def laws(found: Sequence[FittedLaw], width: int) -> RenderableType:
    """Exponent with its interval, and constant, of every sweep beside the law's."""
    names = ("impl", "varied", "range", "exponent", "law", "constant", "literal", "verdict")
    right = ("exponent", "law", "constant", "literal")
    columns = tuple(Column(name=name, justify="right" if name in right else "left") for name in names)
    rows, last = [], ""
    for one in found:
        impl, law = one.sweep.impl, LAWS[one.sweep.impl]
        cells = (
            "" if impl == last else impl, one.sweep.variable, _range(one), _exponent(one), f"{one.law:g}",
            significant(one.constant, 4), f"{law.constant:g}", one.verdict.status,
        )  # fmt: skip
        rows.append(Row(cells=cells))
        last = impl
    sources = dict.fromkeys(f"{one.sweep.impl}: {LAWS[one.sweep.impl].source}" for one in found)
    note = "modelled bytes of matrices; else N is 64k and d 64, and where d varies on-chip bytes do not"
    return Group(grid(columns, rows, width), *(_note(line) for line in (note, *sources)))


def _range(one: FittedLaw) -> str:
    if one.sweep.variable == "M" and LAWS[one.sweep.impl].tile is None:
        return "no tile"
    return " to ".join(short_count(int(one.sweep.trials[at].x)) for at in (0, -1))


def _exponent(one: FittedLaw) -> str:
    fit = one.fit
    if fit.low is None or fit.high is None:
        return f"{fit.exponent:.4f}"
    return f"{fit.exponent:.4f} ±{(fit.high - fit.low) / 2:.4f}"


def lower_bounds(subjects: Sequence[Subject], width: int) -> RenderableType:
    """What is moved beside what nothing can go below, for the M of each implementation's tile."""
    columns = (
        Column(name="impl", justify="left"), Column(name="M"), Column(name="moved"),
        Column(name="compulsory"), Column(name="N^2 d^2/M"), Column(name="N^2 d/sqrt M"),
        Column(name="regime", justify="left"), Column(name="over least"),
    )  # fmt: skip
    rows = []
    for subject in subjects:
        found = subject.distance
        if found is not None:
            least = found.bounds
            numbers = (found.moved, least.compulsory, least.flash, least.square)
            shown = (f"{number:.3g}" for number in numbers)
            over = f"{significant(found.moved / least.least)}x"
            rows.append(Row(cells=(subject.row.name, f"{found.memory:,.0f}", *shown, least.regime, over)))
    note = "bounds without constants: FA1 Proposition 3; Saha and Ye, arXiv 2402.07443, Theorem 3.1"
    return Group(grid(columns, rows, width), _note(note))
