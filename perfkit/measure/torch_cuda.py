"""torch.cuda, loaded when it is needed."""

from typing import Any


def cuda() -> Any:
    """The module torch.cuda, untyped: torch leaves its events and streams without annotations."""
    import torch

    return torch.cuda
