"""The HTML file of `perfkit cache`: its charts as data against the timelines, its tables, hostile names."""

import base64
import gzip
import html
import json
import re
from functools import cache
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from perfkit.analysis.cache_outcome import CacheStudy, Shape, cache_study
from perfkit.analysis.cache_synthetic import synthetic_trace
from perfkit.analysis.cache_waste import policies
from perfkit.reports.cache import memory_rows, request_rows
from perfkit.reports.cache_files import as_csv, as_json
from perfkit.reports.cache_plot import round_ticks
from perfkit.reports.html.cache import as_html

SHAPE = Shape(layers=4, kv_heads=2, head_dim=64, dtype="bf16")
HOSTILE = "</script><img src=x onerror=alert(1)>.csv"


@cache
def study() -> CacheStudy:
    return cache_study(
        synthetic_trace(80, 0, 0.5, 512, prefix_tokens=40),
        policies([16, 64]),
        source=HOSTILE,
        shape=SHAPE,
        memory_bytes=16 << 20,
        max_len=512,
    )


@cache
def page() -> str:
    return as_html(study()).decode()


def figures() -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page(), re.DOTALL)
    assert found is not None
    value: list[dict[str, Any]] = json.loads(found[1])
    return value


def test_a_stack_for_each_policy_is_what_its_timeline_says() -> None:
    *memory, _ = figures()
    assert [one["title"] for one in memory] == [one.policy.name for one in study().outcomes]
    for figure, one in zip(memory, study().outcomes, strict=True):
        assert [trace["name"] for trace in figure["data"]] == ["tokens", "later", "never", "holes"]
        stacked = [sum(values) for values in zip(*(trace["y"] for trace in figure["data"]), strict=True)]
        slots = [step.slots for step in one.timeline]
        assert stacked == [(s.allocated + s.external) * SHAPE.token_bytes for s in slots]
        assert max(stacked) <= study().memory_bytes == figure["layout"]["yaxis"]["range"][1]


def test_requests_at_once_are_a_line_for_each_policy() -> None:
    lines = figures()[-1]["data"]
    assert [trace["y"] for trace in lines] == [
        [step.active for step in one.timeline] for one in study().outcomes
    ]
    assert all(trace["x"][0] == 0 for trace in lines)


def test_plotly_takes_every_figure() -> None:
    for figure in figures():
        for trace in figure["data"]:
            assert len(trace["x"]) == len(trace["y"]) == len(trace["text"])
        go.Figure(data=figure["data"], layout=figure["layout"])  # raises for what it does not know


def test_every_figure_has_its_place_and_every_switch_its_traces() -> None:
    ids = [figure["id"] for figure in figures()]
    assert all(page().count(f'id="{name}"') == 1 for name in ids)
    buttons = set(map(int, re.findall(r'data-look="(\d+)"', page())))
    assert buttons == {trace["meta"]["look"] for figure in figures() for trace in figure["data"]}


def test_tables_are_those_of_the_terminal() -> None:
    cells = [html.unescape(text) for text in re.findall(r"<td[^>]*>([^<\n]*)", page())]
    expected = [
        text for rows in (memory_rows(study()), request_rows(study())) for row in rows for text in row
    ]
    assert cells == expected


def test_the_data_is_in_it() -> None:
    found = re.findall(r'data-name="([^"]+)" href="data:application/gzip;base64,([^"]+)"', page())
    files = {name: gzip.decompress(base64.b64decode(text)) for name, text in found}
    assert files == {"cache.csv": as_csv(study()), "cache.json": as_json(study())}


def test_names_are_text_and_nothing_is_loaded() -> None:
    assert HOSTILE not in page()
    assert html.escape(HOSTILE) in page()
    without_data = re.sub(r'<script type="text/plain".*?</script>', "", page(), flags=re.DOTALL)
    assert not re.search(r'(src|href)="(https?:)?//', without_data)
    assert page() == as_html(study()).decode()


@pytest.mark.parametrize(
    ("top", "most", "ticks"),
    [
        (1, 7, [0, 1]),
        (7, 7, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9383, 7, [0, 2000, 4000, 6000, 8000]),
        (8 << 30, 5, [0, 2e9, 4e9, 6e9, 8e9]),
    ],
)
def test_ticks_are_round(top: float, most: int, ticks: list[float]) -> None:
    assert round_ticks(top, most) == ticks
