"""Kernels written to be counted: each form of access that Triton has, and what must not pass silently."""

import os
from pathlib import Path

import pytest

from perfkit.measure.counting.count import answers, count_all
from perfkit.measure.counting.types import Count, CountFailed, Failure, Request, Sampling
from perfkit.ops.attention_workload import AttentionWorkload

pytest.importorskip("torch")
pytest.importorskip("triton")

#: Each function is an implementation: it takes q, k, v, launches kernels on them, and returns O.
SOURCE = """
import torch
import triton
import triton.language as tl


@triton.jit
def forms(q, k, v, out, total, N: tl.constexpr, D: tl.constexpr):
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, D)[None, :]
    tile = tl.load(q + rows * D + columns, mask=rows < 10, other=0.0)
    one = tl.load(k)
    repeated = tl.load(k + rows * 0 + columns)
    either = tl.load(tl.where(rows < 4, q, v) + rows * D + columns)
    described = tl.make_tensor_descriptor(v, shape=[13, D], strides=[D, 1], block_shape=[N, D])
    clipped = described.load([0, 0])
    tl.store(out + rows * D + columns, tile + one + repeated + either + clipped, mask=columns < 8)
    stored = tl.make_tensor_descriptor(out, shape=[5, D], strides=[D, 1], block_shape=[N, D])
    stored.store([0, 0], tile)
    tl.atomic_add(total + tl.arange(0, N), 1.0, mask=tl.arange(0, N) < 3)
    tl.atomic_cas(total + tl.program_id(0), 0.0, 1.0)


def all_forms(q, k, v, *, causal=False, uses=None):
    out, total = torch.empty_like(q), torch.zeros(16)
    forms[(2,)](q, k, v, out, total, 16, 16)
    return out


@triton.jit
def beyond(q, out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.load(q + tl.arange(0, N) * 1000))


def out_of_bounds(q, k, v, *, causal=False, uses=None):
    out = torch.empty_like(q)
    beyond[(1,)](q, out, 2)
    return out


def overlap(q, k, v, *, causal=False, uses=None):
    beyond[(1,)](q, q.view(-1)[8:], 2)
    return q


@triton.jit
def flash_delta(out, dout, delta, seq_q, BLOCK_M: tl.constexpr):
    for row in range(tl.program_id(0) + 1):
        tl.store(delta + row, tl.load(out + row))


def not_alike(q, k, v, *, causal=False, uses=None):
    flash_delta[(4,)](q, k, torch.empty_like(v), 16, 4)
    return q


def copying(q, k, v, *, causal=False, uses=None):
    out = torch.empty_like(q)
    beyond[(q.shape[1],)](q.clone(), out, 1)
    return out


def printing(q, k, v, *, causal=False, uses=None):
    print("on standard output")
    return torch.softmax(q, -1)


def broken(q, k, v, *, causal=False, uses=None):
    raise RuntimeError("first line\\nsecond line")
"""


@pytest.fixture(scope="module")
def _module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("implementations")
    (folder / "odd_kernels.py").write_text(SOURCE)
    return folder


@pytest.fixture
def _importable(_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(_module), prepend=os.pathsep)


def _request(function: str, heads: int = 1, sampling: Sampling | None = None) -> Request:
    w = AttentionWorkload(heads=heads, kv_heads=heads, seq_q=16, seq_k=16, head_dim=16, dtype="fp16")
    return Request(
        impl=function, target=f"odd_kernels:{function}", workload=w, sampling=sampling or Sampling()
    )


def _moved(found: Count) -> dict[tuple[str, str], tuple[int, int]]:
    return {(m.kernel, m.tensor): (m.traffic.read_bytes, m.traffic.write_bytes) for m in found.moved}


@pytest.mark.usefixtures("_importable")
def test_every_form_of_access_is_attributed() -> None:
    forms, copied, printed = count_all(
        [_request("all_forms"), _request("copying", heads=3), _request("printing")]
    )
    # Two programs. Elements of 2 bytes; a tile is 16 x 16.
    assert _moved(forms) == {
        ("aten::zeros", "aten::zeros"): (0, 64),  # 16 x 4 bytes
        ("forms", "Q"): (2 * 2 * (10 * 16 + 4 * 16), 0),  # masked to 10 rows; rows below 4 of `either`
        ("forms", "K"): (2 * 2 * (1 + 16 * 16), 0),  # one scalar; 16 lanes read each element, and each counts
        ("forms", "V"): (2 * 2 * (12 * 16 + 13 * 16), 0),  # the other rows of `either`; 13 rows are in range
        ("forms", "O"): (0, 2 * 2 * (16 * 8 + 5 * 16)),  # 8 columns by mask; 5 rows of the descriptor
    }
    (atomic,) = forms.atomics
    assert (atomic.kernel, atomic.tensor) == ("forms", "total")
    assert (atomic.operations, atomic.operand_bytes) == (2 * (3 + 1), 2 * 4 * (3 + 1))
    assert forms.passes == ("aten::zeros",)

    # 3 heads from 1 and 2: the copy reads and writes 16 x 16 x 2 bytes a head, a program one element.
    assert _moved(copied) == {
        ("aten::clone", "Q"): (3 * 512, 0),
        ("aten::clone", "aten::clone"): (0, 3 * 512),
        ("beyond", "Q"): (3 * 2, 0),
        ("beyond", "O"): (0, 3 * 2),
    }
    assert copied.notes[0] == "1 of 3 K/V heads ran, bytes of 1 and of 2 extended evenly"

    assert _moved(printed) == {
        ("aten::_softmax", "Q"): (512, 0),
        ("aten::_softmax", "aten::_softmax"): (0, 512),
    }
    assert (printed.uses, printed.sampled, printed.notes) == ((), (), ())


@pytest.mark.usefixtures("_importable")
def test_what_cannot_be_counted_says_why() -> None:
    alike = Sampling(programs="alike")
    asked = {
        # Element 1000 of 256: it ends at byte 2002 of 512.
        _request("out_of_bounds"): (
            "beyond touches memory of no tensor that it was given: 1490 bytes past the end of "
        ),
        _request("overlap"): "beyond: arguments q and out overlap in memory",
        _request("not_alike", sampling=alike): "flash_delta: programs 0 and 3 should be alike and are not",
        _request("broken"): "RuntimeError: first line",
        _request("absent"): "AttributeError: module 'odd_kernels' has no attribute 'absent'",
    }
    for (each, message), found in zip(asked.items(), answers(list(asked)), strict=True):
        assert isinstance(found, Failure)
        assert found.message.startswith(f"{each.impl}: {message}")
    with pytest.raises(CountFailed, match=r"^broken: RuntimeError: first line$"):
        count_all([_request("broken")])
