"""The decode map in the HTML report: shares of bandwidth as a field for each map, all cells as a table."""

from collections.abc import Iterator, Sequence

from perfkit.analysis.decode_map import DecodeCell, DecodeMap, by_family
from perfkit.analysis.decode_rivals import pace
from perfkit.model.units import short_count, show
from perfkit.record import Provenance
from perfkit.reports import decode_map_words as said
from perfkit.reports.html.cells import (
    MARKS,
    Cell,
    Column,
    Looks,
    Row,
    Table,
    absent,
    columns,
    once,
    shown,
    words,
)
from perfkit.reports.html.embed import plain
from perfkit.reports.html.figure import Figure, Layout, Trace
from perfkit.reports.html.law import Chart


def decode_chart(maps: Sequence[DecodeMap], name: str) -> Chart:
    """A field for each map that has numbers: contexts to the right, batches down."""
    known = [one for one in maps if one.known]
    figures = tuple(_figure(one, f"{name}-{at}", len(by_family(maps)) > 1) for at, one in enumerate(known))
    return Chart(figures=figures, looks={}, sources=())


def _figure(one: DecodeMap, name: str, several: bool) -> Figure:
    about = f", {said.about(one)}" if several else ""
    return Figure(
        id=name,
        title=f"{one.impl}: K and V read, share of DRAM's bandwidth{about}",
        data=[_field(one)],
        layout={
            "xaxis": _category("context", [short_count(context) for context in one.contexts]),
            "yaxis": {**_category("batch", [str(batch) for batch in one.batches]), "autorange": "reversed"},
        },
    )


def _field(one: DecodeMap) -> Trace:
    """Colour is the share, from none to all of the bandwidth, so that fields can be compared."""
    rows = [one.row(batch) for batch in one.batches]
    return {
        "type": "heatmap", "name": plain(one.impl), "zmin": 0, "zmax": 1, "showscale": False,
        "x": [short_count(context) for context in one.contexts], "y": [str(batch) for batch in one.batches],
        "z": [[cell.share for cell in row] for row in rows],
        "text": [[_label(cell) for cell in row] for row in rows], "texttemplate": "%{text}",
        "hovertext": [[_hover(one.impl, cell) for cell in row] for row in rows],
        "xgap": 2, "ygap": 2, "meta": {"hue": 0},
    }  # fmt: skip


def _label(cell: DecodeCell) -> str:
    if cell.rate is None:
        return said.absent(cell)
    return f"{show(cell.rate, 'byte_rate')}<br>{said.share_text(cell.share)}{said.mark(cell)}"


def _hover(impl: str, cell: DecodeCell) -> str:
    head = f"<b>{plain(impl)}</b>, batch {cell.batch}, N_k {short_count(cell.context)}"
    if cell.reason is not None:
        return f"{head}<br>{plain(cell.reason)}"
    of_layer = f"tokens/s of one layer: {said.tokens_text(cell)}"
    return f"{head}<br>{plain(said.rate_text(cell))}<br>{of_layer}<br>bound: {said.bound_text(cell)}"


def _category(title: str, names: Sequence[str]) -> Layout:
    return {
        "title": {"text": title},
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(names),
    }


def decode_table(maps: Sequence[DecodeMap], looks: Looks) -> Table:
    """A row for each implementation, batch and context; families below a heading where there are several."""
    families = by_family(maps)
    rows: list[Row] = []
    for family in families:
        if len(families) > 1:
            rows.append(Row(heading=said.about(family[0])))
        for one in family:
            found = [
                tuple(_cells(family[0], one, at, looks, _contested(families))) for at in range(len(one.cells))
            ]
            rows += [Row(cells=cells) for cells in once(once(found, 1), 0)]
    return Table(caption="Decode map", columns=_head(families), rows=tuple(rows))


def _head(families: Sequence[Sequence[DecodeMap]]) -> tuple[Column, ...]:
    firsts = " or ".join(dict.fromkeys(family[0].impl for family in families))
    beside = (f"times as fast as {firsts}",) if _contested(families) else ()
    return columns(
        "implementation", "batch", "context", "time", "K and V read", "of DRAM's bandwidth", "tokens/s",
        "at most", "bound", "least time over time", *beside, text=("bound",),
    )  # fmt: skip


def _contested(families: Sequence[Sequence[DecodeMap]]) -> bool:
    return any(len(family) > 1 for family in families)


def _cells(first: DecodeMap, one: DecodeMap, at: int, looks: Looks, contested: bool) -> Iterator[Cell]:
    cell = one.cells[at]
    reason, source = cell.reason, cell.provenance
    least = "modelled: the least time" if source == "modelled" else None
    yield Cell(text=one.impl, look=looks.get(one.impl), kind="impl")
    yield Cell(text=str(cell.batch), number=True)
    yield Cell(text=short_count(cell.context), number=True)
    yield _invalid(cell) or shown(cell.time_s, "time", source, reason, least)
    yield shown(cell.rate, "byte_rate", source, reason)
    yield shown(cell.share, "percent", source, reason or "the bandwidth of DRAM is not known")
    yield _tokens(cell.tokens_per_s, source, reason)
    yield _tokens(cell.most_tokens_per_s, "modelled", reason or "no floor is known")
    yield words(cell.bound or "-", note=reason)
    yield shown(cell.of_least, "percent", source, reason or "no time was measured")
    if contested:
        yield _pace(first.cells[at], cell) if one is not first else words("")


def _invalid(cell: DecodeCell) -> Cell | None:
    """What stands for a time that cannot be true."""
    if cell.placement is None or not cell.placement.invalid:
        return None
    return Cell(text="INVALID", kind="bad", note=cell.placement.invalid, number=True)


def _tokens(value: float | None, source: Provenance, reason: str | None) -> Cell:
    if value is None:
        return absent(reason)
    return Cell(text=said.count_text(value) + MARKS[source], kind=source, number=True)


def _pace(base: DecodeCell, cell: DecodeCell) -> Cell:
    between = pace(base, cell)
    if between is None:
        return absent(cell.reason or base.reason or "not both were measured")
    sure = between.apart or cell.provenance == "modelled"
    note = None if sure else "the samples do not tell them apart"
    text = f"{'' if sure else '~'}{between.ratio:.2f}x{MARKS[cell.provenance]}"
    return Cell(text=text, kind=cell.provenance, note=note, number=True)
