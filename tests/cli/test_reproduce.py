"""`perfkit reproduce`: whole outputs, single panels, what is refused, and the record shown again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit.measure.counting import recorded
from perfkit.measure.counting.types import Failure
from perfkit.record import load

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
Perfkit = Callable[..., Any]

CASES = {
    "reproduce-model": ("--device", "a100-40gb-sxm", "--no-count"),
    "reproduce-fake": ("--device", "fake", "--no-count"),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_output(name: str, perfkit: Perfkit) -> None:
    found = perfkit("reproduce", "fa1-fig2", *CASES[name])
    assert (found.code, found.err) == (0, "")
    assert max(map(len, found.out.splitlines())) <= 80
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found.out)
    assert found.out == golden.read_text()


TITLES = {
    "left": "Figure 2, left: ",
    "middle": "Figure 2, middle: ",
    "right": "Figure 2, right: ",
}


@pytest.mark.parametrize("panels", ["left", "middle", "right", "right, left"])
def test_panels_that_were_asked_for(panels: str, perfkit: Perfkit) -> None:
    found = perfkit("reproduce", "fa1-fig2", "--panel", panels, "--device", "fake", "--no-count")
    assert found.code == 0
    assert [name for name, title in TITLES.items() if title in found.out] == [
        name for name in TITLES if name in panels
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fa2-fig5",), "error: unknown figure 'fa2-fig5'\nhint:  allowed: fa1-fig2\n"),
        (
            ("fa1-fig2", "--panel", "left,upper"),
            "error: unknown panel 'upper'\nhint:  allowed: left, middle, right\n",
        ),
        (("fa1-fig2", "--panel", ""), "error: unknown panel ''\nhint:  allowed: left, middle, right\n"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: tuple[str, ...], said: str, perfkit: Perfkit) -> None:
    found = perfkit("reproduce", *arguments, "--device", "fake")
    assert (found.code, found.out, found.err) == (2, "", said)


def test_the_figure_is_in_what_was_saved(perfkit: Perfkit) -> None:
    files = [word for kind in ("json", "md", "html") for word in (f"--{kind}", f"f.{kind}")]
    found = perfkit("reproduce", "fa1-fig2", "--device", "fake", "--no-count", *files)
    assert found.code == 0
    assert {run.impl for run in load("f.json").runs} == {
        "gpt2", "standard", "flash", "flash1", "block-sparse"
    }  # fmt: skip
    panels = found.out[found.out.index("Figure 2, left") : found.out.index("\n  fake backend")].rstrip()
    assert panels in perfkit("show", "f.json").out
    assert "**Figure 2 of FlashAttention**" in Path("f.md").read_text()
    assert '<section id="record-1-figure2">' in Path("f.html").read_text()


def test_only_what_nobody_measures_is_counted_unasked(
    perfkit: Perfkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[str] = []

    def answers(requests: list[Any]) -> tuple[Failure, ...]:
        came.extend(one.impl for one in requests)
        return tuple(Failure(message="it broke") for _ in requests)

    monkeypatch.setattr(recorded, "answers", answers)
    arguments = ("reproduce", "fa1-fig2", "--device", "a100-40gb-sxm", "--json", "c.json")
    found = perfkit(*arguments)
    assert found.code == 0
    assert found.out.count("\n  gpt2: not counted: it broke\n") == 1
    assert found.out.count("\n  flash1: not counted: it broke\n") == 1  # of its four runs
    assert "block-sparse: not counted" not in found.out
    # Three runs of the left panel and eight of the middle one; thousands of blocks are too many.
    assert sorted(came) == ["flash"] * 5 + ["flash1"] * 4 + ["gpt2", "standard"]
    number = load("c.json").runs[0].numbers["l2_read_counted"]
    assert (number.value, number.reason) == (None, "it broke")
