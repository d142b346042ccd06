"""Traces of requests: what a CSV file may say, what is refused with its line, and the synthetic trace."""

from itertools import pairwise
from pathlib import Path

import pytest

from perfkit.analysis.cache_synthetic import GENERATED_DECILES, PROMPT_DECILES, synthetic_trace
from perfkit.analysis.cache_trace import Request, read_trace
from perfkit.errors import UsageError

HEAD = "arrival,prompt,generated\n"
SHARED = "arrival,prompt,generated,prefix,prefix_tokens\n"


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_requests_come_by_their_arrival_and_columns_by_their_names(tmp_path: Path) -> None:
    text = "model, generated ,prompt,arrival\nx,3,20,5\ny, 1 ,10,0.5\n\nz,2,30,5\n"
    assert read_trace(written(tmp_path, text)) == (
        Request(arrival=0.5, prompt=10, generated=1),
        Request(arrival=5, prompt=20, generated=3),  # before the other one at 5, as in the file
        Request(arrival=5, prompt=30, generated=2),
    )


def test_a_prefix_may_be_left_out(tmp_path: Path) -> None:
    text = SHARED + "0,20,3,chat,16\n1,20,3,,\n2,20,3,,0\n"
    assert [(r.prefix, r.prefix_tokens) for r in read_trace(written(tmp_path, text))] == [
        ("chat", 16),
        (None, 0),
        (None, 0),
    ]


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbfarrival,prompt,generated\r\n"0","5","6"\r\n'
    assert read_trace(written(tmp_path, text)) == (Request(arrival=0, prompt=5, generated=6),)


