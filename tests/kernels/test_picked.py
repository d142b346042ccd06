"""Which path `picked.attention` takes: every condition of the Hopper kernels, and what goes to which."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from perfkit.kernels.attention import flash, hopper, picked  # noqa: E402


class OnGpu:
    """What of a tensor the choice is made by, as if it were on a GPU."""

    def __init__(self, tensor: Any) -> None:
        self.device = torch.device("cuda:0")
        self.dtype, self.shape, self.dim, self.stride = tensor.dtype, tensor.shape, tensor.dim, tensor.stride
        self.data_ptr, self.element_size = tensor.data_ptr, tensor.element_size


def tensors(head_dim: int = 64, dtype: Any = torch.float16) -> tuple[Any, ...]:
    return tuple(torch.zeros(1, 2, 5, head_dim, dtype=dtype) for _ in range(3))


def on_gpu(*given: Any) -> tuple[Any, ...]:
    return tuple(map(OnGpu, given))


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the choice see a device of this capability, with a Triton that has Gluon or says why not."""

    def set_to(capability: tuple[int, int], without: str | None = None) -> None:
        monkeypatch.setattr(hopper, "capability", lambda _: capability)
        monkeypatch.setattr(hopper, "_without_gluon", lambda: without)

    return set_to


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128, 136, 256])
def test_served(head_dim: int, dtype: Any, capable: Callable[..., None]) -> None:
    capable((9, 0))
    assert hopper.refusal(*on_gpu(*tensors(head_dim, dtype))) is None


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 1), (10, 0), (12, 0)])
def test_other_devices(capability: tuple[int, int], capable: Callable[..., None]) -> None:
    capable(capability)
    major, minor = capability
    reason = f"needs compute capability 9.0 (wgmma), got {major}.{minor}"
    assert hopper.refusal(*on_gpu(*tensors())) == reason


def test_no_gpu(capable: Callable[..., None]) -> None:
    capable((9, 0))  # as the interpreter poses
    assert hopper.refusal(*tensors()) == "needs a GPU of compute capability 9.0, got cpu"


def test_no_gluon(capable: Callable[..., None]) -> None:
    capable((9, 0), "it needs Gluon")
    assert hopper.refusal(*on_gpu(*tensors())) == "it needs Gluon"


def test_the_interpreter_has_no_gluon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "interpreted", lambda: True)
    assert hopper._without_gluon.__wrapped__() == "is in Gluon, which Triton's interpreter cannot execute"


def test_what_the_kernels_do_not_serve(capable: Callable[..., None]) -> None:
    capable((9, 0))
    q, k, v = tensors()
    of_fp32 = on_gpu(*tensors(dtype=torch.float32))
    assert hopper.refusal(*of_fp32) == "serves float16 and bfloat16, got torch.float32"
    for head_dim in (8, 36, 264):
        words = f"serves head dims 16 to 256 in steps of 8, got {head_dim}"
        assert hopper.refusal(*on_gpu(*tensors(head_dim))) == words
    by_tma = "loads by TMA and needs 16-byte aligned bases and strides, none 0"
    expanded = k[:, :1].expand(-1, 2, -1, -1)
    shifted = torch.nn.functional.pad(v, (1, 7))[..., 1:65]
    transposed = q.mT.contiguous().mT
    for given in ((q, expanded, v), (q, k, shifted), (transposed, k, v)):
        assert hopper.refusal(*on_gpu(*given)) == by_tma


@pytest.mark.parametrize(
    ("batch", "seq_q", "head_dim", "served"),
    [
        (2**23, 1, 64, False),  # 2^23 x 2 heads of 128 padded rows: 2^31
        (2**23 - 1, 1, 64, True),
        (1, 2**24, 128, False),  # 2^24 rows of 128 columns: 2^31 numbers of dQ
        (1, 2**24 - 128, 128, True),
        (1, 2**24, 64, True),
    ],
)
def test_what_32_bits_count(
    batch: int, seq_q: int, head_dim: int, served: bool, capable: Callable[..., None]
) -> None:
    capable((9, 0))
    q = torch.empty(1, dtype=torch.float16, device="meta").expand(batch, 2, seq_q, head_dim)
    found = hopper.refusal(*on_gpu(q, q, q))
    assert found is not None
    assert ("in 32 bits" not in found) == served


def test_what_is_no_attention_is_an_error(capable: Callable[..., None]) -> None:
    capable((9, 0))
    q, k, v = tensors()
    with pytest.raises(ValueError, match="must agree"):
        hopper.refusal(q, k, v[:, :, :-1])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Which path was called with which options."""
    came: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(flash, "attention", lambda *_, **how: came.append(("portable", how)))
    monkeypatch.setattr(hopper, "attention", lambda *_, **how: came.append(("hopper", how)))
    return came


def test_the_path(asked: list[tuple[str, dict[str, Any]]], capable: Callable[..., None]) -> None:
    capable((9, 0))
    given, uses = on_gpu(*tensors()), []
    picked.attention(*given, causal=True, scale=0.5, deterministic=True, uses=uses)
    (name, how), *_ = asked
    assert name == "hopper"
    assert how == {"causal": True, "scale": 0.5, "deterministic": True, "uses": uses}
    assert how["uses"] is uses
    capable((8, 0))
    picked.attention(*given, causal=True, scale=0.5, deterministic=True, uses=uses)
    # It is deterministic as it is.
    assert asked[1] == ("portable", {"causal": True, "scale": 0.5, "tiles": None, "uses": uses})


def test_tiles_that_are_asked_for_are_portable(
    asked: list[tuple[str, dict[str, Any]]], capable: Callable[..., None]
) -> None:
    capable((9, 0))
    tiles = [[64, 64, 4, 2]] * 3
    picked.attention(*on_gpu(*tensors()), tiles=tiles)
    assert asked == [("portable", {"causal": False, "scale": None, "tiles": tiles, "uses": None})]


def test_what_neither_serves_is_refused_by_the_portable_kernels() -> None:
    with pytest.raises(ValueError, match="flash serves float16 and bfloat16"):
        picked.attention(*tensors(dtype=torch.float32))
