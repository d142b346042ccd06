"""What the gate found in words and cells, the same in the terminal, in Markdown and in JUnit XML."""

from collections.abc import Iterator, Sequence
from typing import Final

from perfkit.analysis.gate.check import Check, CheckStatus, share
from perfkit.analysis.gate.judge import GateResult
from perfkit.model.units import show
from perfkit.reports.cells import place_text
from perfkit.reports.places import common, joined, place, places

#: The parts of a report that list checks: status, title, and what to do.
SECTIONS: Final[tuple[tuple[CheckStatus, str, str], ...]] = (
    ("fail", "Failed", "regressions, or wrong"),
    ("warn", "Warnings", "they fail with --strict"),
    ("improved", "Improved", "update the baseline to keep it"),
)


def verdict_line(result: GateResult) -> str:
    """The verdict with its counts: `FAIL: 2 of 143 checks, 1 warning`."""
    judged, failed = len(result.judged), len(result.of("fail"))
    rest = [
        f"{count} {word}{'s' if word == 'warning' and count > 1 else ''}"
        for count, word in ((len(result.of("warn")), "warning"), (len(result.of("improved")), "improved"))
        if count
    ]
    if not result.exit_code:
        return ", ".join([f"PASS: {_checks(judged)}", *rest])
    word = "INVALID" if result.invalid else "FAIL"
    return ", ".join([f"{word}: {failed} of {_checks(judged)}", *rest])


def _checks(count: int) -> str:
    return f"{count} check{'' if count == 1 else 's'}"


def subject_lines(result: GateResult) -> Iterator[str]:
    """What was gated: op, device, workloads, and when the two records were made."""
    record, among = result.current, result.workloads
    yield f"{record.op} on {record.device.model}"
    if among:
        where = [text for w in among if (text := place(w, among))]
        yield common(among) + (f", at {places(where)}" if where else "")
    if record.backend in ("model", "fake"):
        yield f"{'MODELLED' if record.backend == 'model' else 'FAKE'}: no number here was measured"
    old, new = result.base.environment.timestamp, result.current.environment.timestamp
    yield f"baseline of {old}, current of {new}"


def limits_line(result: GateResult) -> str:
    """The limits that were applied."""
    limits = result.limits
    shares = (
        ("time", limits.time), ("traffic and FLOPs", limits.traffic), ("DRAM re-reads", limits.dram),
        ("peak memory", limits.memory),
    )  # fmt: skip
    words = ", ".join(f"{name} {share(value)}" for name, value in shares)
    return f"allowed: {words}{'; strict' if limits.strict else ''}"


def passed_line(result: GateResult) -> str:
    """How many checks of each kind passed."""
    kinds = [check.kind for check in result.of("pass")]
    counts = ", ".join(f"{kind} {kinds.count(kind)}" for kind in dict.fromkeys(kinds))
    return f"passed: {counts or 'none'}"


def noted_lines(result: GateResult) -> Iterator[str]:
    """What there was nothing to compare for: equal reasons in one line, with their runs."""
    found: dict[tuple[str, str], list[Check]] = {}
    for check in result.of("noted"):
        found.setdefault((check.reason, check.kind), []).append(check)
    for (reason, kind), checks in found.items():
        whats = dict.fromkeys(check.what for check in checks)
        # Several names stand only where they are true of every run that is named.
        what = joined(whats) if len(whats) == 1 else f"{len(checks)} checks of {kind}"
        yield f"{runs_text(checks, result)}: {'' if kind == 'run' else f'{what}: '}{reason}"


def runs_text(checks: Sequence[Check], result: GateResult) -> str:
    """The runs of some checks: `standard and flash at N 1k and 4k`."""
    who = joined(dict.fromkeys(check.impl for check in checks))
    where = [text for check in checks if (text := place(check.workload, result.workloads))]
    return f"{who} at {places(where)}" if where else who


def where_text(check: Check, result: GateResult) -> str:
    """The workload of a check beside the others, and which of several equal runs it is."""
    text = place_text(check.workload, result.workloads)
    return f"{text} #{check.repeat + 1}".strip() if check.repeat else text


def value_texts(check: Check) -> tuple[str, str, str]:
    """The baseline's value, the current one, and the change; `-` where there is none."""
    return show(check.base, check.hint), show(check.current, check.hint), change_text(check)


def change_text(check: Check) -> str:
    """The change in percent, or as a factor where it is large."""
    if check.change is None:
        return "-"
    return f"{check.change:+.2%}" if abs(check.change) < 0.995 else f"{check.change + 1:.3g}x"


def has_values(check: Check) -> bool:
    """Whether a check is one of numbers."""
    return check.base is not None or check.current is not None
