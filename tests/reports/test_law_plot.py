"""Pictures of the law: where the letters stand, what is drawn and what is not, and the legend."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from perfkit.analysis.law import FittedLaw, laws
from perfkit.measure.model_backend import ModelBackend
from perfkit.model.catalogue import load
from perfkit.model.units import short_count
from perfkit.record import Record
from perfkit.reports.law import law_parts
from perfkit.reports.law_plot import drawn, law_plots, letters, line
from perfkit.reports.sweep_plot import HEIGHT

MakeSwept = Callable[..., Record]
ALL = ("standard", "flash1", "flash")


def parts(found: tuple[FittedLaw, ...], width: int = 80) -> dict[str, list[str]]:
    """The lines of each picture below its title; those of the legend below `legend`."""
    pictures: dict[str, list[str]] = {"legend": []}
    title = "legend"
    for part in law_plots(found, width):
        assert isinstance(part, Text)
        lines = part.plain.splitlines()
        if len(lines) > 1:
            pictures[title] = lines
            title = "legend"
        elif lines[0].startswith("bytes against "):
            title = lines[0].removeprefix("bytes against ")
        elif lines[0].startswith("DRAM bytes against "):
            title = f"DRAM {lines[0].removeprefix('DRAM bytes against ').split(' (')[0]}"
        else:
            pictures["legend"] += lines
    return pictures


def marks(picture: list[str], letter: str) -> list[tuple[int, int]]:
    """Where a letter stands inside the frame, as (column, row), by column."""
    lines = [line.replace("┤", "│") for line in picture]
    inside = [line.split("│")[1] for line in lines if line.count("│") == 2]
    return sorted((c, r) for r, text in enumerate(inside) for c, sign in enumerate(text) if sign == letter)


def one_of(found: tuple[FittedLaw, ...], impl: str, source: str, variable: str, level: str) -> FittedLaw:
    (one,) = [
        one
        for one in found
        if (one.sweep.impl, one.source, one.sweep.variable, one.level) == (impl, source, variable, level)
    ]
    return one


def test_a_panel_for_each_variable_with_a_letter_for_each_point(swept: MakeSwept) -> None:
    found = laws(swept(*ALL))
    pictures = parts(found)
    titles = ["N", "d, on-chip bytes fixed", "M in elements"]
    assert list(pictures) == ["legend", *titles, *(f"DRAM {title}" for title in titles)]
    # At DRAM only what has its law between SMs and L2: not standard, A.
    assert [bool(marks(pictures["DRAM N"], letter)) for letter in "ABC"] == [False, True, True]
    assert letters(found) == {("measured", "standard"): "A", ("measured", "flash1"): "B",
                              ("measured", "flash"): "C"}  # fmt: skip
    titles = {"N": "N", "d": "d, on-chip bytes fixed", "M": "M in elements"}
    for (_, impl), letter in letters(found).items():
        level = "DRAM" if impl == "standard" else "L2"
        for variable, title in titles.items():
            if (impl, variable) == ("standard", "M"):
                assert marks(pictures[title], letter) == []  # nothing of it stays on chip
            else:
                points = one_of(found, impl, "measured", variable, level).xs
                assert len(marks(pictures[title], letter)) == len(points)


def test_letters_rise_as_the_exponents_say(swept: MakeSwept) -> None:
    """flash: bytes grow with the square of N and of d, and fall as M grows; standard's do not know d."""
    found = laws(swept("standard", "flash"))
    pictures = parts(found)
    by_length = [row for _, row in marks(pictures["N"], "B")]
    steps = [low - high for low, high in pairwise(by_length)]
    assert min(steps) > 0
    assert max(steps) - min(steps) <= 1  # each N is twice the one before
    flat = [row for _, row in marks(pictures["d, on-chip bytes fixed"], "A")]
    assert len(set(flat)) == 1
    wide = [row for _, row in marks(pictures["d, on-chip bytes fixed"], "B")]
    assert wide == sorted(wide, reverse=True)
    assert len(set(wide)) == len(wide) >= 3
    more = [row for _, row in marks(pictures["M in elements"], "B")]
    assert more == sorted(more)
    assert len(set(more)) == len(more) >= 3


