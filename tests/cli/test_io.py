"""`perfkit io`: whole outputs, and counts that differ."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

from perfkit import cli
from perfkit.measure.counting import recorded
from perfkit.measure.counting.types import Count, Failure, Request
from perfkit.model.traffic import Traffic
from perfkit.ops import find_op
from perfkit.record import load as read_record

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
    "io-sweep": ["--sweep", "--device", "h200-141gb-sxm"],
    "io-sweep-fake": ["--sweep", "--device", "fake", "--impl", "standard,flash"],
    "io-bwd-gqa": [
        *("--pass", "bwd", "--causal", "--heads", "4", "--kv-heads", "2"),
        *("--device", "h200-141gb-sxm"),
    ],
    "io-lengths": ["--seq", "2k,16k,256k", "--heads", "16", "--impl", "flash", "--device", "fake"],
    "io-square": [
        *("--impl", "square,flash", "--head-dim", "256", "--block-m", "16", "--seq", "16k"),
        *("--device", "h200-141gb-sxm"),
    ],
    "io-tile": ["--impl", "flash", "--block-m", "32", "--device", "h200-141gb-sxm"],
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


def fake_count(monkeypatch: pytest.MonkeyPatch, off: int) -> list[Request]:
    """Counts that equal the ledger, but for `off` bytes read of its first entry; the requests that came."""
    came: list[Request] = []

    def answers(requests: list[Request]) -> tuple[Count, ...]:
        came.extend(requests)
        return tuple(map(answer, requests))

    def answer(one: Request) -> Count:
        tiles = msgspec.json.decode(one.options).get("tiles")
        row = OP.implementation("flash-triton" if tiles and one.impl == "flash" else one.impl)
        assert row is not None
        assert row.io is not None
        uses = row.plan(one.workload, one.capability) if row.plan else ()
        if tiles:
            uses = tuple(
                msgspec.structs.replace(use, block_m=tile[0], block_n=tile[1])
                for use, tile in zip(uses, tiles, strict=True)
            )
        first, *rest = row.io.ledger(one.workload, uses)
        moved = first.traffic + Traffic(read_bytes=off, write_bytes=0)
        ledger = (msgspec.structs.replace(first, traffic=moved), *rest)
        return Count(impl=one.impl, workload=one.workload, moved=ledger, notes=("executed",))

    monkeypatch.setattr(recorded, "answers", answers)
    return came


COUNT = ["--count", "--seq", "256", "--impl", "flash-triton", "--device", "h200-141gb-sxm"]


def test_counts_that_are_equal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake_count(monkeypatch, 0)
    code, found, _ = output(COUNT, monkeypatch, capsys)
    assert code == 0
    assert found.count("equal") == 5  # Q, K, V, O, LSE
    assert "  counted: executed\n" in found


def test_a_count_that_differs_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_count(monkeypatch, 12)
    code, found, _ = output(COUNT, monkeypatch, capsys)
    assert code == 1
    assert "DIFFERS: read +12 B" in found


def test_what_has_no_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, said = output(["--impl", "sdpa-flash"], monkeypatch, capsys)
    assert (code, found) == (2, "")
    assert said == ("error: sdpa-flash has no IO model: its tiles are not known\nhint:  name another one\n")


def test_counts_are_in_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake_count(monkeypatch, 0)
    path = tmp_path / "io.json"
    assert output([*COUNT, "--json", str(path)], monkeypatch, capsys)[0] == 0
    (run,) = read_record(path).runs
    # Tiles of 64 x 128: Q once, and K and V once for each of the 4 blocks of queries; 256 rows of 128 bytes.
    assert run.value("l2_read_counted") == (1 + 4 * 2) * 256 * 128
    assert run.value("l2_write_counted") == 256 * 128 + 256 * 4
    assert [entry.tensor for entry in run.counted] == ["Q", "K", "V", "O", "LSE"]
    assert run.numbers["l2_read_counted"].provenance == "counted"


def test_a_sweep_is_counted_where_its_trials_are_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    came = fake_count(monkeypatch, 0)
    code, found, _ = output([*COUNT, "--sweep"], monkeypatch, capsys)
    assert code == 0
    # The workload, four lengths, two more head dims, and three more tiles.
    assert len(came) == 1 + 4 + 2 + 3
    assert [one.sampling.programs for one in came].count("all") == 1
    assert max(one.workload.seq_q for one in came) == 32768
    assert "counted  SM<->L2 N      4k-32k" in found


def test_what_cannot_be_counted_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(recorded, "answers", lambda _: (Failure(message="flash-triton: it broke"),))
    path = tmp_path / "io.json"
    code, found, _ = output([*COUNT, "--json", str(path)], monkeypatch, capsys)
    assert code == 1
    assert "equal" not in found
    assert "  flash-triton: not counted: flash-triton: it broke\n" in found
    number = read_record(path).runs[0].numbers["l2_read_counted"]
    assert (number.value, number.reason) == (None, "flash-triton: it broke")


GLUON = (
    "Triton's interpreter cannot execute Gluon, in which its kernels are written for this device; the "
    "portable ones can be counted: --impl flash-triton"
)


def test_on_hopper_flash_is_not_counted_and_says_what_can_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    came = fake_count(monkeypatch, 0)
    path = tmp_path / "io.json"
    arguments = ["--count", "--seq", "256", "--impl", "flash", "--json", str(path)]
    code, found, _ = output([*arguments, "--device", "h200-141gb-sxm"], monkeypatch, capsys)
    assert (code, came) == (0, [])  # no failure: there is nothing that could be counted
    assert f"flash is not counted: {GLUON}" in " ".join(found.split())
    number = read_record(path).runs[0].numbers["l2_read_counted"]
    assert (number.value, number.reason) == (None, f"not counted here: {GLUON}")


def test_elsewhere_flash_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    came = fake_count(monkeypatch, 0)
    arguments = ["--count", "--seq", "256", "--impl", "flash", "--device", "a100-80gb-sxm"]
    code, found, _ = output(arguments, monkeypatch, capsys)
    assert code == 0
    assert found.count("equal") == 5  # Q, K, V, O, LSE
    assert [(one.impl, one.capability, one.uncounted) for one in came] == [("flash", (8, 0), None)]


def test_tiles_that_are_asked_for_are_counted_on_hopper_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    came = fake_count(monkeypatch, 0)
    arguments = [
        "--count",
        "--seq",
        "256",
        "--impl",
        "flash",
        "--block-m",
        "32",
        "--device",
        "h200-141gb-sxm",
    ]
    code, found, _ = output(arguments, monkeypatch, capsys)
    assert code == 0
    assert found.count("equal") == 5
    (one,) = came
    assert one.uncounted is None
    assert msgspec.json.decode(one.options)["tiles"][0][:2] == [32, 128]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            ["--impl", "standard", "--block-m", "64"],
            "the tiles of standard cannot be chosen", "name one of perfkit's own with --impl, such as flash",
        ),
        (
            ["--impl", "flash", "--block-m", "48"],
            "--block-m must be a power of two from 16 to 1024, not 48", None,
        ),
        (
            # Q of 1024 rows, and one stage of K and V of 256 rows each: 1536 x 256 x 2 bytes.
            ["--impl", "flash", "--head-dim", "256", "--block-m", "1024", "--block-n", "256"],
            "flash_forward with a tile of 1024 x 256 needs 786 kB of shared memory, and a thread block of "
            "h200-141gb-sxm may use 232 kB",
            "choose smaller --block-m and --block-n",
        ),
        (["--impl", "flash", "--pattern", "striped"], "unknown pattern 'striped'", None),
        (
            ["--impl", "flash", "--dropout", "0.1"],
            "flash cannot serve it: flash has no dropout", "change the workload or --impl",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(
    arguments: list[str], message: str, hint: str | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, found, said = output([*arguments, "--device", "h200-141gb-sxm"], monkeypatch, capsys)
    assert (code, found) == (2, "")
    first, *rest = said.splitlines()
    assert first == f"error: {message}"
    if hint is not None:
        assert rest == [f"hint:  {hint}"]
