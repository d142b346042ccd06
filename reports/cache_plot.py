"""Memory of a K/V cache over decode steps in characters: what is taken, and what holds tokens."""

import math
from typing import Any, Final

from rich.text import Text

from perfkit.analysis.cache_outcome import CacheStudy, Outcome
from perfkit.reports.sweep_plot import styled
from perfkit.reports.sweep_ticks import bytes_label

HEIGHT: Final = 10
_FILL: Final = "."


def memory_plot(study: CacheStudy, one: Outcome, last: int, width: int) -> Text:
    """Bytes against the steps from 0 to `last`: a line at what is taken, dots below what holds tokens."""
    import plotext

    first = one.timeline[0].at
    xs = [step.at - first for step in one.timeline]
    scale = study.shape.token_bytes
    figure: Any = plotext.figure
    figure.clear()
    figure.plot_size(width, HEIGHT)
    figure.theme("colorless")
    tokens = figure.signal(xs, [step.slots.used * scale for step in one.timeline], marker=_FILL)
    tokens.lines()
    tokens.fillx()
    figure.draw(tokens)
    taken = figure.signal(xs, [step.slots.allocated * scale for step in one.timeline], marker="braille")
    taken.lines()
    figure.draw(taken)
    _rulers(figure, float(last), float(study.memory_bytes))
    text: str = figure.build().string(colorless=True)
    figure.clear()
    return styled(text)


def _rulers(figure: Any, last: float, top: float) -> None:
    x, y = figure.ruler("x"), figure.ruler("y")
    x.lim(0, last)
    steps = round_ticks(last, 7)
    x.ticks(steps, [f"{at:,.0f}" for at in steps])
    y.lim(0, top)
    ticks = round_ticks(top, 5)
    y.ticks(ticks, [bytes_label(at) if at else "0" for at in ticks])


def round_ticks(top: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to `top`, 1 or more apart, about `most`."""
    rough = max(top / most, 1.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [at * step for at in range(int(top / step) + 1)]
