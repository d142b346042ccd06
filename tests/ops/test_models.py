"""Published models: cache bytes a token beside published ones, shapes that run, names that are refused."""

from typing import Any

import msgspec
import pytest

from perfkit.errors import UsageError
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.models import Model, find_model, models, refused_models

ONE: dict[str, Any] = {
    "name": "one", "heads": 8, "kv_heads": 2, "head_dim": 64, "layers": 3, "source": "none",
}  # fmt: skip


def test_bytes_a_token_as_published() -> None:
    # Llama 2 7B in fp16: 2 x 32 layers x 32 heads x 128 x 2 B, half a MiB
    assert find_model("llama-2-7b").token_bytes("fp16") == 1 << 19
    # Kwon et al., arXiv 2309.06180, section 3: 800 KB a token for OPT 13B, 2 x 5120 x 40 layers x 2 B
    assert find_model("opt-13b").token_bytes("fp16") == 2 * 5120 * 40 * 2 == 800 << 10


#: K/V heads x head dim x layers, and the width h d of all query heads, as configurations print it.
WIDTHS = {
    "llama-2-7b": (32 * 128 * 32, 4096),
    "llama-2-70b": (8 * 128 * 80, 8192),
    "llama-3-8b": (8 * 128 * 32, 4096),
    "llama-3-70b": (8 * 128 * 80, 8192),
    "llama-3.1-405b": (8 * 128 * 126, 16384),
    "mistral-7b": (8 * 128 * 32, 4096),
    "mixtral-8x7b": (8 * 128 * 32, 4096),
    "falcon-7b": (64 * 32, 4544),
    "falcon-40b": (8 * 64 * 60, 8192),
    "gpt2": (768 * 12, 768),
    "gpt2-medium": (1024 * 24, 1024),
    "gpt2-xl": (1600 * 48, 1600),
    "qwen2.5-7b": (4 * 128 * 28, 3584),
    "qwen2.5-72b": (8 * 128 * 80, 8192),
    "qwen3-8b": (8 * 128 * 36, 4096),
    "gemma-2-9b": (8 * 256 * 42, 4096),  # 16 x 256; the model itself is 3584 wide
    "gemma-3-27b": (16 * 128 * 62, 4096),  # 32 x 128; the model itself is 5376 wide
    "phi-3-mini": (3072 * 32, 3072),
    "deepseek-llm-7b": (4096 * 30, 4096),
    "deepseek-llm-67b": (8 * 128 * 95, 8192),
    "opt-13b": (5120 * 40, 5120),
    "bert-large": (1024 * 24, 1024),
}


def test_widths() -> None:
    found = {m.name: (m.kv_heads * m.head_dim * m.layers, m.heads * m.head_dim) for m in models()}
    assert found == WIDTHS


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_every_model_makes_a_workload_and_names_its_source(model: Model) -> None:
    n = model.context or 1024
    w = AttentionWorkload(
        heads=model.heads, kv_heads=model.kv_heads, head_dim=model.head_dim, seq_q=1, seq_k=n, dtype="fp16"
    )
    assert w.cache_bytes * model.layers == n * model.token_bytes("fp16")
    assert model.heads == model.kv_ratio * model.kv_heads
    assert "config.json" in model.source or "arXiv" in model.source
    assert model.context is None or (model.window or 1) <= model.context


def test_windows() -> None:
    windowed = {m.name: (m.window, m.windowed_layers) for m in models() if m.window}
    assert windowed == {
        "mistral-7b": (4096, 32),
        "gemma-2-9b": (4096, 21),  # every other one of 42
        "gemma-3-27b": (1024, 52),  # 62 less every sixth: 62 - 10
        "phi-3-mini": (2047, 32),
    }


def test_names_are_found_in_any_case() -> None:
    assert find_model("Llama-3-8B") is find_model("llama-3-8b")


def test_an_unknown_name_says_what_was_meant_and_what_there_is() -> None:
    with pytest.raises(UsageError) as unknown:
        find_model("llama3-8b")
    assert unknown.value.message.startswith("no model is named 'llama3-8b'; did you mean llama-3-8b")
    assert all(model.name in unknown.value.hint for model in models())


def test_what_cannot_be_represented_is_refused_with_the_reason() -> None:
    assert [one.name for one in refused_models()] == ["deepseek-v3"]
    with pytest.raises(UsageError) as refused:
        find_model("deepseek-v3")
    assert refused.value.message.startswith("deepseek-v3 cannot be represented: multi-head latent attention")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "one: sizes start at 1, and K/V heads divide heads"),
        ({"layers": 0}, "one: sizes start at 1, and K/V heads divide heads"),
        ({"window": 4096}, "one: a window is that of 1 to 3 layers"),
        ({"windowed_layers": 2}, "one: a window is that of 1 to 3 layers"),
        ({"window": 4096, "windowed_layers": 4}, "one: a window is that of 1 to 3 layers"),
    ],
)
def test_nonsense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Model(**(ONE | change))
    assert refused.value.message == message


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(ONE | {"head": 1}, type=Model)
