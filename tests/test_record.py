"""The record: what a number may be, the round trip through JSON, load errors, and the data frame."""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from perfkit.errors import UsageError
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import run_session
from perfkit.model.catalogue import load as load_profile
from perfkit.model.units import UNITS, Hint
from perfkit.ops import OPS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse
from perfkit.record import (
    BY_TAG,
    QUANTITIES,
    SCHEMA,
    KernelCounts,
    Number,
    Record,
    Run,
    dump,
    load,
    number,
    rows,
    unavailable,
)

SMALL = AttentionWorkload(batch=2, heads=8, kv_heads=2, seq_q=113, seq_k=203, causal=True, pass_="fwd-bwd")


def session(backend: Any, w: AttentionWorkload = SMALL) -> Record:
    op = OPS[0]
    return run_session(op, [w], op.implementations, backend, lambda _impl, _what: None)


@pytest.fixture
def full() -> Record:
    """Everything that a record can hold: runs that went well, refused ones, counters, notes."""
    record = session(FakeBackend())
    counted = msgspec.structs.replace(
        record.runs[1],
        kernels=(KernelCounts(name="flash_forward", values={"l2_read_bytes": 1.0}),),
        clock_reasons=("software power cap (40%)",),
        notes=("timing did not settle",),
        uses=(
            KernelUse(kernel="flash_forward", block_m=128, block_n=64, num_warps=4, num_stages=2,
                      shared_bytes=98304, registers=255, spills=0),
            *record.runs[1].uses,
        ),
    )  # fmt: skip
    ended = Run(impl="flex", workload=SMALL, status="interrupted", reason="interrupted while it was measured")
    return msgspec.structs.replace(record, runs=(record.runs[0], counted, *record.runs[2:], ended))


# Numbers.


