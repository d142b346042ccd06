"""What `perfkit reproduce fa1-fig2` prints: Figure 2 of the FlashAttention paper beside this device."""

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from perfkit.analysis.figure2 import MIDDLE, Figure2, Left
from perfkit.analysis.study import Study
from perfkit.ops.attention_figure2 import SOURCE
from perfkit.ops.attention_published import GPT2_PIPELINE
from perfkit.reports import figure2_tables as tables
from perfkit.reports import figure2_words as said
from perfkit.reports.figure2_plot import middle_plots, right_plot
from perfkit.reports.figure2_rows import missing, uncounted
from perfkit.reports.io import provenance
from perfkit.reports.lines import line, note, title
from perfkit.reports.places import common
from perfkit.reports.words import failures


def render(study: Study, figure: Figure2, width: int = 80) -> RenderableType:
    """The whole output: the panels that the record has runs of, and what went wrong."""
    record = study.record
    parts: list[RenderableType] = [title(f"{SOURCE}, Figure 2, on {record.device.model}")]
    parts += [*provenance(study), *figure_parts(figure, width)]
    of_runs = dict.fromkeys(f"{run.impl}: {text}" for run in record.runs for text in run.notes)
    failed = (*failures(study), *uncounted(record.runs))
    notes = (*failed, *of_runs, *(text for text in record.notes if not _told(text, figure)))
    parts += [Text()] * bool(notes) + [*map(note, notes)]
    return Group(*parts)


def _told(text: str, figure: Figure2) -> bool:
    """Whether the left table has already said why there is no measured number."""
    return figure.left is not None and any(reason in text for reason in missing(figure.left))


def figure_parts(figure: Figure2, width: int) -> Iterator[RenderableType]:
    """The panels alone, each below its title."""
    if figure.left is not None:
        yield from _left(figure.left, width)
    if figure.middle:
        yield from _headed(said.MIDDLE_TITLE, [Text(common([MIDDLE])), tables.middle_table(figure.middle)])
        yield note(said.BLOCKS)
        yield from middle_plots(figure.middle, width)
        yield from map(line, said.stall_words(figure))
    if figure.right:
        yield from _headed(said.RIGHT_TITLE, [Text(said.right_place()), tables.right_table(figure.right)])
        yield from right_plot(figure.right, width)
        yield from map(line, said.right_words(figure))
        yield from _headed(said.APPENDIX_TITLE, [tables.appendix_table(figure, width), note(said.APPENDIX)])


def _left(left: Left, width: int) -> Iterator[RenderableType]:
    table = tables.left_table(left)
    yield from _headed(said.LEFT_TITLE, [Text(common([GPT2_PIPELINE])), table])
    yield from map(note, said.left_notes(left))
    yield from _headed(said.STEPS_TITLE, [tables.steps_table(left, width), note(said.steps_note(left))])
    entries = tables.entries_table(left.reconciled, width)
    yield from _headed(said.ENTRIES_TITLE, [entries, note(said.SYMBOLS)])


def _headed(name: str, body: Iterable[RenderableType]) -> Iterator[RenderableType]:
    yield from (Text(), title(name), *body)
