"""`perfkit models`: the whole table, one model, the guide's picture, and names that are not there."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "models.txt"

Perfkit = Callable[..., Any]


def test_all_models(perfkit: Perfkit) -> None:
    ended = perfkit("models")
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(ended.out)
    assert ended.out == GOLDEN.read_text()


def test_the_guide_shows_the_table() -> None:
    guide = (ROOT / "docs" / "models.md").read_text()
    picture = re.search(r"<!-- models:begin -->\n```text\n(.*?)```", guide, re.DOTALL)
    assert picture is not None
    assert GOLDEN.read_text().startswith(picture[1])
    assert picture[1].count("\n") > 20


def test_one_model(perfkit: Perfkit) -> None:
    ended = perfkit("models", "gemma-2-9b")
    assert ended.out.splitlines() == [
        "gemma-2-9b",
        "query heads  16",
        "K/V heads    8, h/h_kv 2",
        "head dim     256",
        "layers       42",
        "window       4k in 21 layers",
        "context      8k",
        "K and V      344 kB a token in bf16",  # 2 x 42 x 8 x 256 x 2 B = 344,064 B
        "note         every other layer has the window, the first one too",
        "source       huggingface.co/google/gemma-2-9b, config.json; arXiv 2408.00118,",
        "             Table 1",
    ]


def test_names_that_are_not_there(perfkit: Perfkit) -> None:
    unknown, refused = perfkit("models", "llama"), perfkit("models", "deepseek-v3")
    assert (unknown.code, refused.code) == (2, 2)
    assert unknown.err.startswith("error: no model is named 'llama'")
    assert refused.err.startswith("error: deepseek-v3 cannot be represented: multi-head latent attention")
