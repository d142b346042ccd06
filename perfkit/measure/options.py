"""How to measure: the choices that a user has."""

import msgspec

from perfkit.errors import UsageError


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`warm` leaves L2 as the last run did; `graph` replays a CUDA graph; `limit_s` bounds each timing."""

    warm: bool = False
    graph: bool = False
    energy: bool = True
    limit_s: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.limit_s < float("inf"):
            raise UsageError(f"--time-limit must be a positive number of seconds, not {self.limit_s}")
