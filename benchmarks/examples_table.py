"""The records of a folder as one Markdown table, for docs/examples.

python benchmarks/examples_table.py docs/examples/h200
"""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from perfkit.analysis.io_check import zeros_counted  # noqa: E402
from perfkit.analysis.study import Finding, study  # noqa: E402
from perfkit.model.units import show  # noqa: E402
from perfkit.record import load  # noqa: E402

HEAD = "| record | implementation | time | TFLOP/s | of run-clock roof | SM<->L2 read | off the model | DRAM read | DRAM write | IO verdicts |"  # noqa: E501


def row(name: str, finding: Finding) -> str:
    """One implementation of one record."""
    placement, run = finding.placement, finding.placement.run
    if run.status != "measured":
        return f"| {name} | {run.impl} | {run.status}: {run.reason} | | | | | | | |"
    modelled, measured = run.value("l2_read_modelled"), run.value("l2_read")
    off = f"{measured / (modelled + zeros_counted(run)) - 1:+.2%}" if modelled and measured else ""
    counts = Counter(verdict.status for verdict in finding.verdicts)
    cells = (
        name,
        run.impl,
        show(run.value("time"), "time"),
        f"{(placement.achieved or 0) / 1e12:.0f}",
        show(finding.metrics["efficiency_clock"].value, "percent"),
        show(measured, "bytes"),
        off,
        show(run.value("dram_read"), "bytes"),
        show(run.value("dram_write"), "bytes"),
        ", ".join(f"{count} {status}" for status, count in counts.items()),
    )
    return f"| {' | '.join(cells)} |"


def size(path: Path) -> tuple[str, str, int]:
    """Sort by pass and head dim, then by length."""
    first, *_ = load(path).runs
    return path.stem.split("-")[0], path.stem.split("-")[1], first.workload.seq_q


def main() -> None:
    """Print the table."""
    print(HEAD)
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|---|")
    for path in sorted(Path(sys.argv[1]).glob("*.json"), key=size):
        for number, finding in enumerate(study(load(path)).findings):
            print(row(f"[{path.stem}]({path.name})" if number == 0 else "", finding))


if __name__ == "__main__":
    main()
