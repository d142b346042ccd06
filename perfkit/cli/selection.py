"""From the words on the command line to a workload and a list of implementations."""

from collections.abc import Sequence

from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Op


def compared(
    op: Op, names: Sequence[str], baseline: str | None, hardware: str | None
) -> tuple[list[Implementation], str]:
    """The implementations to compare, in the order asked for, and the name of the baseline.

    One may be named twice: against itself it shows what noise looks like. UsageError where fewer than two are
    named, or the baseline is not among them.
    """
    chosen = [row for name in names for row in select(op, name, hardware)]
    if len(chosen) < 2:
        raise UsageError(
            "there is nothing to compare with",
            f"name two or more of: {', '.join(_names(op))}; or two records",
        )
    base = baseline or chosen[0].name
    names = [row.name for row in chosen]
    if base not in names:
        raise UsageError(f"the baseline '{base}' is not compared", f"choose one of: {', '.join(names)}")
    return chosen, base


def _names(op: Op) -> list[str]:
    return [row.name for row in op.implementations]


def modelled_rows(op: Op, names: str, workloads: Sequence[AttentionWorkload]) -> list[Implementation]:
    """The implementations that `names` asks for; UsageError for one without an IO model, or a workload that
    one of them cannot serve."""
    rows = select(op, names, None)
    for row in rows:
        if row.io is None:
            raise UsageError(f"{row.name} has no IO model: its tiles are not known", "name another one")
        for w in workloads:
            if reason := row.refusal(row.workload(w)):
                raise UsageError(f"{row.name} cannot serve it: {reason}", "change the workload or --impl")
    return rows


def select(op: Op, names: str, hardware: str | None, features: Sequence[str] = ()) -> list[Implementation]:
    """The implementations that `names` asks for: a list with commas, or `all`.

    `all` is what something can be said about: everything that runs on `hardware`, and where nothing runs
    (None), what has a model; what is slow on purpose has to be named. Of a workload with `features` it is
    what was made for them. UsageError names the implementations there are.
    """
    if "all" in names.split(","):
        rows = [row for row in op.implementations if _served(row, hardware)]
        if features:
            able = [row for row in rows if row.role != "oracle" and row.serves.issuperset(features)]
            return [row for row in able if row.shaped is None or not row.named_only]
        return [row for row in rows if not row.named_only]
    allowed = ", ".join(_names(op))
    chosen: dict[str, Implementation] = {}
    for name in (part.strip() for part in names.split(",")):
        row = op.implementation(name)
        if row is None:
            raise UsageError(f"unknown implementation '{name}' of {op.name}", f"allowed: all, {allowed}")
        chosen[name] = row
    return list(chosen.values())


def _served(row: Implementation, hardware: str | None) -> bool:
    return row.io is not None if hardware is None else hardware in row.hardware
