"""How far what was measured is off what is expected at a level: zeros of TMA belong to SM<->L2 reads."""

import io

import pytest
from rich.console import Console

from perfkit.analysis.io_model import Subject
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run, number
from perfkit.reports.levels import table

GB = 1e9


def rows(counter: str, **values: float) -> dict[str, list[str]]:
    """Level -> cells of `flash`; all is 3 GB at SM<->L2 and 1 at DRAM, each way, unless `values` say else."""
    numbers = {
        "l2_read_modelled": 3 * GB, "l2_write_modelled": 3 * GB, "l2_write": 3 * GB,
        "dram_read_modelled": GB, "dram_write_modelled": GB, "dram_read": GB, "dram_write": GB,
        **values,
    }  # fmt: skip
    notes = {"l2_read": counter}
    run = Run(
        impl="flash",
        workload=AttentionWorkload(seq_q=1024, seq_k=1024),
        status="measured",
        numbers={tag: number(tag, value, "measured", notes.get(tag)) for tag, value in numbers.items()},
    )
    row = find_op("attention").implementation("flash")
    assert row is not None
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as printed:
        console.print(table([Subject(run=run, row=row, ledger=())], 80))
    lines = printed.get().splitlines()
    return {
        level: line.split(level)[1].split()
        for line in lines
        for level in ("SM<->L2", "DRAM")
        if level in line
    }


@pytest.mark.parametrize(
    ("counter", "off"), [("cupti: l1_fill_bytes", "+0.00%"), ("cupti: l2_read_bytes", "+33.33%")]
)
def test_zeros_are_expected_where_the_sm_counted(counter: str, off: str) -> None:
    """2 GB of zeros beside 6 GB read and written: the modelled bytes shown are those of the ledger."""
    found = rows(counter, l2_zeros_modelled=2 * GB, l2_read=5 * GB)
    assert found["SM<->L2"] == ["6.00", "GB", "8.00", "GB", off]
    assert found["DRAM"] == ["2.00", "GB", "2.00", "GB", "+0.00%"]


def test_nothing_is_off_what_is_not_there() -> None:
    found = rows("cupti: l1_fill_bytes", l2_zeros_modelled=2 * GB)
    assert found["SM<->L2"] == ["6.00", "GB", "-"]
    # A record of before has no zeros.
    assert rows("cupti: l1_fill_bytes", l2_read=3.06 * GB)["SM<->L2"][-1] == "+1.00%"