def test_arrivals_are_divided_by_the_length_of_a_step(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, HEAD + "0,1,1\n0.5,1,1\n0.51,1,1\n"), step_time=0.25)
    assert [request.arrival for request in found] == [0, 2, 2.04]
    # 2.04 lies within step 2: step 3 is the first that can take it up.
    assert [request.step for request in found] == [0, 2, 3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prompt,generated\n1,2\n", "line 1: column arrival is missing"),
        ("a,b\n1,2\n", "line 1: column arrival, prompt, generated is missing"),
        ("arrival,prompt,generated,prefix\n", "line 1: column prefix_tokens is missing"),
        ("arrival,prompt,prompt,generated\n", "line 1: column prompt stands there twice"),
        (HEAD + "0,5,5\n0,5\n", "line 3: 2 values for 3 columns"),
        (HEAD + "0,5,5,5\n", "line 2: 4 values for 3 columns"),
        (HEAD + "-1,5,5\n", "line 2: arrival must be a time of 0 or more, not -1"),
        (HEAD + "nan,5,5\n", "line 2: arrival must be a time of 0 or more, not nan"),
        (HEAD + "inf,5,5\n", "line 2: arrival must be a time of 0 or more, not inf"),
        (HEAD + "soon,5,5\n", "line 2: arrival must be a time of 0 or more, not 'soon'"),
        (HEAD + ",5,5\n", "line 2: arrival must be a time of 0 or more, not ''"),
        (HEAD + "0,5,5\n\n0,-5,5\n", "line 4: prompt must be a whole number of tokens, not '-5'"),
        (HEAD + "0,5,NaN\n", "line 2: generated must be a whole number of tokens, not 'NaN'"),
        (HEAD + "0,5,1.5\n", "line 2: generated must be a whole number of tokens, not '1.5'"),
        (HEAD + "0,٣,5\n", "line 2: prompt must be a whole number of tokens, not '٣'"),
        (HEAD + f"0,{'9' * 16},5\n", f"line 2: prompt must be a whole number of tokens, not '{'9' * 16}'"),
        (HEAD + "0,0,5\n", "line 2: prompt and generated must be 1 token or more each"),
        (HEAD + "0,5,0\n", "line 2: prompt and generated must be 1 token or more each"),
        (SHARED + "0,5,5,a,6\n", "line 2: prefix_tokens must lie within the prompt of 5 tokens"),
        (SHARED + "0,5,5,a,\n", "line 2: prefix and prefix_tokens stand together or not at all"),
        (SHARED + "0,5,5,,3\n", "line 2: prefix and prefix_tokens stand together or not at all"),
        (SHARED + "0,5,5,a,-3\n", "line 2: prefix_tokens must be a whole number of tokens, not '-3'"),
        (HEAD + '0,5,"5\n', "line 2: unexpected end of data"),
    ],
)
def test_nonsense_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as found:
        read_trace(path)
    assert found.value.message == f"{path}, {problem}"
    assert found.value.hint.startswith("columns: arrival,prompt,generated")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is empty"),
        (HEAD.encode(), "holds no requests"),
        (b"arrival,prompt,generated\n\xff,1,1\n", "it is not UTF-8 text"),
    ],
)
def test_files_without_requests(tmp_path: Path, text: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_trace(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the trace .*: No such file or directory"):
        read_trace(str(tmp_path / "nope.csv"))
    with pytest.raises(UsageError, match="Is a directory"):
        read_trace(str(tmp_path))


# The synthetic trace.


def test_the_synthetic_trace_is_the_same_everywhere() -> None:
    """Python keeps `Random.random` stable: these numbers may never change."""
    found = synthetic_trace(1000, seed=0, rate=0.5, max_len=4096)
    assert [(r.arrival, r.prompt, r.generated) for r in found[:3]] == [
        (2, 20, 264),
        (3, 42, 972),
        (4, 159, 144),
    ]
    assert found == synthetic_trace(1000, seed=0, rate=0.5, max_len=4096)
    assert found != synthetic_trace(1000, seed=1, rate=0.5, max_len=4096)
    assert found[:10] == synthetic_trace(10, seed=0, rate=0.5, max_len=4096)


def test_lengths_and_arrivals_have_the_documented_means() -> None:
    """Even draws from [a, b) have the mean (a + b - 1) / 2, and each of the ten is as likely."""
    found = synthetic_trace(20_000, seed=3, rate=0.25, max_len=4096)
    for deciles, mean, values in (
        (PROMPT_DECILES, 164.9, [r.prompt for r in found]),
        (GENERATED_DECILES, 337.9, [r.generated for r in found]),
    ):
        pairs = pairwise(deciles)
        assert sum((a + b - 1) / 2 for a, b in pairs) / 10 == pytest.approx(mean)
        assert sum(values) / len(values) == pytest.approx(mean, rel=0.03)
        assert deciles[0] <= min(values)
        assert max(values) < deciles[-1]
    # A quarter of the steps has an arrival: one every 4 steps.
    assert found[-1].arrival / len(found) == pytest.approx(4, rel=0.03)
    assert len({r.arrival for r in found}) == len(found)  # never two in one step


def test_at_full_rate_one_arrives_in_each_step() -> None:
    assert [r.arrival for r in synthetic_trace(5, 0, 1.0, 4096)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("max_len", [2, 3, 100, 1000])
def test_nothing_is_longer_than_max_len(max_len: int) -> None:
    found = synthetic_trace(300, 0, 1.0, max_len)
    assert max(r.tokens for r in found) == max_len
    assert all(r.prompt >= 1 and r.generated >= 1 for r in found)


def test_a_prefix_comes_on_top_of_every_prompt() -> None:
    bare = synthetic_trace(50, 0, 0.5, 4096)
    found = synthetic_trace(50, 0, 0.5, 4096, prefix_tokens=500)
    assert [r.prompt - 500 for r in found] == [r.prompt for r in bare]
    assert {(r.prefix, r.prefix_tokens) for r in found} == {("system", 500)}


def test_synthetic_nonsense() -> None:
    for rate in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match=r"--rate must be from 0\.001 to 1"):
            synthetic_trace(1, 0, rate, 100)
    with pytest.raises(UsageError, match="a prefix of 99 tokens leaves no room in 100"):
        synthetic_trace(1, 0, 1.0, 100, prefix_tokens=99)
    assert synthetic_trace(1, 0, 1.0, 100, prefix_tokens=98)[0].tokens == 100
    with pytest.raises(UsageError, match="--requests must be at most 100,000"):
        synthetic_trace(100_001, 0, 1.0, 100)
