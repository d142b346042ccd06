"""The Gluon kernels on a Hopper GPU: races. The same bits each time, whatever else the GPU does meanwhile.

Persistent programs take tiles from a counter in device memory, which a launch leaves as it found it: launches
in a row, on several streams at once, and in graphs must not get in one another's way.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton.experimental.gluon")

from perfkit.kernels.attention import hopper  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no GPU of compute capability 9.0",
    ),
]
Tensors = tuple[Any, ...]
NAMES = ("out", "lse", "dq", "dk", "dv")
REPEATS = 10
#: Batch, heads, K/V heads, N: of a call with many tiles for each multiprocessor, and with a few in all.
MANY, FEW = (4, 16, 4, 1777), (1, 2, 1, 700)


@pytest.fixture
def call(make_case: Any, make_inputs: Callable[..., Any]) -> Callable[..., Callable[[], Tensors]]:
    """(sizes, head dim, causal, seed) -> the function that gives O, LSE, dQ, dK and dV of the same call."""

    def make(
        sizes: tuple[int, ...], head_dim: int, causal: bool, seed: int = 0, deterministic: bool = True
    ) -> Callable[[], Tensors]:
        case = make_case(*sizes, sizes[-1], head_dim, causal, "bfloat16", order="rows first")
        q, k, v, dout = make_inputs(case, "cuda", seed)

        def results() -> Tensors:
            out, lse = hopper.forward(q, k, v, causal)
            how = {"deterministic": deterministic}
            return out, lse, *hopper.backward(q, k, v, out, lse, dout, causal, **how)

        return results

    return make


def differing(found: Tensors, expected: Tensors, but: Sequence[str] = ()) -> list[str]:
    """The names of those that have other bits."""
    both = zip(NAMES, found, expected, strict=True)
    return [name for name, one, other in both if name not in but and not torch.equal(one, other)]


@functools.cache
def load() -> Any:
    """What takes multiprocessors and bandwidth away for about a millisecond, and shifts what runs when."""
    left = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    return lambda: left @ left


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_same_bits_each_time(head_dim: int, causal: bool, deterministic: bool, call: Any) -> None:
    """Every other time beside work of another stream.

    Up to a head dim of 128 dQ is a sum in no fixed order unless `deterministic`: then two of them differ by
    no more than rounding.
    """
    results = call(MANY, head_dim, causal, deterministic=deterministic)
    expected = results()
    beside = torch.cuda.Stream()
    for repeat in range(REPEATS):
        if repeat % 2:
            with torch.cuda.stream(beside):
                for _ in range(10):
                    load()()
        found = results()
        assert not differing(found, expected, () if deterministic or head_dim > 128 else ("dq",))
        largest = expected[2].abs().max().item()  # 2^-7: one step of bfloat16
        torch.testing.assert_close(found[2], expected[2], rtol=2**-7, atol=1e-3 * largest)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_launches_in_a_row(head_dim: int, causal: bool, call: Any) -> None:
    """Two calls with other sizes in turn, and nobody waits for the GPU between them."""
    calls = [call(MANY, head_dim, causal, 1), call(FEW, head_dim, causal, 2)]
    expected = []
    for results in calls:
        expected.append(results())
        torch.cuda.synchronize()
    found = [calls[at % 2]() for at in range(REPEATS)]
    assert [differing(one, expected[at % 2]) for at, one in enumerate(found)] == [[]] * REPEATS


@pytest.mark.parametrize("sizes", [(MANY, MANY), (FEW, FEW), (MANY, FEW)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_launches_on_two_streams(head_dim: int, sizes: tuple[tuple[int, ...], ...], call: Any) -> None:
    calls = [call(one, head_dim, True, seed) for seed, one in enumerate(sizes)]
    expected = [results() for results in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    found: list[Tensors] = []
    for at in range(REPEATS):
        with torch.cuda.stream(streams[at % 2]):
            found.append(calls[at % 2]())
    torch.cuda.synchronize()
    assert [differing(one, expected[at % 2]) for at, one in enumerate(found)] == [[]] * REPEATS


def captured(results: Callable[[], Tensors]) -> tuple[Any, Tensors]:
    """(a graph of one call, where its replays put the results)."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = results()
    return graph, held


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_graph_is_replayed(head_dim: int, causal: bool, call: Any) -> None:
    """Five times with a look at the results and a launch outside of it, then five times in a row."""
    results = call(MANY, head_dim, causal)
    expected = results()
    graph, held = captured(results)
    for _ in range(5):
        for one in held:
            one.fill_(torch.nan)
        graph.replay()
        assert not differing(held, expected)
        assert not differing(results(), expected)
    for _ in range(5):
        graph.replay()
    assert not differing(held, expected)


def test_two_graphs_are_replayed_at_once(call: Any) -> None:
    """They were captured on the same stream, and are replayed on two, beside launches on a third."""
    calls = [call(MANY, 64, True, 1), call(MANY, 64, True, 2)]
    expected = [results() for results in calls]
    graphs = [captured(results) for results in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    eager = []
    for _ in range(5):
        for (graph, _), stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        eager.append(calls[0]())
    torch.cuda.synchronize()
    assert [differing(held, right) for (_, held), right in zip(graphs, expected, strict=True)] == [[], []]
    assert [differing(one, expected[0]) for one in eager] == [[]] * 5
