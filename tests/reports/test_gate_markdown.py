"""The gate as Markdown: the verdict and its tables in whole, and strings that mean nothing but themselves."""

from typing import Any

import msgspec

from perfkit.analysis.gate.judge import GateResult, gate
from perfkit.analysis.gate.limits import Limits
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, number
from perfkit.reports.gate.markdown import as_markdown

OP = find_op("attention")


def fake(*seqs: int, impls: tuple[str, ...] = ("flash",)) -> Record:
    workloads = [AttentionWorkload(heads=16, kv_heads=16, seq_q=n, seq_k=n, head_dim=64) for n in seqs]
    rows = [row for name in impls if (row := OP.implementation(name))]
    return run_session(OP, workloads, rows, FakeBackend(), lambda _impl, _what: None)


def edited(record: Record, index: int, **fields: Any) -> Record:
    runs = list(record.runs)
    runs[index] = msgspec.structs.replace(runs[index], **fields)
    return msgspec.structs.replace(record, runs=tuple(runs))


def scaled(record: Record, index: int, tag: str, factor: float) -> Record:
    run = record.runs[index]
    found = number(tag, factor * (run.value(tag) or 0), run.numbers[tag].provenance)
    return edited(record, index, numbers={**run.numbers, tag: found})


def markdown(base: Record, current: Record, **limits: Any) -> str:
    result: GateResult = gate(study(base), study(current), Limits(**limits))
    return as_markdown(result).decode()


def test_a_failure_in_whole() -> None:
    """16 heads of N 4096, d 64: O and 4 bytes of LSE a row make 8650752 bytes; 5 % more are 9083290."""
    base = fake(4096, 16384)
    current = scaled(scaled(base, 0, "l2_write", 1.05), 1, "peak_memory", 0.5)
    assert markdown(base, current, ignore=("io_check",)) == (
        "### perfkit gate: FAIL: 1 of 42 checks, 1 improved\n"
        "\n"
        "attention on NVIDIA H200 141GB SXM  \n"
        "batch 1, 16 heads, d 64, bf16, full mask, forward, at N 4k and 16k  \n"
        "FAKE: no number here was measured  \n"
        "baseline of 2026-01-01T00:00:00+00:00, current of 2026-01-01T00:00:00+00:00\n"
        "\n"
        "**Failed**: regressions, or wrong\n"
        "\n"
        "| impl | N | check | baseline | now | change | verdict |\n"
        "|---|---|---|---:|---:|---:|---|\n"
        "| flash | 4k | SM-&gt;L2 | 8.65 MB | 9.08 MB | +5.00% | beyond 0.5% |\n"
        "\n"
        "**Improved**: update the baseline to keep it\n"
        "\n"
        "| impl | N | check | baseline | now | change | verdict |\n"
        "|---|---|---|---:|---:|---:|---|\n"
        "| flash | 16k | peak memory | 1.00 GB | 500 MB | -50.00% | less by more than 1% |\n"
        "\n"
        "passed: run 2, work 10, traffic 15, FLOPs 6, kernels 2, memory 1, correctness 2, time 2\n"
        "\n"
        "<details>\n"
        "<summary>Limits and notes</summary>\n"
        "\n"
        "- allowed: time 5%, traffic and FLOPs 0.5%, DRAM re-reads 5%, peak memory 1%\n"
        "- ignored: io\\_check, 14 checks\n"
        "\n"
        "</details>\n"
    )


def test_a_pass_has_no_tables() -> None:
    text = markdown(fake(4096), fake(4096))
    # work 5, traffic 8, FLOPs 3 (no vector units), IO check 7; run, kernels, memory, error and time 1 each
    assert text.startswith("### perfkit gate: PASS: 28 checks\n")
    assert "|" not in text


def test_a_modelled_record_is_said_to_be_one() -> None:
    record = msgspec.structs.replace(fake(4096), backend="model")
    assert "\nMODELLED: no number here was measured  \n" in markdown(record, record)


def test_strings_of_a_record_mean_nothing_but_themselves() -> None:
    base = fake(4096, impls=("standard", "flash"))
    reason = "a | b `c` <img src=x>\n# d @e \x1b[31m"
    current = edited(base, 0, status="failed", reason=reason)
    text = markdown(base, current)
    (row,) = [line for line in text.splitlines() if line.startswith("| standard | run ")]
    said = "failed now, measured in the baseline: a \\| b \\`c\\` &lt;img src=x&gt; #<!-- --> d @<!-- -->e "
    assert row == f"| standard | run | - | - | - | {said}\\[31m |"


def test_an_implementation_named_like_markup_is_escaped_everywhere() -> None:
    base = edited(fake(4096), 0, impl="<b>|x")
    text = markdown(base, edited(base, 0, status="failed", reason="no"))
    assert "<b>" not in text
    assert "| &lt;b&gt;\\|x | run |" in text


def test_equal_runs_on_one_workload_are_told_apart() -> None:
    base = fake(4096, impls=("flash", "flash"))
    text = markdown(base, scaled(base, 1, "launches", 2))
    assert "| flash #<!-- -->2 | kernels | 1 | 2 | 2x | more than before |" in text
