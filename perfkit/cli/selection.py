"""From the words on the command line to a workload and a list of implementations."""

from collections.abc import Sequence

from perfkit.errors import UsageError
from perfkit.model.units import parse_count
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Op
from perfkit.ops.patterns import canonical


def attention_workloads(
    *,
    seqs: Sequence[str],
    seq_k: str | None,
    batch: str,
    heads: str,
    kv_heads: str | None,
    head_dim: str,
    dtype: str,
    causal: bool,
    pass_: str,
    pattern: str | None = None,
    dropout: float = 0.0,
    padding: str = "0",
) -> list[AttentionWorkload]:
    """The workloads that the options describe, one a length; UsageError says what is allowed."""
    found = [
        AttentionWorkload(
            batch=parse_count(batch, "--batch"),
            heads=parse_count(heads, "--heads"),
            kv_heads=parse_count(kv_heads or heads, "--kv-heads"),
            seq_q=parse_count(seq, "--seq"),
            seq_k=parse_count(seq_k or seq, "--seq-k"),
            head_dim=parse_count(head_dim, "--head-dim"),
            dtype=dtype,
            causal=causal,
            pass_=pass_,  # type: ignore[arg-type]
            pattern=canonical(pattern) if pattern else None,
            dropout=dropout,
            padding=0 if padding == "0" else parse_count(padding, "--padding"),
        )
        for seq in seqs
    ]
    return list(dict.fromkeys(found))


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
            if reason := row.refusal(w):
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
            return [row for row in rows if row.role != "oracle" and row.serves.issuperset(features)]
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
