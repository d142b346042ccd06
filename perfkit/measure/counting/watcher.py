"""Attributes what interpreted kernels load and store to the tensors that they were given."""

from collections.abc import Mapping
from typing import Any

from perfkit.measure.counting.interpreter import Index
from perfkit.measure.counting.names import tensor_name
from perfkit.measure.counting.regions import Regions, is_descriptor, regions_of
from perfkit.measure.counting.sampling import Schedule, schedule
from perfkit.measure.counting.tally import Key, Sums, Tally
from perfkit.measure.counting.types import CountFailed, Sampled, Sampling
from perfkit.ops.base import KernelUse


class Watcher:
    """The observer of one count: adds to `tally` while `counting`.

    It notes the tiles that ran, whether tensor descriptors were used, and what was sampled. `busy` within a
    launch.
    """

    def __init__(self, tally: Tally, sampling: Sampling) -> None:
        self.tally, self.counting, self.busy = tally, True, False
        self.described = False
        self.uses: dict[str, KernelUse] = {}
        self.sampled: list[Sampled] = []
        self._sampling = sampling

    def launch(self, kernel: str, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Take down where the tensors lie, and the tile that runs."""
        self.busy = True
        self._kernel, self._arguments = kernel, arguments
        self._regions = Regions(kernel, regions_of(arguments))
        self._schedule: Schedule | None = None
        self._ran: dict[int, dict[Key, Sums]] = {}
        self._programs = 0
        if self.counting:
            self.described |= any(is_descriptor(value) for value in arguments.values())
            self.uses.setdefault(kernel, _use(kernel, arguments, options))

    def program(self, index: Index, grid: Index) -> bool:
        """Whether the schedule has the program at `index` run."""
        self._programs = grid[0] * grid[1] * grid[2]
        if self._schedule is None:
            self._schedule = schedule(self._kernel, self._arguments, self._programs, self._sampling)
        self._at = (index[0] * grid[1] + index[1]) * grid[2] + index[2]
        self._of_program = Tally()
        return self._schedule.weight(self._at) is not None

    def program_done(self) -> None:
        """Add what the program did, for all that it stands for."""
        assert self._schedule is not None
        sums = self._of_program.sums
        weight = self._schedule.weight(self._at) or 0
        self._ran[self._at] = sums if self._schedule.witnesses else {}
        if self.counting:
            self.tally.add(sums, weight)

    def launch_done(self) -> None:
        """Hold the witnesses against what they witness; CountFailed where they did something else."""
        self.busy = False
        plan = self._schedule or Schedule()
        for witness, program in plan.witnesses.items():
            if self._ran[witness] != self._ran[program]:
                raise CountFailed(
                    f"{self._kernel}: programs {program} and {witness} should be alike and are not",
                    "count all programs: Sampling(programs='all')",
                )
        if self.counting:
            self.sampled.append(
                Sampled(kernel=self._kernel, programs=self._programs, ran=len(self._ran), rule=plan.rule)
            )

    def read(self, pointers: Any, mask: Any, width: int) -> None:
        """A load: bytes from each tensor that it touches."""
        for sums, lanes in self._touched(pointers, mask, width):
            sums.read += lanes * width

    def written(self, pointers: Any, mask: Any, width: int) -> None:
        """A store: bytes to each tensor that it touches."""
        for sums, lanes in self._touched(pointers, mask, width):
            sums.written += lanes * width

    def atomic(self, pointers: Any, mask: Any, width: int) -> None:
        """An atomic operation, one a lane."""
        for sums, lanes in self._touched(pointers, mask, width):
            sums.operations += lanes
            sums.operand_bytes += lanes * width

    def _touched(self, pointers: Any, mask: Any, width: int) -> list[tuple[Sums, int]]:
        touched = self._regions.touched(pointers, mask, width)
        return [
            (self._of_program.of(self._kernel, tensor_name(self._kernel, name)), lanes)
            for name, lanes in touched
        ]


def _use(kernel: str, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> KernelUse:
    """The tile of a launch; 0 rows where the kernel has no such loop."""
    return KernelUse(
        kernel=kernel,
        block_m=int(arguments.get("BLOCK_M", 0)),
        block_n=int(arguments.get("BLOCK_N", 0)),
        num_warps=options.get("num_warps"),
        num_stages=options.get("num_stages"),
    )