def test_a_number_has_the_unit_of_its_quantity() -> None:
    assert number("time", 0.5, "measured") == Number(value=0.5, unit="s", provenance="measured")
    assert number("l2_read", 7, "modelled", "FA2") == Number(
        value=7, unit="B", provenance="modelled", reason="FA2"
    )
    assert unavailable("power", "no sensor") == Number(
        value=None, unit="W", provenance="unavailable", reason="no sensor"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"value": None, "provenance": "measured", "reason": "why"},
        {"value": None, "provenance": "unavailable"},
        {"value": None, "provenance": "unavailable", "reason": ""},
        {"value": 1.0, "provenance": "unavailable", "reason": "why"},
    ],
)
def test_a_number_is_unavailable_exactly_when_it_has_no_value(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unavailable exactly when it has no value"):
        Number(unit="s", **fields)


def test_zero_is_a_value() -> None:
    assert number("exps", 0, "modelled").value == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_is_finite(value: float) -> None:
    """JSON has no nan: it would be saved as null, and the record could not be read again."""
    with pytest.raises(ValueError, match=f"^a number is finite, not {value}$"):
        number("error", value, "measured")


def test_quantities_are_explicit() -> None:
    assert len(BY_TAG) == len(QUANTITIES)
    for quantity in QUANTITIES:
        assert quantity.hint in get_args(Hint)
        assert quantity.hint in UNITS
        assert quantity.label
        assert quantity.description


# JSON.


def test_round_trip(full: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(dump(full))
    again = load(path)
    assert again == full
    assert again.device == load_profile("h200-141gb-sxm")
    assert dump(again) == dump(full)


def test_what_the_file_looks_like(full: Record) -> None:
    text = dump(full)
    assert text.endswith(b"}\n")
    found = json.loads(text)
    assert found["schema"] == SCHEMA == "perfkit.record/1"
    assert list(found) == ["schema", "op", "backend", "device", "environment", "runs", "notes", "baseline"]
    assert found["device"]["sources"]  # the whole profile travels
    first = found["runs"][0]
    assert (first["impl"], first["workload"]["pass"]) == ("standard", "fwd-bwd")
    assert first["numbers"]["flops_exact"].keys() == {"value", "unit", "provenance"}  # no reason, no key
    assert len(first["timing"]["samples_s"]) == 10  # raw samples are kept


@pytest.mark.parametrize("name", ["a100-40gb-sxm", "mi300x", "rtx-4090", "t4"])
def test_modelled_records_of_other_devices_round_trip(name: str, tmp_path: Path) -> None:
    record = session(ModelBackend(load_profile(name), "no GPU here"))
    path = tmp_path / "record.json"
    path.write_bytes(dump(record))
    assert load(path) == record


def test_large_integers_stay_exact(tmp_path: Path) -> None:
    w = AttentionWorkload(seq_q=1 << 22, seq_k=1 << 22, batch=1024, heads=128, kv_heads=128)
    record = session(
        ModelBackend(load_profile("t4"), "no GPU here"), msgspec.structs.replace(w, dtype="fp16")
    )
    path = tmp_path / "record.json"
    path.write_bytes(dump(record))
    flops = load(path).runs[0].numbers["flops_convention"].value
    assert flops == 4 * (1 << 44) * 64 * 1024 * 128  # 2^69
    assert type(flops) is int


# Load errors.


def test_a_missing_file() -> None:
    with pytest.raises(UsageError) as missing:
        load("nowhere.json")
    assert missing.value.message == "cannot read record nowhere.json: No such file or directory"


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as folder:
        load(tmp_path)
    assert folder.value.message == f"cannot read record {tmp_path}: Is a directory"


def change(record: Record, path: str, value: Any) -> bytes:
    """The record's JSON with the entry at `path` replaced."""
    tree = json.loads(dump(record))
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    at = tree
    for step in steps:
        at = at[step]
    at[last] = value
    return json.dumps(tree).encode()


GARBAGE = [
    (b"", "Input data was truncated"),
    (b"hello", "JSON is malformed: invalid character (byte 0)"),
    (b"\x89PNG\r\n", "JSON is malformed: invalid character (byte 0)"),
    (b"[]", "Expected `object`, got `array`"),
    (b"{}", "Object missing required field `op`"),
    (b'{"schema": "perfkit.record/0"}', "Invalid value 'perfkit.record/0' - at `$.schema`"),
    (b'{"schema": 1}', "Expected `str` - at `$.schema`"),
]


@pytest.mark.parametrize(("content", "problem"), GARBAGE)
def test_garbage(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        load(path)
    assert refused.value.message == f"{path} is not a perfkit record: {problem}"
    assert refused.value.hint == "this perfkit reads schema perfkit.record/1"


@pytest.mark.parametrize(
    ("where", "value", "problem"),
    [
        (
            "runs/0/status",
            "great",
            "Invalid enum value 'great' - at `$.runs[0].status`",
        ),
        (
            "runs/0/workload/heads",
            "many",
            "Expected `int`, got `str` - at `$.runs[0].workload.heads`",
        ),
        (
            "runs/0/workload/colour",
            "red",
            "Object contains unknown field `colour` - at `$.runs[0].workload`",
        ),
        (
            "runs/0/numbers/time",
            {"value": None, "unit": "s", "provenance": "measured"},
            "a number is unavailable exactly when it has no value, and then it has a reason"
            " - at `$.runs[0].numbers[...]`",
        ),
        ("device/figures/sm_count/value", -1, None),
    ],
)
def test_a_record_that_contradicts_itself(
    full: Record, where: str, value: Any, problem: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(change(full, where, value))
    with pytest.raises(UsageError) as refused:
        load(path)
    if problem:
        assert refused.value.message == f"{path} is not a perfkit record: {problem}"
    assert refused.value.message.startswith(f"{path} is not a perfkit record: ")
    assert "\n" not in refused.value.message


def test_a_workload_that_means_nothing_names_the_file(full: Record, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(change(full, "runs/0/workload/kv_heads", 3))
    with pytest.raises(UsageError) as refused:
        load(path)
    assert refused.value.message.startswith(f"{path} is not a perfkit record: kv-heads must divide heads")


# Data frame.

COLUMNS = [
    "op", "device", "impl", "status",
    "batch", "heads", "kv_heads", "seq_q", "seq_k", "head_dim", "dtype", "causal", "pass",
    "pattern", "dropout", "padding", "cache_dtype", "page", "prefix", "append",
    "tag", "label", "value", "unit", "provenance", "reason",
]  # fmt: skip


def test_one_row_per_number(full: Record) -> None:
    table = rows(full)
    assert len(table) == sum(len(run.numbers) for run in full.runs)
    assert [list(row) for row in table] == [COLUMNS] * len(table)
    assert table[0] == {
        "op": "attention", "device": "h200-141gb-sxm", "impl": "standard", "status": "measured",
        "batch": 2, "heads": 8, "kv_heads": 2, "seq_q": 113, "seq_k": 203, "head_dim": 64, "dtype": "bf16",
        "causal": True, "pass": "fwd-bwd", "pattern": None, "dropout": 0.0, "padding": 0,
        "cache_dtype": None, "page": 0, "prefix": 0, "append": False,
        "tag": "flops_convention", "label": "FLOPs, convention",
        # 3.5 x 4 x d x pairs: query i sees i + 1 + 90 keys
        "value": 14 * 64 * 2 * 8 * sum(i + 91 for i in range(113)),
        "unit": "FLOP", "provenance": "modelled", "reason": None,
    }  # fmt: skip


def test_dataframe(full: Record) -> None:
    pytest.importorskip("pandas")
    frame = full.dataframe()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == len(rows(full))
    times = frame[frame.tag == "time"].set_index("impl")["value"]
    assert times["flash"] == full.runs[1].value("time")
    absent = frame[frame.provenance == "unavailable"]
    assert absent["value"].isna().all()
    assert absent["reason"].notna().all()


def test_dataframe_of_nothing(full: Record) -> None:
    pytest.importorskip("pandas")
    assert len(msgspec.structs.replace(full, runs=()).dataframe()) == 0


def test_a_run_says_none_for_what_it_has_not(full: Record) -> None:
    assert full.runs[0].value("time") is not None
    assert full.runs[0].value("nothing of this kind") is None
    assert full.runs[-1].value("time") is None
