"""Records with sweeps: which runs are trials, and that reports stay readable and lose nothing."""

from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console

from perfkit.analysis.study import Study, study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record
from perfkit.reports.law_words import law_words, sentences
from perfkit.reports.studies import of_workload, parted
from perfkit.reports.terminal import render

MakeSwept = Callable[..., Record]
OP = find_op("attention")
ALL = ("standard", "flash1", "flash")
replace = msgspec.structs.replace


def ran(*impls: str, lengths: tuple[int, ...], baseline: str | None = None) -> Record:
    """Runs of one head at several lengths, none of them a trial."""
    workloads = [AttentionWorkload(heads=1, kv_heads=1, seq_q=n, seq_k=n) for n in lengths]
    rows = [row for row in OP.implementations if row.name in impls]
    return run_session(OP, workloads, rows, FakeBackend(), lambda *_: None, baseline)


def text(subject: Study) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(render(subject, 80))
    return captured.get()


def changed(record: Record, at: int, **change: object) -> Record:
    runs = list(record.runs)
    runs[at] = replace(runs[at], **change)
    return replace(record, runs=tuple(runs))


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("lengths", [(4096,), (2048, 16384)])
def test_trials_are_what_comes_after_what_was_asked_for(
    counted: bool, lengths: tuple[int, ...], swept: MakeSwept
) -> None:
    subject = study(swept(*ALL, lengths=lengths, counted=counted))
    asked, trials = parted(subject)
    wanted = [(name, n) for n in lengths for name in ALL]
    assert [(run.impl, run.workload.seq_k) for run in asked.record.runs] == wanted
    assert (*asked.findings, *trials.findings) == subject.findings
    assert (*asked.record.runs, *trials.record.runs) == subject.record.runs
    assert len(trials.findings) >= 20


def test_trials_of_one_implementation(swept: MakeSwept) -> None:
    asked, trials = parted(study(swept("flash")))
    assert len(asked.findings) == 1
    assert len(trials.findings) >= 3 + 2 + 2  # three values of each variable, of which one may be shared


def test_trials_that_failed_early_are_trials(swept: MakeSwept) -> None:
    record = changed(swept(*ALL), -1, status="refused", reason="no room", uses=(), numbers={}, timing=None)
    asked, trials = parted(study(record))
    assert len(asked.findings) == 3
    assert trials.record.runs[-1].status == "refused"


@pytest.mark.parametrize(
    "record",
    [
        ran("standard", lengths=(8192, 16384, 32768)),  # the lengths of a sweep, asked for
        ran("standard", "flash", lengths=(8192, 16384, 32768, 65536)),
        ran("standard", "flash", lengths=(8192, 16384, 32768), baseline="standard"),
        ran("flash", lengths=(4096,)),
        replace(ran("flash", lengths=(4096,)), runs=()),
    ],
    ids=["lengths", "two", "compared", "one", "empty"],
)
def test_without_a_sweep_everything_was_asked_for(record: Record) -> None:
    subject = study(record)
    asked, trials = parted(subject)
    assert asked == subject
    assert trials.findings == trials.record.runs == ()


def test_one_workload() -> None:
    subject = study(ran("standard", "flash", lengths=(8192, 16384)))
    found = of_workload(subject, subject.record.runs[2].workload)
    assert found.findings == subject.findings[2:]


def test_a_sweep_is_readable_in_the_terminal(swept: MakeSwept) -> None:
    subject = study(swept(*ALL))
    shown = text(subject)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 225
    results = shown[shown.index("achieved of roof") : shown.index("IO check")].splitlines()[1:]
    assert [line[:1] for line in results if line] == ["A", "B", "C"]  # what was asked for, each once
    count = len(subject.findings) - 3
    assert f"  {count} more runs are trials of a series.\n" in shown
    assert shown.index("Series  ") < shown.index("The law  ") < shown.index("bytes against N\n")


def test_every_workload_that_was_asked_for_has_its_own_report(swept: MakeSwept) -> None:
    shown = text(study(swept("standard", "flash", lengths=(2048, 16384))))
    assert "batch 1, 1 head, d 64, bf16, full mask, forward\nat N 2k and 16k\n" in shown
    first, second = shown.split("\nAt N 2k\n")[1].split("\nAt N 16k\n")
    for part in (first, second):
        assert part.count("UPPER case at DRAM, lower case at SM<->L2: A standard, B flash\n") == 1
        assert part.count("of roof") == 1
    assert "  flash at N 2k: DRAM read >= compulsory: undecided" in shown


def test_what_went_wrong_in_a_trial_is_said_everywhere(swept: MakeSwept) -> None:
    record = changed(
        swept("standard", "flash"), -1, status="failed", reason="a wheel came off", numbers={}, timing=None
    )
    wanted = "failed: a wheel came off."
    assert any(wanted in sentence for sentence in sentences(study(record)))
    assert wanted in text(study(record))


def test_a_trial_that_moves_other_bytes_violates_the_law_and_its_check(swept: MakeSwept) -> None:
    """Eight times the bytes at the longest N: the exponent is far above 2."""
    record = swept("flash")
    at = max(range(1, len(record.runs)), key=lambda i: (record.runs[i].workload.seq_k, -i))
    numbers = dict(record.runs[at].numbers)
    read = numbers["l2_read"]
    assert read.value is not None
    numbers["l2_read"] = replace(read, value=8 * read.value)
    subject = study(changed(record, at, numbers=numbers))
    said = sentences(subject)
    assert any(
        s.startswith("VIOLATED: the law, measured bytes of flash against N: exponent 2.") for s in said
    )
    assert any(s.startswith("Trials: VIOLATED: flash") for s in said)


def test_words_on_the_law(swept: MakeSwept) -> None:
    said = sentences(study(swept("standard", "flash")))
    # standard has no M: 2 and 3 variables, modelled and measured
    assert said[-1] == "The law of bytes: 5 modelled and 5 measured exponents are as it says."
    assert [s for s in said if "is the fastest" in s] == [
        s for s in said if s.startswith("flash is the fastest")
    ]
    assert list(law_words(())) == []
    plain = study(ran("flash", lengths=(4096,)))
    assert not any("law" in sentence for sentence in sentences(plain))
