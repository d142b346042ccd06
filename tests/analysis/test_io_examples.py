"""The records of the IO law that the documentation shows: what it says about them is so."""

from pathlib import Path

import pytest

from perfkit.analysis.figure2 import figure2
from perfkit.analysis.held import explained
from perfkit.analysis.law import laws
from perfkit.record import load

FOLDER = Path(__file__).parents[2] / "docs/examples/h200/io"


@pytest.mark.parametrize(("name", "source"), [("law", "measured"), ("counted", "counted")])
def test_every_exponent_is_as_the_law_says(name: str, source: str) -> None:
    judged = [
        one for one in laws(load(FOLDER / f"{name}.json")) if one.source == source and one.law is not None
    ]
    # Three variables of three implementations, two of standard.
    assert len(judged) == 3 * 3 + 2
    assert [one.verdict.status for one in judged] == ["holds"] * len(judged)


def test_what_was_counted_is_the_ledger() -> None:
    record = load(FOLDER / "counted.json")
    assert explained(record)
    assert sum(bool(run.counted) for run in record.runs) >= 30


def test_sm_l2_bytes_of_the_sweeps_are_the_closed_form_within_1_percent() -> None:
    runs = [run for run in load(FOLDER / "law.json").runs if run.impl in ("flash", "flash1")]
    assert len(runs) >= 16
    for run in runs:
        for side in ("read", "write"):
            assert run.value(f"l2_{side}") == pytest.approx(run.value(f"l2_{side}_modelled"), rel=0.01)


def test_gpt2s_pipeline_moves_what_its_steps_say_within_3_percent() -> None:
    figure = figure2(load(FOLDER / "fa1-fig2.json"))
    assert figure is not None
    assert figure.left is not None
    run = figure.left.runs[0]
    assert run.impl == "gpt2"
    assert run.moved("DRAM") == pytest.approx(46.708e9, rel=0.03)  # 21 passes of 2.147 GB, 12 u, and the mask
    assert figure.left.steps is not None
    assert figure.left.steps.steps is not None
    # Sparse time is that of the blocks that are seen: 0.29 of all at a quarter.
    quarter = next(point for point in figure.right if point.share == 0.25)
    assert quarter.relative == pytest.approx(0.29, abs=0.01)


@pytest.mark.parametrize(("head_dim", "varying"), [(64, (192 << 10, 256 << 10)), (128, ())])
def test_dram_traffic_is_predicted_within_15_percent_but_for_what_varies(
    head_dim: int, varying: tuple[int, ...]
) -> None:
    """Two lengths at d 64 move other bytes in each run of the same kernel."""
    runs = load(FOLDER / f"dram-d{head_dim}.json").runs
    assert max(run.workload.seq_q for run in runs) == 256 << 10
    for run in runs:
        if run.workload.seq_q not in varying:
            assert run.moved("DRAM") == pytest.approx(run.moved("DRAM", "_modelled"), rel=0.15)
