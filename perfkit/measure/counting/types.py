"""What a count is asked for and what it gives: plain records, which travel as JSON to a process and back."""

from typing import Final, Literal

import msgspec

from perfkit.errors import PerfkitError
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, Ledger, Uses

#: The compute capability whose tiles run unless another is asked for.
DEFAULT_CAPABILITY: Final = (9, 0)


class CountFailed(PerfkitError):
    """The implementation could not be executed, or what it touched could not be told apart."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What runs. The count is multiplied up to the whole workload.

    `heads`: "one" runs a single K/V head, with the query heads that share it. `programs`: "alike" runs one
    program of each class of programs that do the same, where the classes of a kernel are known.
    """

    heads: Literal["one", "all"] = "one"
    programs: Literal["all", "alike"] = "all"


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """How many `programs` one launch of a kernel has, how many `ran`, and the rule that chose them."""

    kernel: str
    programs: int
    ran: int
    rule: str


class Atomics(msgspec.Struct, frozen=True, kw_only=True):
    """Atomic operations of one kernel on one tensor, and the bytes of their operands."""

    kernel: str
    tensor: str
    operations: int
    operand_bytes: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One count: an implementation's lazy target with its options as JSON, a workload, how to run it.

    The kernels take the tiles of `capability`; `descriptors` has them read through tensor descriptors, as
    they do on devices that gain from it. `ragged` says that each sequence of the batch does something else,
    so that no head of one stands for those of the others. `uncounted` says why nothing can be executed.
    """

    impl: str
    target: str
    workload: AttentionWorkload
    options: str = "{}"
    sampling: Sampling = Sampling()
    capability: tuple[int, int] = DEFAULT_CAPABILITY
    descriptors: bool = False
    ragged: bool = False
    uncounted: str | None = None


class Count(msgspec.Struct, frozen=True, kw_only=True, tag="count"):
    """What executing an implementation once moved, per kernel and tensor, as its ledger has it.

    `uses` are the tiles that ran. `passes` names the kernels of torch: of those, passes over whole tensors
    were counted; of all others, every load and store. `notes` say how it was run.
    """

    impl: str
    workload: AttentionWorkload
    moved: Ledger
    atomics: tuple[Atomics, ...] = ()
    uses: Uses = ()
    passes: tuple[str, ...] = ()
    sampled: tuple[Sampled, ...] = ()
    notes: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """Why there is no count: an error's message and hint."""

    message: str
    hint: str = ""


def request(
    row: Implementation,
    w: AttentionWorkload,
    sampling: Sampling | None = None,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    descriptors: bool = False,
) -> Request:
    """The request to count `row` on `w`."""
    return Request(
        impl=row.name,
        target=row.target,
        workload=w,
        options=msgspec.json.encode(row.options).decode(),
        sampling=sampling or Sampling(),
        capability=capability,
        descriptors=descriptors,
        # What materialises its matrices computes padded keys like any other.
        ragged=w.padding > 0 and not row.materialises,
        uncounted=row.not_counted(w, capability),
    )
