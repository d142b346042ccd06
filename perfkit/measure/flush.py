"""Making L2 cold before a sample."""

from typing import Final, Literal

FlushMode = Literal["read", "write"]

#: Bytes swept, in units of L2's capacity.
SWEEPS: Final = 2


class L2Flush:
    """Evicts what L2 holds by sweeping a buffer of `SWEEPS` times its size, on the current stream.

    The sweep only reads. A sweep that writes leaves up to one L2 of dirty lines behind, and their write-back
    is paid for by the work that follows: 60 MB on an H200, as much traffic as a small kernel has. Reading
    leaves clean lines, which cost nothing to drop; dirty lines of the previous sample are written back
    during the sweep, before the clock starts. Two capacities, because replacement is not exactly
    least-recently-used. Mode "write" (what Triton's do_bench and nvbench do) is there to compare with.
    """

    def __init__(self, mode: FlushMode = "read", sweeps: int = SWEEPS) -> None:
        import torch

        self.mode: FlushMode = mode
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.swept_bytes = sweeps * int(properties.L2_cache_size)
        self._buffer = torch.zeros(self.swept_bytes // 4, dtype=torch.float32, device="cuda")
        self._sum = torch.empty((), dtype=torch.float32, device="cuda")

    def __call__(self) -> None:
        """Queue one sweep."""
        import torch

        if self.mode == "write":
            self._buffer.zero_()
        else:
            torch.sum(self._buffer, dim=0, out=self._sum)
