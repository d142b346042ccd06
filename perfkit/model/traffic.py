"""Traffic: bytes that cross one boundary of the memory hierarchy, as exact integers that add."""

import msgspec


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes read and written across one boundary (SM<->L2 or DRAM)."""

    read_bytes: int
    write_bytes: int

    @property
    def total_bytes(self) -> int:
        """Reads and writes together."""
        return self.read_bytes + self.write_bytes

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            read_bytes=self.read_bytes + other.read_bytes, write_bytes=self.write_bytes + other.write_bytes
        )

    def __mul__(self, count: int) -> "Traffic":
        return Traffic(read_bytes=self.read_bytes * count, write_bytes=self.write_bytes * count)
