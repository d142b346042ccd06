"""`perfkit io`: whole outputs, and counts that differ."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

from perfkit import cli
from perfkit.measure.counting import count
from perfkit.measure.counting.types import Count
from perfkit.model.traffic import Traffic
from perfkit.ops import find_op
from perfkit.ops.plan import planned

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OP = find_op("attention")


def output(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["perfkit", "io", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


CASES = {
    "io-sweep": ["--sweep"],
    "io-bwd-gqa": ["--pass", "bwd", "--causal", "--heads", "4", "--kv-heads", "2"],
}


@pytest.mark.parametrize("name", CASES)
def test_whole_output(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = output(CASES[name], monkeypatch, capsys)
    assert code == 0
    assert max(map(len, found.splitlines())) <= 80
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()


def fake_count(monkeypatch: pytest.MonkeyPatch, off: int) -> None:
    """Counts that equal the ledger, but for `off` bytes read of its first entry."""

    def counted(requests: list[count.Request]) -> tuple[Count, ...]:
        found = []
        for one in requests:
            row = OP.implementation(one.impl)
            assert row is not None
            assert row.io is not None
            profile = load_profile()
            uses = planned(row, one.workload, profile)
            first, *rest = row.io.ledger(one.workload, uses)
            moved = first.traffic + Traffic(read_bytes=off, write_bytes=0)
            ledger = (msgspec.structs.replace(first, traffic=moved), *rest)
            found.append(Count(impl=one.impl, workload=one.workload, moved=ledger, notes=("executed",)))
        return tuple(found)

    monkeypatch.setattr(count, "count_all", counted)


def load_profile():  # type: ignore[no-untyped-def]
    from perfkit.model.catalogue import load

    return load("h200-141gb-sxm")


def test_counts_that_are_equal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake_count(monkeypatch, 0)
    code, found, _ = output(["--count", "--seq", "256", "--impl", "flash"], monkeypatch, capsys)
    assert code == 0
    assert found.count("equal") == 5  # Q, K, V, O, LSE
    assert "  executed\n" in found


def test_a_count_that_differs_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_count(monkeypatch, 12)
    code, found, _ = output(["--count", "--seq", "256", "--impl", "flash"], monkeypatch, capsys)
    assert code == 1
    assert "DIFFERS: read +12 B" in found


def test_what_has_no_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, said = output(["--impl", "sdpa-flash"], monkeypatch, capsys)
    assert (code, found) == (2, "")
    assert said == ("error: sdpa-flash has no IO model: its tiles are not known\nhint:  name another one\n")
