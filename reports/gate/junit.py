"""The gate as JUnit XML: a suite for each run, a case for each check, as Jenkins and GitLab read it.

What failed is a failure, what cannot be true an error, a warning or improvement is output of its case, and
what there was nothing to compare for is skipped.
"""

import re
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree as ET

from perfkit.analysis.gate.check import Check
from perfkit.analysis.gate.judge import GateResult
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.reports.gate import words
from perfkit.reports.places import common

#: What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(result: GateResult) -> bytes:
    """The whole file, in UTF-8."""
    root = ET.Element("testsuites", {"name": "perfkit gate", **_counts(result.checks, skipped=False)})
    suites: dict[tuple[str, AttentionWorkload, int], list[Check]] = {}
    for check in result.checks:
        suites.setdefault((check.impl, check.workload, check.repeat), []).append(check)
    for checks in suites.values():
        root.append(_suite(checks, result))
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _counts(checks: Sequence[Check], skipped: bool = True) -> dict[str, str]:
    """How many cases there are and how they ended; the common schema has no `skipped` at the root."""
    errors = sum(check.invalid for check in checks)
    counts = {
        "tests": len(checks),
        "failures": sum(check.status == "fail" for check in checks) - errors,
        "errors": errors,
        **({"skipped": sum(check.status == "noted" for check in checks)} if skipped else {}),
    }
    return {name: str(count) for name, count in counts.items()}


def _suite(checks: Sequence[Check], result: GateResult) -> ET.Element:
    first, record = checks[0], result.current
    repeat = f" #{first.repeat + 1}" if first.repeat else ""
    name = _clean(f"{first.impl}{repeat}: {common([first.workload])}")
    # To the second, without a zone, is what the schema takes: the record's time is UTC.
    suite = ET.Element(
        "testsuite", {"name": name, **_counts(checks), "timestamp": record.environment.timestamp[:19]}
    )
    properties = ET.SubElement(suite, "properties")
    for key, value in (
        ("device", record.device.name),
        ("backend", record.backend),
        ("baseline", result.base.environment.timestamp),
    ):
        ET.SubElement(properties, "property", {"name": key, "value": _clean(value)})
    suite.extend(_case(check, f"perfkit.{record.op}.{first.impl}{repeat}") for check in checks)
    return suite


def _case(check: Check, classname: str) -> ET.Element:
    case = ET.Element("testcase", {"name": _clean(check.what), "classname": _clean(classname)})
    reason = _clean(check.reason)
    if check.status == "noted":
        ET.SubElement(case, "skipped", {"message": reason})
    elif check.status == "fail":
        tag = "error" if check.invalid else "failure"
        ET.SubElement(case, tag, {"message": reason, "type": check.kind}).text = _text(check)
    elif check.status != "pass":
        word = "warning" if check.status == "warn" else "improved"
        ET.SubElement(case, "system-out").text = f"{word}: {_text(check)}"
    return case


def _text(check: Check) -> str:
    """Reason and numbers in one line."""
    old, new, change = words.value_texts(check)
    numbers = f": baseline {old}, now {new}, change {change}" if words.has_values(check) else ""
    return _clean(f"{check.what}{numbers}: {check.reason}")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("", text)
