"""From the words on the command line to a workload and a list of implementations."""

from perfkit.errors import UsageError
from perfkit.model.units import parse_count
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Op


def attention_workload(
    *,
    seq: str,
    seq_k: str | None,
    batch: str,
    heads: str,
    kv_heads: str | None,
    head_dim: str,
    dtype: str,
    causal: bool,
    pass_: str,
) -> AttentionWorkload:
    """The workload that the options describe; UsageError says what is allowed."""
    return AttentionWorkload(
        batch=parse_count(batch, "--batch"),
        heads=parse_count(heads, "--heads"),
        kv_heads=parse_count(kv_heads or heads, "--kv-heads"),
        seq_q=parse_count(seq, "--seq"),
        seq_k=parse_count(seq_k or seq, "--seq-k"),
        head_dim=parse_count(head_dim, "--head-dim"),
        dtype=dtype,
        causal=causal,
        pass_=pass_,  # type: ignore[arg-type]
    )


def select(op: Op, names: str, hardware: str | None) -> list[Implementation]:
    """The implementations that `names` asks for: a list with commas, or `all`.

    `all` is what something can be said about: everything that runs on `hardware`, and where nothing runs
    (None), what has a model. UsageError names the implementations there are.
    """
    if "all" in names.split(","):
        return [row for row in op.implementations if row.role != "oracle" and _served(row, hardware)]
    allowed = ", ".join(row.name for row in op.implementations)
    chosen: dict[str, Implementation] = {}
    for name in (part.strip() for part in names.split(",")):
        row = op.implementation(name)
        if row is None:
            raise UsageError(f"unknown implementation '{name}' of {op.name}", f"allowed: all, {allowed}")
        chosen[name] = row
    return list(chosen.values())


def _served(row: Implementation, hardware: str | None) -> bool:
    return row.io is not None if hardware is None else hardware in row.hardware
