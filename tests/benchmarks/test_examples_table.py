"""`benchmarks/examples_table.py`: a row of the table of examples."""

import sys
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import examples_table

from perfkit.analysis.study import study
from perfkit.record import load, number

RECORD = Path(__file__).parents[2] / "docs/examples/h200/fwd-d64-16k.json"


@pytest.mark.parametrize(
    ("counter", "off"), [("cupti: l1_fill_bytes", "+0.00%"), ("cupti: l2_read_bytes", "+50.00%")]
)
def test_zeros_by_tma_are_expected_where_the_sm_counted(counter, off):
    """Half of the ledger in zeros beside it: none of the reads at L2."""
    record = load(RECORD)
    (at,) = [at for at, run in enumerate(record.runs) if run.impl == "flash"]
    run = record.runs[at]
    modelled = run.value("l2_read_modelled")
    numbers = {
        **run.numbers,
        "l2_read": number("l2_read", modelled * 1.5, "measured", counter),
        "l2_zeros_modelled": number("l2_zeros_modelled", modelled * 0.5, "modelled"),
    }
    changed = msgspec.structs.replace(run, numbers=numbers)
    found = study(msgspec.structs.replace(record, runs=(changed,))).findings[0]
    cells = examples_table.row("name", found).split(" | ")
    assert cells[:2] == ["| name", "flash"]
    assert cells[6] == off
