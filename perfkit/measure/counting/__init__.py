"""Counting bytes by executing the kernels in Triton's interpreter, on any CPU."""
