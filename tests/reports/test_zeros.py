"""What reports say of zeros by TMA, on records of an H200: counted by the SM, and in no ledger."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console, RenderableType

from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import Study, study
from perfkit.record import Run, load, number
from perfkit.reports import io as io_report
from perfkit.reports import terminal
from perfkit.reports.markdown.page import as_markdown

HOPPER = Path(__file__).parents[2] / "docs" / "examples" / "h200" / "hopper"
replace = msgspec.structs.replace


def of(name: str) -> Study:
    return study(load(HOPPER / f"{name}.json"))


def printed(shown: RenderableType) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(shown)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    return " ".join(captured.get().split())


def other(subject: Study, change: str | None) -> Study:
    """The study with what is asked for changed in each run that the SM counted."""

    def changed(run: Run) -> Run:
        numbers = dict(run.numbers)
        if change == "at L2":
            numbers["l2_read"] = replace(numbers["l2_read"], reason="cupti: l2_read_bytes")
        elif change == "before":
            del numbers["l2_zeros_modelled"]
        return replace(run, numbers=numbers)

    return study(replace(subject.record, runs=tuple(map(changed, subject.record.runs))))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        # A third of 129 tensors of 2 * 21 * 8192 rows of 192 B: Q once, K and V for each of 64 blocks
        ("fwd-d96-8k", "flash-triton: SM<->L2 'off' is without 2.84 GB of zeros by TMA beyond head dim 96"),
        ("bwd-d96-8k", "flash: SM<->L2 'off' is without 2.86 GB of zeros by TMA beyond head dim 96"),
        ("fwd-d192-8k", "flash-triton: SM<->L2 'off' is without 2.71 GB of zeros by TMA beyond head dim 192"),
    ],
)
def test_io_says_what_its_off_is_without(name: str, said: str) -> None:
    found = printed(io_report.render(of(name), 80))
    assert found.count("of zeros by TMA") == 1
    assert said in found
    for change in ("at L2", "before"):
        assert "zeros" not in printed(io_report.render(other(of(name), change), 80))


def test_io_says_at_which_workload() -> None:
    """The same run again at twice the length, with other zeros."""
    record = of("fwd-d96-8k").record
    (run,) = (run for run in record.runs if run.impl == "flash-triton")
    numbers = {**run.numbers, "l2_zeros_modelled": number("l2_zeros_modelled", 5e9, "modelled", "beyond it")}
    longer = replace(run, workload=replace(run.workload, seq_q=16384, seq_k=16384), numbers=numbers)
    found = printed(io_report.render(study(replace(record, runs=(run, longer))), 80))
    start = "SM<->L2 'off' is without"
    assert f"flash-triton at N 8k: {start} 2.84 GB of zeros by TMA beyond head dim 96" in found
    assert f"flash-triton at N 16k: {start} 5.00 GB of zeros by TMA beyond it" in found


def test_a_check_that_holds_with_zeros_says_so_in_the_terminal() -> None:
    found = printed(terminal.render(of("fwd-d96-8k"), 80))
    assert (
        "flash-triton: SM<->L2 read = IO model: closed form, tolerance 1%; expected has 2.84 GB of zeros "
        "that TMA fills in beyond head dim 96" in found
    )
    assert "flash: SM<->L2 read = IO model" not in found  # it has none, and nothing to say
    assert (
        "sdpa-cudnn: tile height from counter: rows of Q per pass over K and V; zeros of TMA, if it pads, "
        "make it look lower" in found
    )
    before = printed(terminal.render(other(of("fwd-d96-8k"), "before"), 80))
    assert (
        "flash-triton: SM<->L2 read = IO model: violated: closed form, tolerance 1%; zeros of TMA were not "
        "modelled in this record" in before
    )


def markdown(subject: Study) -> str:
    return as_markdown(Report(parts=(Titled(name="run", study=subject),))).decode()


def test_a_check_that_holds_with_zeros_says_so_in_markdown() -> None:
    found = markdown(of("bwd-d96-8k"))
    held = found.split("<summary>IO check")[1].split("</details>")[0]
    # 9.07 GB of the ledger and 2.86 of zeros
    assert "| flash | SM&lt;-&gt;L2 read = IO model | 11.9 GB | 11.9 GB |" in held
    assert (
        "\n- flash, SM&lt;-&gt;L2 read = IO model: closed form, tolerance 1%; expected has 2.86 GB of "
        "zeros that TMA fills in beyond head dim 96; " in held
    )
    assert held.count("\n- ") == 1
    plain = markdown(other(of("fwd-d192-8k"), "before")).split("<summary>IO check")[1].split("</details>")[0]
    assert "\n- " not in plain
