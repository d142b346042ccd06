"""Data types by the names that the field uses, with their sizes."""

from typing import Final

#: Bytes per element in memory. tf32 is a mode of the tensor units: it is stored as fp32.
DTYPE_BYTES: Final[dict[str, int]] = {
    "fp64": 8,
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
}
