"""Runs `interpreted_decode*.py` with Triton's interpreter, which must be chosen before triton is imported."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _version(module: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


@pytest.mark.parametrize("name", ["interpreted_decode.py", "interpreted_decode_cache.py"])
def test_decode_in_the_interpreter(name: str) -> None:
    numpy, triton = pytest.importorskip("numpy"), pytest.importorskip("triton")
    if _version(triton) < (3, 7) and _version(numpy) >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 cannot run loops with NumPy 2.4")
    root = Path(__file__).resolve().parents[2]
    file = Path(__file__).with_name(name)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    seen = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert seen.returncode == 0, seen.stdout[-6000:] + seen.stderr[-2000:]
