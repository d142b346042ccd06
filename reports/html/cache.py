"""What `perfkit cache` found as one HTML file: memory by what it does, and requests at once, over steps."""

from collections.abc import Iterator, Sequence
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from perfkit.analysis.cache_outcome import CacheStudy, Outcome
from perfkit.analysis.cache_waste import Step
from perfkit.model.units import show
from perfkit.reports import cache as tables
from perfkit.reports.cache_files import as_csv, as_json
from perfkit.reports.cache_plot import round_ticks
from perfkit.reports.cache_words import NOTES, sentences, subject
from perfkit.reports.html.cells import CLASSES, Cell, Look, Looks, Row, Table, columns
from perfkit.reports.html.embed import Download, packed, plain, plotly, plotly_notice, script_json
from perfkit.reports.html.figure import Figure, Layout, Trace
from perfkit.reports.html.looks import DARK, LIGHT, SYMBOLS
from perfkit.reports.sweep_ticks import bytes_label

#: What a slot does -> its hue, in the order in which they are stacked.
_PARTS: Final = {"tokens": 2, "later": 4, "never": 1, "holes": 5}


def as_html(study: CacheStudy) -> bytes:
    """The file, the same bytes for the same study."""
    names = [one.policy.name for one in study.outcomes]
    symbols = tuple(SYMBOLS)
    of_parts = {name: Look(index=i, hue=hue, symbol="square") for i, (name, hue) in enumerate(_PARTS.items())}
    of_policies = {
        name: Look(index=len(_PARTS) + i, hue=i % len(LIGHT), symbol=symbols[i % len(symbols)])
        for i, name in enumerate(names)
    }
    memory = [_memory(study, one, i, of_parts) for i, one in enumerate(study.outcomes)]
    batch = _batch(study, of_policies)
    page = (
        _environment()
        .get_template("cache.html.j2")
        .render(
            subject=tuple(subject(study)),
            sentences=tuple(sentences(study)),
            notes=NOTES,
            memory_table=_table("Memory", tables.MEMORY, tables.memory_rows(study)),
            request_table=_table("Requests", tables.REQUESTS, tables.request_rows(study)),
            memory=memory,
            batch=batch,
            parts_looks=of_parts,
            policy_looks=of_policies,
            looks={**of_parts, **of_policies},
            symbols=SYMBOLS,
            light=LIGHT,
            dark=DARK,
            classes=CLASSES,
            figures=Markup(script_json([*memory, batch])),
            downloads=tuple(_downloads(study)),
            plotly=Markup(plotly()),
            notice=plotly_notice(),
        )
    )
    return page.encode()


def _environment() -> Environment:
    """As for reports of records: whatever comes from a file is text, an undefined name is an error."""
    return Environment(
        loader=PackageLoader("perfkit.reports.html"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    body = (Row(cells=tuple(Cell(text=text, number=at > 0) for at, text in enumerate(row))) for row in rows)
    return Table(caption=caption, columns=columns(*names), rows=tuple(body))


def _memory(study: CacheStudy, one: Outcome, index: int, looks: Looks) -> Figure:
    """What slots do, stacked, from 0 to the whole memory."""
    top, last = float(study.memory_bytes), _last(study)
    ticks = {at: bytes_label(at) if at else "0" for at in round_ticks(top, 5)}
    return Figure(
        id=f"memory-{index}",
        title=one.policy.name,
        data=list(_areas(study, one, looks)),
        layout={"xaxis": _axis("decode step", last, _steps(last)), "yaxis": _axis("", top, ticks)},
    )


def _areas(study: CacheStudy, one: Outcome, looks: Looks) -> Iterator[Trace]:
    scale = study.shape.token_bytes
    for name, look in looks.items():
        values = [_slots(step, name) * scale for step in one.timeline]
        yield {
            "type": "scatter", "mode": "lines", "stackgroup": "memory", "name": name,
            "x": _xs(one), "y": values, "line": {"width": 0.5},
            "text": [
                f"<b>{plain(one.policy.name)}</b>, step {at:,}<br>{name}: {show(value, 'bytes')}"
                for at, value in zip(_xs(one), values, strict=True)
            ],
            "meta": {"hue": look.hue, "look": look.index},
        }  # fmt: skip


def _slots(step: Step, name: str) -> int:
    slots = step.slots
    return {
        "tokens": slots.used,
        "later": slots.reserved,
        "never": slots.unused,
        "holes": slots.external,
    }[name]


def _batch(study: CacheStudy, looks: Looks) -> Figure:
    """Requests in the cache, a line for each policy."""
    last = _last(study)
    top = 1.05 * max(one.peak_batch for one in study.outcomes)
    data: list[Trace] = []
    for one in study.outcomes:
        look, name = looks[one.policy.name], plain(one.policy.name)
        steps = zip(_xs(one), one.timeline, strict=True)
        data.append({
            "type": "scatter", "mode": "lines", "name": name, "x": _xs(one),
            "y": [step.active for step in one.timeline], "line": {"width": 1.5},
            "text": [
                f"<b>{name}</b>, step {at:,}<br>{step.active} at once, {step.waiting} wait"
                for at, step in steps
            ],
            "meta": {"hue": look.hue, "look": look.index},
        })  # fmt: skip
    ticks = {at: f"{at:,.0f}" for at in round_ticks(top, 5)}
    return Figure(
        id="batch",
        title="requests in the cache",
        data=data,
        layout={"xaxis": _axis("decode step", last, _steps(last)), "yaxis": _axis("", top, ticks)},
    )


def _xs(one: Outcome) -> list[int]:
    """Steps since the first arrival."""
    return [step.at - one.timeline[0].at for step in one.timeline]


def _last(study: CacheStudy) -> float:
    return float(max(max(one.steps for one in study.outcomes) - 1, 1))


def _steps(last: float) -> dict[float, str]:
    return {at: f"{at:,.0f}" for at in round_ticks(last, 6)}


def _axis(title: str, top: float, ticks: dict[float, str]) -> Layout:
    return {
        "title": {"text": title},
        "range": [0, top],
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
    }


def _downloads(study: CacheStudy) -> Iterator[Download]:
    for name, content, words in (
        ("cache.csv", as_csv(study), "one row a number and policy, with its unit"),
        ("cache.json", as_json(study), "everything, with the timelines behind the charts"),
    ):
        yield Download(name=name, description=words, size=len(content), packed=packed(content))
