"""The K/V cache in words: 2 h_kv d e bytes a token, so 4096 tokens of 16 heads, d 64, bf16 are 16.8 MB."""

from typing import Any

import pytest

from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import study
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_session
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run, Status
from perfkit.reports.html.page import as_html
from perfkit.reports.kv_words import kv_words


def square(n: int = 4096, kv_heads: int = 16, **rest: Any) -> AttentionWorkload:
    return AttentionWorkload(seq_q=n, seq_k=n, heads=16, kv_heads=kv_heads, **rest)


def run(
    impl: str, w: AttentionWorkload, asked: AttentionWorkload | None = None, status: Status = "measured"
) -> Run:
    return Run(impl=impl, workload=w, asked=asked, status=status)


def variants(n: int = 4096) -> list[Run]:
    """What `mha,gqa,mqa` run where 4 K/V heads are asked for."""
    asked = square(n, 4)
    return [
        run("mha", square(n, 16), asked),
        run("gqa", asked),
        run("mqa", square(n, 1), asked),
    ]


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd-bwd"])
def test_one_cache(pass_: str) -> None:
    # 2 x 16 x 4096 x 64 x 2 B = 16,777,216 B, with 4 heads a quarter; no pass makes K and V larger
    assert kv_words([run("a", square(pass_=pass_))]) == "K/V cache 16.8 MB, h/h_kv 1"
    shared = [run("a", square(kv_heads=4, pass_=pass_)), run("b", square(kv_heads=4, pass_=pass_))]
    assert kv_words(shared) == "K/V cache 4.19 MB, h/h_kv 4: 4x smaller than with 16 K/V heads"


def test_an_fp8_cache_is_half_as_large() -> None:
    assert kv_words([run("a", square(cache_dtype="fp8"))]) == "K/V cache 8.39 MB, h/h_kv 1"


def test_two_lengths_and_a_range_of_them() -> None:
    two = [run(impl, square(n, 4)) for n in (1024, 4096) for impl in "ab"]
    assert kv_words(two) == "K/V cache, h/h_kv 4: 1.05 MB at N 1k and 4.19 MB at N 4k"
    three = [*two, run("a", square(2048, 4))]
    assert kv_words(three) == "K/V cache, h/h_kv 4: 1.05 MB at N 1k to 4.19 MB at N 4k"


def test_masks_and_passes_do_not_tell_caches_apart() -> None:
    runs = [run("a", square()), run("a", square(causal=True)), run("a", square(pattern="window:512"))]
    assert kv_words(runs) == "K/V cache 16.8 MB, h/h_kv 1"
    wide = square(causal=True, head_dim=128)
    assert kv_words([*runs, run("a", wide)]) == "K/V cache, h/h_kv 1: 16.8 MB at d 64 and 33.6 MB at d 128"


def test_implementations_with_their_own_heads() -> None:
    assert kv_words(variants()) == "K/V cache: mha 16.8 MB (h/h_kv 1), gqa 4.19 MB (4), mqa 1.05 MB (16)"
    assert kv_words([*variants(1024), *variants()]) == (
        "K/V cache: mha 4.19 MB at N 1k and 16.8 MB at N 4k (h/h_kv 1), "
        "gqa 1.05 MB at N 1k and 4.19 MB at N 4k (4), mqa 262 kB at N 1k and 1.05 MB at N 4k (16)"
    )


def test_many_implementations_with_one_cache_are_the_others() -> None:
    asked = square(kv_heads=4)
    assert kv_words([run("a", asked), *variants(), run("b", asked), run("c", asked)]) == (
        "K/V cache: mha 16.8 MB (h/h_kv 1), mqa 1.05 MB (16), the others 4.19 MB (4)"
    )
    two = kv_words([run("a", asked), *variants()])
    assert two == "K/V cache: a and gqa 4.19 MB (h/h_kv 4), mha 16.8 MB (1), mqa 1.05 MB (16)"


def test_a_shared_prefix_is_there_once() -> None:
    # 4 sequences of 4096 tokens, 4 K/V heads: 16.8 MB; 3 x 1024 of 16384 tokens less are 13.6 MB
    rest = {"seq_q": 1, "seq_k": 4096, "heads": 16, "kv_heads": 4, "batch": 4}
    paged = AttentionWorkload(**rest, page=16, prefix=1024)
    runs = [run("paged-decode", paged), run("flash-decode", AttentionWorkload(**rest), paged)]
    assert kv_words(runs) == "K/V cache, h/h_kv 4: paged-decode 13.6 MB, flash-decode 16.8 MB"


def test_heads_that_differ_by_workload() -> None:
    assert kv_words([run("a", square(kv_heads=4)), run("a", square())]) == (
        "K/V cache: 4.19 MB at 16 heads over 4 K/V heads (h/h_kv 4), 16.8 MB at 16 heads (1)"
    )


def test_runs_without_a_result_count_only_where_there_is_no_other() -> None:
    refused = run("mqa", square(kv_heads=1), square(), "refused")
    assert kv_words([run("a", square()), refused]) == "K/V cache 16.8 MB, h/h_kv 1"
    assert kv_words([refused]) == "K/V cache 1.05 MB, h/h_kv 16: 16x smaller than with 16 K/V heads"
    assert kv_words([]) == ""


def test_the_html_report_says_it() -> None:
    op = find_op("attention")
    row = op.implementation("flash")
    assert row is not None
    record = run_session(op, [square(kv_heads=4)], [row], FakeBackend(), lambda *_: None)
    page = as_html(Report(parts=(Titled(name="one", study=study(record)),), threshold=0.01)).decode()
    assert page.count("K/V cache 4.19 MB, h/h_kv 4: 4x smaller than with 16 K/V heads.") == 1
