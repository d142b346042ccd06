"""Published figures for the workload of a run, to be shown beside what was measured here."""

from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Published

__all__ = ["Published", "published"]


def published(op: str, workload: AttentionWorkload) -> tuple[Published, ...]:
    """What others published for `workload` of the op called `op`; empty where nothing is known."""
    return find_op(op).published(workload)
