"""Figure 2 in the terminal and in Markdown: steps with kernels, sources of numbers, runs that failed."""

import re
from functools import cache
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType

from perfkit.analysis.figure2 import SHARES, Figure2, figure2
from perfkit.analysis.study import study
from perfkit.cli.figure2_cases import PANELS, cases
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_cases
from perfkit.ops import find_op
from perfkit.ops.attention_gpt2 import gpt2_kernels
from perfkit.ops.attention_published import GPT2_PIPELINE
from perfkit.record import KernelCounts, Record, Run, number, unavailable
from perfkit.reports.figure2 import render
from perfkit.reports.figure2_plot import linear_ticks
from perfkit.reports.figure2_rows import block_bytes, left_rows
from perfkit.reports.markdown.figure2 import figure2_text

OP = find_op("attention")
replace = msgspec.structs.replace


@cache
def record(*panels: str) -> Record:
    backend = FakeBackend()
    asked = cases(OP, panels or PANELS, backend.profile)
    return run_cases(OP, [(one.workload, [one.row]) for one in asked], backend, lambda *_: None)


def changed(impl: str, **fields: Any) -> Record:
    """The record with every run of `impl` changed."""
    runs = (replace(run, **fields) if run.impl == impl else run for run in record().runs)
    return replace(record(), runs=tuple(runs))


def figure_of(subject: Record) -> Figure2:
    found = figure2(subject)
    assert found is not None
    return found


