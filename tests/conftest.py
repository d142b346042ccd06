"""What all tests share: those that need a GPU are skipped, with the reason, where torch sees none."""

import pytest


def _why_no_gpu() -> str | None:
    """Why tests marked `gpu` cannot run here; None where they can."""
    try:
        import torch
    except ImportError as error:
        return f"marked gpu: torch cannot be imported ({error})"
    return None if torch.cuda.is_available() else "marked gpu: torch sees no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none; torch is imported only if there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _why_no_gpu() if marked else None
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
