"""Colours and symbols: an implementation looks the same in every chart and table of a report.

The hues follow Okabe and Ito's palette for all kinds of colour vision, darkened for light paper and lightened
for dark paper until each stands out 3 to 1. A symbol goes with each, so that nothing rests on colour alone.
"""

from typing import Final

from perfkit.analysis.report import Report
from perfkit.reports.html.cells import Look

LIGHT: Final = (
    "#0072b2", "#cc5500", "#00875f", "#b0508a", "#977000", "#2b2f36", "#2e8bc0", "#a02c2c",
)  # fmt: skip
DARK: Final = (
    "#4ba3dd", "#f0803c", "#2bbf95", "#e090bd", "#e6b422", "#e6e8eb", "#8fd0f5", "#f08080",
)  # fmt: skip

#: plotly's name -> the same shape as a CSS clip path, for legends and tables.
SYMBOLS: Final = {
    "circle": "circle(48%)",
    "square": "polygon(8% 8%, 92% 8%, 92% 92%, 8% 92%)",
    "diamond": "polygon(50% 0, 100% 50%, 50% 100%, 0 50%)",
    "triangle-up": "polygon(50% 4%, 100% 92%, 0 92%)",
    "cross": "polygon(33% 2%, 67% 2%, 67% 33%, 98% 33%, 98% 67%, 67% 67%, "
    "67% 98%, 33% 98%, 33% 67%, 2% 67%, 2% 33%, 33% 33%)",
    "triangle-down": "polygon(0 8%, 100% 8%, 50% 96%)",
    "x": "polygon(24% 0, 50% 26%, 76% 0, 100% 24%, 74% 50%, 100% 76%, "
    "76% 100%, 50% 74%, 24% 100%, 0 76%, 26% 50%, 0 24%)",
    "pentagon": "polygon(50% 0, 98% 36%, 80% 94%, 20% 94%, 2% 36%)",
    "hexagon": "polygon(50% 0, 94% 25%, 94% 75%, 50% 100%, 6% 75%, 6% 25%)",
}


def looks(report: Report) -> dict[str, Look]:
    """Implementation -> its look, in the order of their first runs.

    Eight hues and nine symbols turn at different lengths, so that 72 implementations differ in one of them.
    """
    parts = [*report.parts, *([report.baseline] if report.baseline else [])]
    names = dict.fromkeys(run.impl for part in parts for run in part.study.record.runs)
    symbols = tuple(SYMBOLS)
    return {
        name: Look(index=i, hue=i % len(LIGHT), symbol=symbols[i % len(symbols)])
        for i, name in enumerate(names)
    }