def printed(what: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(what)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def text(subject: Record, width: int = 80) -> str:
    return printed(render(study(subject), figure_of(subject), width), width)


def line(found: str, start: str) -> list[str]:
    """The words of the one line that starts so."""
    (words,) = [row.split() for row in found.splitlines() if row.startswith(start)]
    return words


# Where numbers are from


def test_each_line_of_the_left_table_is_of_one_source() -> None:
    left = figure_of(record()).left
    assert left is not None
    rows = {(row.label, row.source): row for row in left_rows(left)}
    assert list(rows) == [
        ("FLOPs", "printed"), ("FLOPs", "modelled"), ("FLOPs", "measured"),
        ("HBM bytes", "printed"), ("HBM bytes", "modelled"), ("HBM bytes", "measured"),
        ("runtime", "printed"), ("runtime", "measured"),
        ("SM<->L2", "modelled"), ("SM<->L2", "measured"),
    ]  # fmt: skip
    assert rows["HBM bytes", "printed"].paper == (40.3e9, 4.4e9)
    # 18 passes and 12 u; 33 u: what fits the printed figures
    fitting = (18 * 2147483648 + 12 * 134217728, 33 * 134217728)
    assert rows["HBM bytes", "modelled"].formula == fitting
    # 6 and 7 products of 2 x 1024^2 x 64 x 16 x 64 FLOP: what does not, and is so
    product = 2 * 1024**2 * 64 * 16 * 64
    assert rows["FLOPs", "modelled"].formula == (6 * product, 7 * product)
    # Forward 6 tiles of 192 rows: 16 warpgroups with 8 blocks of keys, 2 beyond N with 1; backward 5. And one
    # product of 64 x 128 of 3 warpgroups of each of 132 programs.
    flash = 5 * product + 2 * product * (16 * 8 + 2) // (16 * 8) + 132 * 3 * 2 * 64 * 128 * 64
    assert rows["FLOPs", "modelled"].here == (6 * product, 6 * product, flash)
    assert rows["runtime", "measured"].here == tuple(run.value("time") for run in left.runs)
    assert rows["SM<->L2", "measured"].here[:2] == (None, None)


def test_passes_that_were_counted_stand_with_hbm_and_loads_with_l2() -> None:
    left = figure_of(record()).left
    assert left is not None
    gpt2, standard, flash = left.runs
    ledger = _ledger(gpt2)
    tags = {f"l2_{side}_counted": number(f"l2_{side}_counted", 1e9, "counted") for side in ("read", "write")}
    counted = (replace(gpt2, counted=ledger), standard, replace(flash, numbers={**flash.numbers, **tags}))
    rows = {(row.label, row.source): row for row in left_rows(replace(left, runs=counted))}
    assert rows["HBM bytes", "counted"].here == (gpt2.moved("DRAM", "_modelled"), None, None)
    assert rows["SM<->L2", "counted"].here == (None, None, 2e9)


def _ledger(run: Run) -> Any:
    row = OP.implementation(run.impl)
    assert row is not None
    assert row.io is not None
    return row.io.ledger(run.workload, run.uses)


def test_the_best_source_of_all_points_is_drawn() -> None:
    points = figure_of(record()).middle
    assert block_bytes(points)[0] == "measured"
    without = [replace(point, l2_measured=None, l2_counted=5.0) for point in points]
    assert block_bytes(without) == ("counted", (5.0,) * 8)
    assert block_bytes([replace(without[0], l2_counted=None), *without[1:]])[0] == "modelled"


# The terminal


def test_steps_that_were_counted_have_kernels_and_shares() -> None:
    """14 kernels of 1, 2, ... 14 us, 105 us in all; 3 MB at DRAM a microsecond."""
    launches = sum(count for _, count in gpt2_kernels(GPT2_PIPELINE))
    assert launches == 14
    values = [
        {"duration_ns": 1e3 * n, "dram_read_bytes": 1e6 * n, "dram_write_bytes": 2e6 * n}
        for n in range(1, launches + 1)
    ]
    kernels = tuple(KernelCounts(name="k", values=one) for one in values)
    found = text(changed("gpt2", kernels=kernels))
    whole = launches * (launches + 1) // 2
    assert line(found, "padding mask") == [
        *("padding", "mask", "2", f"{300 / whole:.1f}", "%", "3.00", "us", "131", "kB", "9.00", "MB"),
    ]
    assert line(found, "in all") == ["in", "all", "14", "105", "us", "46.7", "GB", "315", "MB"]
    assert "time under the profiler" in found


def test_failures_and_their_reasons_are_said_once() -> None:
    lost = unavailable("time", "it broke")
    found = text(changed("flash1", status="failed", reason="no luck", numbers={"time": lost}))
    assert found.count("no luck") == 1
    rows = [row.split() for row in found.splitlines() if re.search(r"^(flash1)? +(64|128|256|512) ", row)]
    assert [row[-1] for row in rows if "flash1" in row] == ["-"]


@pytest.mark.parametrize("impl", ["flash1", "flash", "block-sparse", "gpt2"])
def test_panels_without_numbers_are_still_tables(impl: str) -> None:
    subject = changed(impl, numbers={}, status="refused", reason="not here")
    found = text(subject)
    assert found.count("not here") >= 1
    assert "Figure 2, middle" in found
    assert figure2_text(figure2(subject)).startswith("**Figure 2 of FlashAttention**\n")


def test_nothing_at_all_draws_nothing() -> None:
    runs = tuple(replace(run, numbers={}, status="refused", reason="not here") for run in record().runs)
    found = text(replace(record(), runs=runs))
    assert "⠒" not in found  # no curve, in dots
    assert "time = a" not in found
    assert "40.27 GB" in found  # what follows from the paper alone


def test_a_wide_terminal_is_used() -> None:
    assert 80 < max(map(len, text(record(), 120).splitlines())) <= 120


def test_the_words_on_the_line_and_on_the_blocks() -> None:
    found = " ".join(text(record()).split())
    # 1.25 floors of the fake device: beyond 64 rows `flash` is bound by FLOPs.
    assert "flash: beyond block 64 runtime no longer follows traffic" in found
    assert re.search(r"time = a \+ b x share by least squares: a = [\d.]+ us, b = 3\.\d+ ms;", found)
    assert "Dense flash takes 2.97 ms, block-sparse with all blocks 3.81 ms." in found


@pytest.mark.parametrize(
    ("top", "ticks"),
    [
        (4.1e-3, [0, 2e-3, 4e-3]),
        (22.5e9, [0, 10e9, 20e9]),
        (1.0, [0, 0.5, 1.0]),
        (0.9, [0, 0.5]),
    ],
)
def test_ticks_of_a_linear_axis(top: float, ticks: list[float]) -> None:
    assert linear_ticks(top) == pytest.approx(ticks)


# Markdown


def test_markdown_has_a_table_for_each_panel() -> None:
    found = figure2_text(figure_of(record()))
    tables = [block.splitlines() for block in found.split("\n\n") if block.startswith("|")]
    assert [len(rows) - 2 for rows in tables] == [10, 8, len(SHARES)]  # sources, block sizes
    assert "| HBM bytes | printed | 40.3 GB | 4.4 GB |  |  |  |  |  |" in tables[0]
    assert "| flash1 | 64 | 6.71 GB | 11.4 GB | - | 11.4 GB | 8.81 GB | 8.81 GB | 2.30 ms |" in tables[1]
    assert tables[2][-1].endswith("| 3.81 ms | 100.0 % |")


def test_markdown_without_a_figure_says_nothing() -> None:
    assert figure2_text(None) == ""
    assert "| impl | block |" not in figure2_text(figure2(record("left")))
