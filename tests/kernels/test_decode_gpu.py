"""Decoding on a GPU, against the float64 oracle."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfkit.kernels.attention import decode, reference  # noqa: E402
from perfkit.kernels.attention.tiles import decode_resident, decode_splits, decode_tile  # noqa: E402
from perfkit.kernels.attention.use import KernelUse  # noqa: E402
from perfkit.measure.correctness import Judge, make_inputs, require  # noqa: E402
from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

CASES = [  # batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, splits, dtype
    (1, 32, 32, 1, 16384, 128, False, None, "bf16"),
    (16, 32, 8, 1, 16384, 128, True, None, "bf16"),
    (1, 32, 1, 1, 16384, 128, False, None, "fp16"),  # MQA: 32 rows of one head, 128 shares
    (4, 64, 8, 1, 4097, 64, False, None, "bf16"),
    (64, 32, 8, 1, 1000, 128, False, None, "fp16"),  # the blocks fill the device: one share
    (1, 8, 2, 1, 65536, 256, False, None, "fp16"),
    (2, 8, 8, 1, 1, 128, True, None, "bf16"),
    (2, 8, 2, 1, 2, 64, False, None, "fp16"),
    (3, 6, 2, 1, 17, 48, False, None, "fp16"),  # fewer keys than a block
    (1, 2, 2, 1, 63, 80, True, None, "bf16"),
    (1, 4, 2, 1, 777, 16, False, None, "fp16"),
    (2, 4, 1, 1, 1500, 24, False, 5, "bf16"),
    (1, 4, 1, 1, 5000, 112, False, 1, "fp16"),
    (1, 4, 1, 1, 5000, 112, False, 79, "fp16"),  # a share a block
    (1, 2, 1, 2, 1025, 72, True, None, "bf16"),
    (2, 8, 2, 3, 2049, 128, True, None, "fp16"),
    (2, 8, 2, 3, 2049, 128, False, 2, "bf16"),
    (1, 32, 4, 4, 8191, 128, True, None, "bf16"),  # 32 rows
    (1, 16, 2, 7, 3001, 256, True, None, "bf16"),  # 56 rows in a tile of 64
    (2, 12, 2, 17, 1111, 96, True, 4, "fp16"),  # 102 rows: two row tiles
    (1, 40, 1, 5, 640, 160, False, None, "bf16"),
    (1, 8, 1, 64, 4096, 128, True, None, "fp16"),  # eight row tiles
    (1, 4, 4, 64, 130, 192, True, 3, "fp16"),
    (2, 4, 2, 64, 33, 64, True, None, "bf16"),  # queries that see no key
]


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_no_worse_than_twice_the_eager_error(sizes: tuple[Any, ...]) -> None:
    batch, heads, kv_heads, seq_q, seq_k, head_dim, causal, splits, dtype = sizes
    w = AttentionWorkload(
        batch=batch, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_k=seq_k, head_dim=head_dim,
        causal=causal, dtype=dtype,
    )  # fmt: skip
    inputs = make_inputs(w, "cuda", seed=seq_k)
    out = decode.attention(inputs.q, inputs.k, inputs.v, causal=causal, splits=splits)
    assert (out.shape, out.dtype) == (inputs.q.shape, inputs.q.dtype)
    require(w, Judge(w, inputs).errors((out,)))


@pytest.mark.parametrize("splits", [1, 2, 7, None])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_pointers_and_descriptors_agree(
    head_dim: int, splits: int | None, make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    if not decode.use_descriptors(torch.empty(1, 1, 16, 16, dtype=torch.float16, device="cuda")):
        pytest.skip("this GPU reads through pointers only")
    q, k, v, _ = make_inputs(make_case(2, 8, 2, 3, 1511, head_dim), "cuda")
    one, other = (
        decode.forward(q, k, v, True, splits=splits, descriptors=described) for described in (False, True)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_a_cache_that_is_longer_than_what_is_in_it(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    """K and V as the first rows of longer buffers, in [B, N, h, d]: nothing beyond them is read."""
    q, k, v, _ = make_inputs(make_case(2, 8, 2, 1, 4096, 128, rows_first=True), "cuda")
    k[:, :, 1000:], v[:, :, 1000:] = float("nan"), float("nan")
    k, v = k[:, :, :1000], v[:, :, :1000]
    out = decode.attention(q, k, v)
    assert (out - reference.forward(q, k, v)[0]).abs().max() < 2e-3


def test_keys_of_one_head_for_all(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    q, k, v, _ = make_inputs(make_case(2, 4, 4, 1, 1300, 64), "cuda")
    k, v = (t[:1, :1].expand(2, 4, -1, -1) for t in (k, v))  # strides 0
    assert (decode.attention(q, k, v) - reference.forward(q, k, v)[0]).abs().max() < 2e-3


def test_same_bits_each_run(make_case: Any, make_inputs: Callable[..., Any]) -> None:
    """A kernel that reads what the one before has not yet written would differ between runs."""
    q, k, v, _ = make_inputs(make_case(4, 8, 2, 1, 7777, 128, False, "bfloat16"), "cuda")
    first = decode.attention(q, k, v)
    assert all(torch.equal(decode.attention(q, k, v), first) for _ in range(5))


@pytest.mark.parametrize(("batch", "splits"), [(1, None), (1, 1), (256, None)])
def test_use_is_recorded(
    batch: int, splits: int | None, make_case: Any, make_inputs: Callable[..., Any]
) -> None:
    q, k, v, _ = make_inputs(make_case(batch, 8, 2, 1, 4096, 128, False, "bfloat16"), "cuda")
    uses: list[KernelUse] = []
    decode.attention(q, k, v, splits=splits, uses=uses)
    device = torch.cuda.get_device_properties(0)
    tile = decode_tile(128, 4, (device.major, device.minor))
    filled = (device.multi_processor_count, decode_resident(tile))
    shares = splits or decode_splits(2 * batch, 4096 // tile.block_n, *filled)
    assert [(use.kernel, use.block_m, use.block_n) for use in uses] == [
        ("decode_split", 16, tile.block_n),
        ("decode_combine", shares, 0),
    ]
    assert 0 < uses[0].shared_bytes <= device.shared_memory_per_block_optin
    for use in uses if shares > 1 else uses[:1]:
        assert 0 < use.registers <= 255
        assert use.spills == 0, use
