"""What options mean: the op, the workloads by batch and length, and what is no request at all."""

from typing import Any

import pytest

from perfkit.cli.workloads import op_of, workloads
from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload

#: What every command has.
USUAL = {"batch": "1", "seq": "16k", "dtype": "bf16", "pass_": "fwd"}


def found(**options: Any) -> list[AttentionWorkload]:
    given = {**USUAL, **options}
    return workloads(op_of(given), given)


def one(**options: Any) -> AttentionWorkload:
    (w,) = found(**options)
    return w


def test_plain_attention() -> None:
    assert one() == AttentionWorkload(heads=16, kv_heads=16, seq_q=16384, seq_k=16384)
    assert one(heads="32", kv_heads="8", seq_k="32k", causal=True) == AttentionWorkload(
        heads=32, kv_heads=8, seq_q=16384, seq_k=32768, causal=True
    )
    # K/V heads are the query heads unless said otherwise.
    assert one(heads="8").kv_heads == 8


def test_batches_and_lengths() -> None:
    sizes = [(w.batch, w.seq_q) for w in found(batch="1,4", seq="1k,2k")]
    assert sizes == [(1, 1024), (1, 2048), (4, 1024), (4, 2048)]


def test_the_length_of_a_decode_op_is_that_of_its_cache() -> None:
    w = one(op="decode-attention", seq="128k", kv_heads="8")
    assert (w.seq_q, w.seq_k, w.heads, w.kv_heads, w.causal) == (1, 131072, 16, 8, False)
    # Several tokens are causal among themselves, unless said otherwise.
    assert one(op="decode-attention", tokens="4").causal
    assert not one(op="decode-attention", tokens="4", causal=False).causal
    assert one(op="paged-decode-attention").page == 16
    assert one(op="paged-decode-attention", page="64", prefix="128", padding="100") == AttentionWorkload(
        seq_q=1, seq_k=16384, page=64, prefix=128, padding=100
    )


def test_phases() -> None:
    assert op_of({"phase": "decode"}).name == "decode-attention"
    assert one(phase="decode").seq_q == 1
    assert one(phase="prefill").causal
    assert not one(phase="prefill", causal=False).causal
    # Prefill of a chunk: the last 256 of 16384 tokens.
    w = one(phase="prefill", tokens="256")
    assert (w.seq_q, w.seq_k, w.causal) == (256, 16384, True)


def test_windows() -> None:
    assert one(op="sliding-window-attention").pattern == "window:4096"
    assert one(op="sliding-window-attention", window="1k").pattern == "window:1024"
    assert one(window="512", dilation="4").pattern == "dilated:512+4"
    assert one(pattern="random:25%").pattern == "random:25%@128"
    # A window is causal by itself.
    assert not one(phase="prefill", window="1k").causal


def test_several_masks() -> None:
    masks = [w.pattern for w in found(pattern="window:1k,bigbird:1+2+3", seq="4k,8k")]
    assert masks == ["window:1024", "bigbird:1+2+3@128"] * 2


def test_like_a_model() -> None:
    w = one(like="llama-3-8b")
    assert (w.heads, w.kv_heads, w.head_dim, w.pattern) == (32, 8, 128, None)
    assert one(like="llama-3-8b", kv_heads="1").kv_heads == 1
    w = one(like="mistral-7b")
    assert (w.heads, w.kv_heads, w.head_dim, w.pattern) == (32, 8, 128, "window:4096")
    # A model with a window keeps no more than that in its cache.
    assert one(like="mistral-7b", phase="decode").seq_k == 4096
    assert one(like="mistral-7b", phase="decode", seq="1k").seq_k == 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase": "warmup"}, "unknown phase 'warmup'"),
        (
            {"phase": "decode", "op": "attention"},
            "--phase decode is decode-attention, and --op says attention",
        ),
        ({"tokens": "4", "seq_k": "1k"}, "--tokens and --seq-k both say how keys and queries differ"),
        (
            {"op": "decode-attention", "seq_k": "1k"},
            "--seq is the length of the cache in decode-attention",
        ),
        (
            {"op": "decode-attention", "window": "1k"},
            "decode-attention has no mask: a cache with a window keeps only the last keys",
        ),
        ({"dilation": "2"}, "--dilation needs --window"),
        ({"window": "1k", "pattern": "local:2"}, "--pattern and --window both say what the mask is"),
        ({"page": "512", "phase": "decode"}, "page is a number of tokens from 1 to 256, not 512"),
        ({"cache_dtype": "fp4"}, "unknown cache dtype 'fp4'"),
        (
            {"phase": "decode", "prefix": "100"},
            "prefix must be whole pages and at most the 16384 keys of the shortest sequence, not 100",
        ),
        (
            {"phase": "decode", "tokens": "64", "padding": "16383", "append": True},
            "64 keys cannot be appended where a sequence has 1 of its own",
        ),
        ({"window": "3", "dilation": "3"}, "pattern 'dilated:3+3': 3 must divide the 16384 rows"),
    ],
)
def test_nonsense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        found(**options)
    assert refused.value.message == message
