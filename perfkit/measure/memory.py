"""GPU memory that a piece of work needs, in bytes."""

from collections.abc import Callable

from perfkit.measure.torch_cuda import cuda


def peak_memory(fn: Callable[[], object]) -> int:
    """Bytes that `fn` held at its worst, outputs included, above what was allocated before it ran.

    Counted by torch's allocator: what a library allocates on its own is not seen. `fn` runs once before,
    so that workspaces and autotuning, which happen once, do not count.
    """
    gpu = cuda()
    fn()
    gpu.synchronize()
    gpu.reset_peak_memory_stats()
    before: int = gpu.memory_allocated()
    kept = fn()  # alive until the peak was read
    gpu.synchronize()
    peak: int = gpu.max_memory_allocated()
    del kept
    return peak - before


def free_memory() -> int:
    """Bytes that could be allocated now: free on the device, and cached but unused by torch."""
    gpu = cuda()
    free: int = gpu.mem_get_info()[0]
    cached: int = gpu.memory_reserved() - gpu.memory_allocated()
    return free + cached
