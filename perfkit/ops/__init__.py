"""The ops that perfkit knows: one row each."""

from typing import Final

from perfkit.errors import UsageError
from perfkit.ops.attention import ATTENTION
from perfkit.ops.attention_family import FAMILY
from perfkit.ops.base import Op

OPS: Final[tuple[Op, ...]] = (ATTENTION, *FAMILY)


def find_op(name: str) -> Op:
    """The op called `name`; UsageError names the ones there are."""
    found = next((op for op in OPS if op.name == name), None)
    if found is None:
        raise UsageError(f"unknown op '{name}'", f"allowed: {', '.join(op.name for op in OPS)}")
    return found
