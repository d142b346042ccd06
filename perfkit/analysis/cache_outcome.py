"""What a simulation of a K/V cache comes to: means over its steps, peaks, throughput, and a thin timeline."""

from collections.abc import Sequence
from typing import Final

import msgspec

from perfkit.analysis.cache_slots import Slots
from perfkit.analysis.cache_trace import Request
from perfkit.analysis.cache_waste import Policy, Step, check, make_cache, simulate
from perfkit.errors import UsageError
from perfkit.model.dtype import DTYPE_BYTES

DTYPES: Final = ("bf16", "fp16", "fp32", "fp8")
#: A timeline has from so many points to twice as many, and the last, if there are that many steps.
POINTS: Final = 128


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model decides about the size of its K/V cache."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        """UsageError for a dtype that no cache has."""
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype '{self.dtype}'", f"allowed: {', '.join(DTYPES)}")

    @property
    def token_bytes(self) -> int:
        """2 l h_kv d e: K and V of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. Slots are means over all steps with an active request, unless they are called peak.

    `steps` are from the first arrival to the last token, idle ones included; `batch` is the mean of active
    requests and `peak_batch` the most; `wait` the mean steps that a request waited, swapped out or not yet
    taken up; `waste` the share of slot-steps, taken or in useless holes, that held no token, and
    `peak_waste` the most slots that were wasted at one step. The `timeline` has steps at even distances,
    idle ones too.
    """

    policy: Policy
    capacity: int
    steps: int
    busy: int
    generated: int
    used: float
    reserved: float
    unused: float
    external: float
    scattered: float
    saved: float
    waste: float
    peak_used: int
    peak_allocated: int
    peak_waste: int
    peak_table_bytes: int
    batch: float
    peak_batch: int
    wait: float
    preempted: int
    restored: int
    timeline: tuple[Step, ...]

    @property
    def throughput(self) -> float:
        """Tokens a step, idle steps included."""
        return self.generated / self.steps

    @property
    def free(self) -> float:
        """Slots that are not handed out, without those in holes of no use."""
        return self.capacity - self.used - self.reserved - self.unused - self.external


class CacheStudy(msgspec.Struct, frozen=True, kw_only=True):
    """Policies on one trace, one model and one size of memory."""

    source: str
    shape: Shape
    memory_bytes: int
    max_len: int
    requests: int
    prompt: int
    generated: int
    outcomes: tuple[Outcome, ...]


def cache_study(
    requests: Sequence[Request],
    asked: Sequence[Policy],
    *,
    source: str,
    shape: Shape,
    memory_bytes: int,
    max_len: int,
) -> CacheStudy:
    """Play `requests` against each policy; UsageError before the first where one of them cannot be."""
    capacity = memory_bytes // shape.token_bytes
    for policy in asked:
        check(requests, policy, capacity, max_len)
    return CacheStudy(
        source=source,
        shape=shape,
        memory_bytes=memory_bytes,
        max_len=max_len,
        requests=len(requests),
        prompt=sum(request.prompt for request in requests),
        generated=sum(request.generated for request in requests),
        outcomes=tuple(outcome(requests, policy, capacity, max_len) for policy in asked),
    )


def outcome(requests: Sequence[Request], policy: Policy, capacity: int, max_len: int) -> Outcome:
    """Play `requests` against one policy."""
    sums, thin = _Sums(), _Thin()
    last = 0
    for step in simulate(requests, make_cache(policy, capacity, max_len)):
        sums.add(step)
        thin.add(step)
        last = step.at
    generated = sum(request.generated for request in requests)
    taken = sums.used + sums.reserved + sums.unused + sums.external
    return Outcome(
        policy=policy,
        capacity=sums.capacity,
        steps=last + 1 - requests[0].step,
        busy=sums.busy,
        generated=generated,
        used=sums.used / sums.busy,
        reserved=sums.reserved / sums.busy,
        unused=sums.unused / sums.busy,
        external=sums.external / sums.busy,
        scattered=sums.scattered / sums.busy,
        saved=sums.saved / sums.busy,
        waste=1 - sums.used / taken,
        peak_used=sums.peak_used,
        peak_allocated=sums.peak_allocated,
        peak_waste=sums.peak_waste,
        peak_table_bytes=sums.peak_table_bytes,
        batch=sums.active / sums.busy,
        peak_batch=sums.peak_batch,
        wait=sums.waiting / len(requests),
        preempted=sums.preempted,
        restored=sums.restored,
        timeline=thin.points(),
    )


class _Sums:
    """Exact sums and peaks over steps."""

    def __init__(self) -> None:
        self.busy = self.capacity = self.active = self.waiting = self.preempted = self.restored = 0
        self.used = self.reserved = self.unused = self.external = self.scattered = self.saved = 0
        self.peak_used = self.peak_allocated = self.peak_waste = self.peak_table_bytes = self.peak_batch = 0

    def add(self, step: Step) -> None:
        """One more step."""
        slots: Slots = step.slots
        self.busy += 1
        self.capacity = slots.capacity
        self.active += step.active
        self.waiting += step.waiting
        self.preempted += step.preempted
        self.restored += step.restored
        self.used += slots.used
        self.reserved += slots.reserved
        self.unused += slots.unused
        self.external += slots.external
        self.scattered += slots.scattered
        self.saved += slots.saved
        self.peak_used = max(self.peak_used, slots.used)
        self.peak_allocated = max(self.peak_allocated, slots.allocated)
        self.peak_waste = max(self.peak_waste, slots.wasted)
        self.peak_table_bytes = max(self.peak_table_bytes, slots.table_bytes)
        self.peak_batch = max(self.peak_batch, step.active)


class _Thin:
    """Steps at even distances, idle ones too, and the last: the distance doubles where there are too many."""

    def __init__(self) -> None:
        self._kept: list[Step] = []
        self._stride = 1
        self._last: Step | None = None

    def add(self, step: Step) -> None:
        """One more step; those since the last one were idle."""
        if self._last is not None:
            self._idle(self._last, step.at)
        self._keep(step)
        self._last = step

    def points(self) -> tuple[Step, ...]:
        """What is left."""
        last = self._last
        return tuple(self._kept if last is None or self._kept[-1] is last else [*self._kept, last])

    def _idle(self, last: Step, end: int) -> None:
        # An idle time may be as long as it likes: no more points are made than are kept.
        while (end - last.at) // self._stride > POINTS:
            self._thin()
        first = self._kept[0].at
        start = end - (end - first) % self._stride
        empty = Slots(**dict.fromkeys(Slots.__struct_fields__, 0) | {"capacity": last.slots.capacity})
        for at in sorted(range(start, last.at, -self._stride)):
            if at < end:
                self._keep(Step(at=at, slots=empty, active=0, waiting=0, preempted=0, restored=0))

    def _keep(self, step: Step) -> None:
        if not self._kept or (step.at - self._kept[0].at) % self._stride == 0:
            self._kept.append(step)
        if len(self._kept) > 2 * POINTS:
            self._thin()

    def _thin(self) -> None:
        self._stride *= 2
        first = self._kept[0].at
        self._kept = [step for step in self._kept if (step.at - first) % self._stride == 0]