def test_the_line_goes_through_the_last_point_with_the_laws_slope(swept: MakeSwept) -> None:
    found = laws(swept("standard", "flash"))
    for impl, level, variable, exponent in (
        ("flash", "L2", "N", 2),
        ("flash", "L2", "d", 2),
        ("flash", "L2", "M", -1),
        ("standard", "DRAM", "d", 0),
    ):
        one = one_of(found, impl, "measured", variable, level)
        (x0, y0), (x1, y1) = line(one)
        assert (x0, x1, y1) == (one.xs[0], one.xs[-1], one.traffic[-1])
        assert y1 / y0 == pytest.approx((x1 / x0) ** exponent)


def test_counted_and_measured_have_letters_of_their_own(swept: MakeSwept) -> None:
    found = laws(swept("flash", counted=True))
    assert letters(found) == {("measured", "flash"): "A", ("counted", "flash"): "B"}
    picture = parts(found)["N"]
    assert len(marks(picture, "A")) == len(one_of(found, "flash", "measured", "N", "L2").xs)
    assert len(marks(picture, "B")) == len(one_of(found, "flash", "counted", "N", "L2").xs)
    assert parts(found)["legend"] == [
        "measured: A flash (SM<->L2)",
        "counted: B flash (SM<->L2)",
        "lines: the slope of the law, through the last point of each",
    ]


def test_equal_points_of_two_sources_stand_side_by_side(swept: MakeSwept) -> None:
    """The fake counts what the model says: where both sweeps have a point, it is at the same place."""
    found = laws(swept("flash", counted=True))
    picture = parts(found)["N"]
    xs = [set(one_of(found, "flash", source, "N", "L2").xs) for source in ("measured", "counted")]
    beside = {(column + 1, row) for column, row in marks(picture, "A")} & set(marks(picture, "B"))
    assert len(beside) == len(xs[0] & xs[1]) >= 2


def test_modelled_bytes_are_drawn_where_nothing_was_measured(swept: MakeSwept) -> None:
    modelled = laws(swept("standard", "flash", backend=ModelBackend(load("h200-141gb-sxm"), "no GPU")))
    assert {one.source for one in modelled} == {"modelled"} == {one.source for one in drawn(modelled)}
    assert parts(modelled)["legend"][0] == "modelled: A standard (DRAM), B flash (SM<->L2)"
    measured = laws(swept("standard", "flash"))
    assert {one.source for one in measured} == {"modelled", "measured"}
    assert {one.source for one in drawn(measured)} == {"measured"}


def test_bytes_at_another_level_are_not_drawn(swept: MakeSwept) -> None:
    found = laws(swept("flash"))
    assert {one.level for one in found} == {"L2", "DRAM"}
    assert {one.level for one in drawn(found)} == {"L2"}


@pytest.mark.parametrize("width", [60, 80])
def test_size_and_frame(width: int, swept: MakeSwept) -> None:
    found = laws(swept(*ALL))
    pictures = parts(found, width)
    assert len(pictures) == 1 + 2 * 3
    for title, lines in pictures.items():
        if title != "legend":
            assert len(lines) == HEIGHT
            assert {len(line) for line in lines[:-1]} == {width}
    for title, variable in (("N", "N"), ("d, on-chip bytes fixed", "d"), ("M in elements", "M")):
        xs = {int(x) for one in drawn(found) if one.sweep.variable == variable for x in one.xs}
        powers = [short_count(x) for x in sorted(xs) if x & (x - 1) == 0]
        assert pictures[title][-1].split() == powers  # powers of two, all of which are points


def test_everything_is_said_without_colour(swept: MakeSwept) -> None:
    pictures = [part for part in law_plots(laws(swept(*ALL)), 80) if isinstance(part, Text)]
    assert {span.style for part in pictures for span in part.spans} <= {"dim", ""}
    again = [part for part in law_plots(laws(swept(*ALL)), 80) if isinstance(part, Text)]
    assert [part.plain for part in pictures] == [part.plain for part in again]


def printed(found: tuple[FittedLaw, ...]) -> str:
    console: Any = Console(width=80, color_system=None)
    with console.capture() as captured:
        for part in law_parts(found, 80):
            console.print(part)
    text: str = captured.get()
    return text


def test_pictures_stand_before_the_table(swept: MakeSwept) -> None:
    text = printed(laws(swept("flash")))
    order = ["The law", "bytes against N", "bytes against d", "bytes against M", "lines:", "impl "]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_nothing_swept_is_nothing_shown() -> None:
    assert list(law_plots((), 80)) == []
    assert printed(()) == ""
