"""Passes over tensors that operations of torch make: each input read once, each output written once.

What an operation does inside (a matrix product re-reads its operands from L2) is not seen: the count is that
of Algorithm 0 in the papers, at DRAM. An operation that reads a part of a tensor, as an index does, counts
as reading all of it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from perfkit.measure.counting.names import step_of
from perfkit.measure.counting.tally import Tally

#: Operations that make a tensor and leave its memory as it is.
_EMPTY: Final = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
#: Operations that read no memory: what they are given is a pattern of sizes, or is overwritten.
_WRITE_ONLY: Final = frozenset(
    {"zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full"}
    | {"zero_", "fill_", "copy_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
)
#: Operations that scale their first operand by beta, and do not read it where beta is 0.
_ADDEND: Final = frozenset({"addmm", "addmm_", "addmv", "addmv_", "baddbmm", "baddbmm_", "addbmm", "addbmm_"})


#: The name of a tensor that no operation of torch and no input gave one.
UNNAMED: Final = "unnamed"


class Passes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, adds what every operation of torch moves to `tally`, if `counting`.

    Tensors are told apart by their memory: `named` ones to begin with, then each that an operation writes.
    Nothing is looked at while `ignored` says so: then a launch copies its arguments, which no GPU does.
    """

    def __init__(self, tally: Tally, named: Mapping[str, Tensor], ignored: Callable[[], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counting = True
        self.kernels: dict[str, None] = {}
        self._tally, self._ignored = tally, ignored
        self._names = {_memory(tensor): name for name, tensor in named.items()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._ignored():
            return func(*args, **kwargs)
        operation = str(func.overloadpacket.__name__)
        given = {_memory(tensor) for tensor in _tensors([args, kwargs])}
        read, mutated = _operands(func, operation, args, kwargs)
        names = {id(tensor): self._names.get(_memory(tensor), UNNAMED) for tensor in read}
        result = func(*args, **kwargs)
        made = [tensor for tensor in _tensors([result]) if _memory(tensor) not in given]
        if operation in _EMPTY:
            for tensor in made:
                self._names.pop(_memory(tensor), None)
        elif mutated or made:  # all others give views
            self._count(operation, read, names, [*mutated, *made])
        return result

    def _count(
        self, operation: str, read: Iterable[Tensor], names: dict[int, str], written: Iterable[Tensor]
    ) -> None:
        step, output = step_of(operation, frozenset(names.values()))
        for tensor in written:
            self._names[_memory(tensor)] = output
        if not self.counting:
            return
        self.kernels[step] = None
        for tensor in _distinct(read):
            self._tally.of(step, names[id(tensor)]).read += _bytes(tensor)
        for tensor in _distinct(written):
            self._tally.of(step, output).written += _bytes(tensor)


def _operands(
    func: Any, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """(tensors that are read, given tensors that are written) of a call, by the schema of the operation."""
    read: list[Tensor] = []
    mutated: list[Tensor] = []
    for at, formal in enumerate(func._schema.arguments):
        value = args[at] if at < len(args) and not formal.kwarg_only else kwargs.get(formal.name)
        tensors = list(_tensors([value]))
        writes = formal.alias_info is not None and formal.alias_info.is_write
        if writes:
            mutated += tensors
        # An `out` is only written; a tensor that is changed in place is read as well.
        unread = (writes and formal.kwarg_only) or (operation in _WRITE_ONLY and (writes or at == 0))
        skipped = at == 0 and operation in _ADDEND and kwargs.get("beta", 1) == 0
        if not unread and not skipped:
            read += tensors
    return read, mutated


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each piece of memory once, though it be given twice."""
    return list({(t.data_ptr(), t.shape, t.stride()): t for t in tensors}.values())


def _memory(tensor: Tensor) -> int:
    """What tells one tensor's memory from another's."""
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    """Bytes of the memory that a tensor addresses: a dimension that is expanded (stride 0) counts once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return math.prod(sizes) * tensor.element_size()
