"""The gate as JUnit XML, parsed back: structure, counts, outcomes, and strings that XML cannot hold."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from perfkit.analysis.gate.judge import GateResult, gate
from perfkit.analysis.gate.limits import Limits
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record, load, number, unavailable
from perfkit.reports.gate.junit import as_junit

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples" / "h200").glob("*.json"))
OP = find_op("attention")

#: What the common schema (the one that Jenkins publishes) allows: element -> attributes, children in order.
SCHEMA: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "disabled", "errors"}, ("testsuite",)),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id",
         "package"},
        ("properties", "testcase", "system-out", "system-err"),
    ),
    "properties": (set(), ("property",)),
    "property": ({"name", "value"}, ()),
    "testcase": (
        {"name", "assertions", "time", "classname", "status"},
        ("skipped", "error", "failure", "system-out", "system-err"),
    ),
    "skipped": ({"message"}, ()),
    "error": ({"type", "message"}, ()),
    "failure": ({"type", "message"}, ()),
    "system-out": (set(), ()),
}  # fmt: skip


def fake(*impls: str) -> Record:
    workload = AttentionWorkload(heads=16, kv_heads=16, seq_q=4096, seq_k=4096, head_dim=64)
    rows = [row for name in impls if (row := OP.implementation(name))]
    return run_session(OP, [workload], rows, FakeBackend(), lambda _impl, _what: None)


def edited(record: Record, index: int, **fields: Any) -> Record:
    runs = list(record.runs)
    runs[index] = msgspec.structs.replace(runs[index], **fields)
    return msgspec.structs.replace(record, runs=tuple(runs))


def planted() -> tuple[Record, Record]:
    """standard fails in memory and lacks a counter, flash cannot be true, and flash again is better."""
    base = fake("standard", "flash", "flash")
    one, two, three = (dict(run.numbers) for run in base.runs)
    one["peak_memory"] = number("peak_memory", 2e9, "measured")
    one["flops_vector"] = number("flops_vector", 1e9, "measured")  # the fake backend has none
    one["exps_measured"] = unavailable("exps_measured", "no counters")
    two["time"] = number("time", (base.runs[1].value("time") or 0) / 10, "measured")
    three["peak_memory"] = number("peak_memory", 5e8, "measured")
    current = edited(edited(edited(base, 0, numbers=one), 1, numbers=two), 2, numbers=three)
    return base, current


def result(base: Record, current: Record, **limits: Any) -> GateResult:
    return gate(study(base), study(current), Limits(**limits))


def parsed(found: GateResult) -> ET.Element:
    content = as_junit(found)
    assert content.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n<testsuites ")
    return ET.fromstring(content)


def check_schema(element: ET.Element) -> None:
    attributes, children = SCHEMA[element.tag]
    assert set(element.attrib) <= attributes, element.tag
    order = [children.index(child.tag) for child in element]
    assert order == sorted(order), element.tag
    for child in element:
        check_schema(child)


def count(element: ET.Element, tag: str) -> int:
    return len(element.findall(f".//{tag}"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_record_makes_a_valid_file_with_true_counts(path: Path) -> None:
    record = load(path)
    found = result(record, record)
    root = parsed(found)
    check_schema(root)
    assert root.get("tests") == str(len(found.checks)) == str(count(root, "testcase"))
    assert len(root) == len(record.runs)
    assert (root.get("failures"), root.get("errors")) == ("0", "0")
    for suite in root:
        names = [case.get("name") for case in suite.iter("testcase")]
        assert len(set(names)) == len(names)


def test_outcomes_have_their_elements() -> None:
    root = parsed(result(*planted()))
    check_schema(root)
    assert (root.get("failures"), root.get("errors")) == ("1", "1")
    workload = "batch 1, 16 heads, N 4k, d 64, bf16, full mask, forward"
    assert [suite.get("name") for suite in root] == [
        f"standard: {workload}",
        f"flash: {workload}",
        f"flash #2: {workload}",
    ]
    for suite in root:
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert suite.get(name) == str(count(suite, tag))
        assert suite.get("tests") == str(count(suite, "testcase"))
        assert suite.get("timestamp") == "2026-01-01T00:00:00"
    standard, flash, again = root

    def case(suite: ET.Element, name: str) -> ET.Element:
        (found,) = [case for case in suite.iter("testcase") if case.get("name") == name]
        return found

    failure = case(standard, "peak memory").find("failure")
    assert failure is not None
    assert failure.attrib == {"message": "beyond 1%", "type": "memory"}
    assert failure.text == "peak memory: baseline 1.00 GB, now 2.00 GB, change 2x: beyond 1%"
    warning = case(standard, "exps and conversions").findtext("system-out")
    assert warning == (
        "warning: exps and conversions: baseline 268,435,456, now -, change -: "
        "measured in the baseline, unavailable now: no counters"
    )  # 16 heads of 4096 x 4096
    skipped = case(standard, "FLOPs, vector units").find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "not in the baseline: not faked"
    assert case(standard, "time").get("classname") == "perfkit.attention.standard"
    assert len(case(standard, "time")) == 0
    error = case(flash, "run").find("error")
    assert error is not None
    assert (error.get("message") or "").startswith("INVALID: 8.00x above the compute roof")  # 10 / 1.25
    better = case(again, "peak memory").findtext("system-out")
    assert (
        better == "improved: peak memory: baseline 1.00 GB, now 500 MB, change -50.00%: less by more than 1%"
    )
    assert case(again, "time").get("classname") == "perfkit.attention.flash #2"


def test_strict_warnings_are_failures() -> None:
    root = parsed(result(*planted(), strict=True))
    assert (root.get("failures"), root.get("errors")) == ("2", "1")


def test_what_xml_cannot_hold_is_left_out_and_the_rest_escaped() -> None:
    base = fake("flash")
    reason = 'a\x00b\x1b[31m <c> & "d" ]]> \ud800 \ufffe e\u0301'
    root = parsed(result(base, edited(base, 0, status="failed", reason=reason)))
    (failure,) = root.iter("failure")
    said = 'failed now, measured in the baseline: ab[31m <c> & "d" ]]>   e\u0301'
    assert failure.get("message") == said
    assert failure.text == f"run: {said}"


def test_an_implementation_with_control_characters_makes_a_valid_file() -> None:
    base = edited(fake("flash"), 0, impl="x\x07<y>")
    root = parsed(result(base, base))
    assert [suite.get("name", "").split(":")[0] for suite in root] == ["x<y>"]
