"""What an op and an implementation are, for every op."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from perfkit.model.device import DeviceProfile
from perfkit.model.traffic import Traffic
from perfkit.model.units import Hint

#: Where measured bytes are held against modelled ones: the SM<->L2 boundary is the papers' "HBM <-> SRAM".
Level = Literal["L2", "DRAM"]
Role = Literal["shipped", "peer", "oracle"]


class KernelUse(msgspec.Struct, frozen=True, kw_only=True):
    """The tile of one kernel, and what its compiled code really takes (None before it was compiled).

    `block_m` rows of queries by `block_n` rows of keys; `shared_bytes` and `registers` (32-bit, per thread)
    and `spills` (32-bit, per thread) as the compiler reports them.
    """

    kernel: str
    block_m: int
    block_n: int
    num_warps: int | None = None
    num_stages: int | None = None
    shared_bytes: int | None = None
    registers: int | None = None
    spills: int | None = None


Uses = tuple[KernelUse, ...]


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What one kernel moves of one tensor. `kernel` is the name of a kernel, or the step that it computes."""

    kernel: str
    tensor: str
    traffic: Traffic


#: All that an implementation moves at one level, in launch order: one entry per kernel and tensor.
Ledger = tuple[Moved, ...]


def total(moved: Iterable[Moved]) -> Traffic:
    """The traffic of all entries together."""
    return sum((entry.traffic for entry in moved), Traffic(read_bytes=0, write_bytes=0))


class Cached(msgspec.Struct, frozen=True, kw_only=True):
    """DRAM traffic as the L2 model predicts it, and the case that it rests on."""

    traffic: Traffic
    reason: str


class Zeros(msgspec.Struct, frozen=True, kw_only=True):
    """Zeros that TMA fills into the boxes that one kernel loads, in bytes: what lies outside of a tensor.

    `columns` beyond the head dim, of rows that there are; `rows` beyond the last one, as wide as the box.
    They are no part of a tensor, but a counter at the SM counts them with what is read.
    """

    kernel: str
    columns: int
    rows: int

    @property
    def counted(self) -> int:
        """Those that the counter at the SM has: on an H200 all, where it was looked at."""
        return self.columns + self.rows


def by_tensor(ledger: Ledger) -> dict[tuple[str, str], Traffic]:
    """The traffic of every (kernel, tensor), entries of the same added up, in the order of the ledger."""
    found: dict[tuple[str, str], Traffic] = {}
    for entry in ledger:
        key = (entry.kernel, entry.tensor)
        found[key] = found.get(key, Traffic(read_bytes=0, write_bytes=0)) + entry.traffic
    return found


def no_zeros(*_: Any) -> tuple[Zeros, ...]:
    """Those of kernels that do not load by TMA."""
    return ()


class IOModel(msgspec.Struct, frozen=True, kw_only=True):
    """Closed forms of one implementation, as functions of the workload and the tiles that ran.

    `level` is the boundary at which the `ledger` is what the counters must show; `source` says whose formula
    it is; `tiled` names the kernels of the pass without whose tiles there is no ledger; `extra_flops` says
    why the issued FLOPs differ from the convention's. `dram` predicts DRAM traffic from the workload, the
    tiles and the device's L2. `zeros` are no part of the ledger; a device may have no TMA. None: kernels load
    by TMA, and its zeros are not modelled. Where there are several paths, the kernels among the tiles say
    which one it is.
    """

    level: Level
    ledger: Callable[[Any, Uses], Ledger]
    tiled: Callable[[Any, Uses], tuple[str, ...]]
    dram: Callable[[Any, Uses, DeviceProfile], Cached]
    issued_flops: Callable[[Any, Uses], int]
    exps: Callable[[Any, Uses], int]
    extra_flops: Callable[[Any, Uses], tuple[str, ...]]
    launches: Callable[[Any, Uses], int]
    source: str
    zeros: Callable[[Any, Uses, DeviceProfile], tuple[Zeros, ...]] | None = None

    def traffic(self, workload: Any, uses: Uses) -> Traffic:
        """The sum of the ledger."""
        return total(self.ledger(workload, uses))


