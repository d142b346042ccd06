"""What a compiled kernel really used: the facts that an IO model and a report cannot guess."""

from typing import NamedTuple


class KernelUse(NamedTuple):
    """One compiled kernel of one call, as its compiler and driver report it.

    `block_m` and `block_n` are rows of Q and of K/V held at a time (0: the kernel has no such loop),
    `shared_bytes` is per thread block, `registers` and `spills` count 32-bit registers per thread.
    """

    kernel: str
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    shared_bytes: int
    registers: int
    spills: int