#: (workload, device, block_m or None, block_n or None) -> (keyword arguments of the target, tiles). None
#: leaves a side as the table has it.
Retiling = Callable[[Any, DeviceProfile, int | None, int | None], tuple[Mapping[str, Any], Uses]]


class Implementation(msgspec.Struct, frozen=True, kw_only=True):
    """One way of computing an op.

    `target` is a lazy "module:function"; `plan` a lazy function from (workload, capability) to tiles, so that
    the model works where nothing can be compiled; `rest` one from what ran as well to the tiles of that path,
    where a device alone does not say which path is taken. `io` is None where the tile is somebody
    else's secret: then only compulsory traffic is modelled. `workspace` is what it allocates besides its
    inputs and outputs, in bytes, and `dtypes` what it computes in. One that `materialises` its intermediate
    matrices does not share tiles of queries, and has no tile height. One that is `named_only` is no part of
    `all`: it is slow on purpose, or computes something of its own. `serves` names the features of a workload
    beyond the ordinary that it can do (see `features` of the workload). `options` are keyword arguments for
    the target; `retiled` gives those that make it run other tiles, and what these are, or raises UsageError.
    `shaped` is given where it runs another workload than the one that is asked for: `mqa` one with a single
    K/V head. `pinned` are options with which it does again what it did, where sizes alone do not say that.
    `uncounted` says of tiles why their kernels cannot be executed on a CPU, if they cannot.
    """

    name: str
    target: str
    description: str
    role: Role
    dtypes: tuple[str, ...]
    workspace: Callable[[Any], int]
    hardware: tuple[str, ...] = ("cuda",)
    materialises: bool = False
    named_only: bool = False
    plan: Callable[[Any, tuple[int, int]], Uses] | None = None
    rest: Callable[[Any, tuple[int, int], Uses], Uses] | None = None
    io: IOModel | None = None
    refuses: Callable[[Any], str | None] | None = None
    serves: frozenset[str] = frozenset()
    options: Mapping[str, Any] = {}
    retiled: Retiling | None = None
    shaped: Callable[[Any], Any] | None = None
    pinned: Callable[[Uses], Mapping[str, Any]] | None = None
    uncounted: Callable[[Uses], str | None] | None = None

    def workload(self, asked: Any) -> Any:
        """The workload that it runs where `asked` is asked for. UsageError where there is none."""
        return self.shaped(asked) if self.shaped else asked

    def refusal(self, workload: Any) -> str | None:
        """Why it cannot serve `workload` on any device; None if it can."""
        if workload.dtype not in self.dtypes:
            return f"dtype {workload.dtype}: {self.name} takes {', '.join(self.dtypes)}"
        for feature in workload.features:
            if feature not in self.serves:
                return f"{self.name} has no {feature}"
        return self.refuses(workload) if self.refuses else None

    def not_counted(self, workload: Any, capability: tuple[int, int]) -> str | None:
        """Why the kernels that it would run on a device cannot be executed on a CPU; None where they can."""
        if self.uncounted is None:
            return None
        return self.uncounted(self.plan(workload, capability) if self.plan else ())


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A number that somebody else published for one implementation: base unit, their device, their source.

    `tag` is that of a recorded quantity or a derived metric; `note` says how their setting differs from ours.
    """

    impl: str
    tag: str
    value: float
    hint: Hint
    device: str
    source: str
    note: str = ""


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """An op: its workload type, what every implementation of it must at least do, and who implements it.

    `published` gives other people's figures for a workload, if there are any. `defaults` are fields of the
    workload that are not as usual; `cached` says that its length is that of a K/V cache, which few query
    tokens meet.
    """

    name: str
    workload: type
    flops_convention: Callable[[Any], int]
    flops_exact: Callable[[Any], int]
    exps: Callable[[Any], int]
    compulsory: Callable[[Any], Traffic]
    published: Callable[[Any], tuple[Published, ...]]
    implementations: tuple[Implementation, ...]
    defaults: Mapping[str, Any] = {}
    cached: bool = False

    def implementation(self, name: str) -> Implementation | None:
        """The implementation called `name`, or None."""
        return next((row for row in self.implementations if row.name == name), None)
