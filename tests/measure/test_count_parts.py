"""The parts of counting, without a process and without Triton: addresses, classes of programs, passes."""

from types import SimpleNamespace
from typing import Any

import pytest

from perfkit.errors import EnvironmentMissing
from perfkit.measure.counting.sampling import Schedule, schedule
from perfkit.measure.counting.tally import Sums, Tally, extended
from perfkit.measure.counting.types import CountFailed, Sampling

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from perfkit.measure.counting.passes import Passes  # noqa: E402
from perfkit.measure.counting.regions import Region, Regions, regions_of  # noqa: E402

# Addresses.

REGIONS = Regions("k", [Region(1000, 1100, "b"), Region(100, 200, "a")])


def _addresses(*values: int) -> Any:
    return np.array(values, dtype=np.uint64)


def test_lanes_go_to_the_tensor_that_holds_them() -> None:
    every = np.array([True, True, True])
    assert REGIONS.touched(_addresses(100, 150, 196), every, 4) == [("a", 3)]
    assert REGIONS.touched(_addresses(1000, 100, 1096), None, 4) == [("b", 2), ("a", 1)]
    # A masked lane may point anywhere.
    assert REGIONS.touched(_addresses(100, 5, 196), np.array([True, False, True]), 4) == [("a", 2)]
    assert REGIONS.touched(_addresses(5, 6, 7), ~every, 4) == []
    two_rows = _addresses(100, 150, 5, 6).reshape(2, 2)
    assert REGIONS.touched(two_rows, np.array([[True], [False]]), 4) == [("a", 2)]


@pytest.mark.parametrize(
    ("address", "where"),
    [
        (197, "1 bytes past the end of a"),  # 197 + 4 is one past 200
        (300, "104 bytes past the end of a"),
        (98, "2 bytes before the start of a"),
        (1100, "4 bytes past the end of b"),
    ],
)
def test_memory_of_nobody_is_an_error(address: int, where: str) -> None:
    for pointers in (_addresses(address), _addresses(address, 100, 1000)):
        with pytest.raises(CountFailed, match=f"k touches memory of no tensor .*: {where}"):
            REGIONS.touched(pointers, None, 4)


def test_tensors_that_overlap_are_an_error() -> None:
    with pytest.raises(CountFailed, match="arguments a and b overlap"):
        Regions("k", [Region(0, 10, "a"), Region(9, 20, "b")])
    assert Regions("k", [Region(0, 10, "a"), Region(10, 20, "b")]).touched(_addresses(10), None, 2) == [
        ("b", 1)
    ]


def test_regions_of_arguments() -> None:
    rows = torch.zeros(4, 6, dtype=torch.float16)
    view = rows[:, :3]  # its last element is the 21st: 3 rows of 6, and 3
    described = SimpleNamespace(base=rows)
    start = rows.data_ptr()
    found = regions_of({"n": 3, "x": view, "y": (1, rows), "d": described, "empty": rows[:0], "none": None})
    assert found == [
        Region(start, start + 42, "x"),
        Region(start, start + 48, "y[1]"),
        Region(start, start + 48, "d"),
    ]


# Programs.

ROWS = {"seq_q": 203, "BLOCK_M": 64, "CAUSAL": False}  # 3 whole tiles and one of 11 rows
ALIKE = Sampling(programs="alike")


def test_all_programs_run_unless_asked_otherwise() -> None:
    assert schedule("flash_forward", ROWS, 4, Sampling()) == Schedule()
    assert schedule("other", ROWS, 4, ALIKE).weights is None
    assert schedule("flash_forward", ROWS, 7, ALIKE).weights is None  # no whole number of heads
    assert Schedule().weight(3) == 1


def test_one_of_each_class_runs() -> None:
    one = schedule("flash_forward", ROWS, 4, ALIKE)
    assert (one.weights, one.witnesses) == ({0: 3, 3: 1}, {2: 0})
    assert [one.weight(p) for p in range(4)] == [3, None, 0, 1]
    two = schedule("flash_forward", ROWS, 8, ALIKE)  # two heads: tiles 0-2 and 4-6, and 3 and 7
    assert (two.weights, two.witnesses) == ({0: 6, 3: 2}, {6: 0, 7: 3})
    even = schedule("flash_forward", {**ROWS, "seq_q": 256}, 4, ALIKE)
    assert (even.weights, even.witnesses) == ({0: 4}, {3: 0})
    short = schedule("flash_forward", {**ROWS, "seq_q": 11}, 1, ALIKE)
    assert (short.weights, short.witnesses) == ({0: 1}, {})


def test_under_a_mask_only_heads_are_alike() -> None:
    causal = {**ROWS, "CAUSAL": True}
    two = schedule("flash_forward", causal, 8, ALIKE)
    assert (two.weights, two.witnesses) == ({0: 2, 1: 2, 2: 2, 3: 2}, {4: 0, 7: 3})
    assert schedule("flash_delta", causal, 4, ALIKE).weights == {0: 3, 3: 1}  # it sees no mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 203])
@pytest.mark.parametrize("heads", [1, 2, 5])
def test_weights_add_up_to_the_grid(length: int, heads: int, causal: bool) -> None:
    programs = -(-length // 64) * heads
    found = schedule("flash_dq", {"seq_q": length, "BLOCK_M": 64, "CAUSAL": causal}, programs, ALIKE)
    assert found.weights is not None
    assert sum(found.weights.values()) == programs
    assert not set(found.witnesses) & set(found.weights)


# Tallies.


def test_what_heads_share_counts_once() -> None:
    one, two = Tally(), Tally()
    one.of("k", "Q").add(Sums(read=10, written=4))
    two.of("k", "Q").add(Sums(read=20, written=4))
    two.of("k", "V").add(Sums(read=6))
    found = {entry.tensor: entry.traffic for entry in extended(one, one, 5).moved()}
    assert found["Q"].read_bytes == 10
    one.of("k", "V").add(Sums(read=3))
    found = {entry.tensor: entry.traffic for entry in extended(one, two, 5).moved()}
    assert (found["Q"].read_bytes, found["Q"].write_bytes) == (50, 4)
    assert found["V"].read_bytes == 15


@pytest.mark.parametrize("reads", [(10, 9), (10, 21), (0, 5)])
def test_bytes_that_grow_unevenly_are_an_error(reads: tuple[int, int]) -> None:
    one, two = Tally(), Tally()
    one.of("k", "Q").add(Sums(read=reads[0]))
    two.of("k", "Q").add(Sums(read=reads[1]))
    with pytest.raises(CountFailed, match="bytes of Q do not grow evenly"):
        extended(one, two, 5)


# Passes. Every tensor is 4 x 6 in float32: 96 bytes.


def _passes(work: Any, ignored: bool = False) -> dict[tuple[str, str], tuple[int, int]]:
    tally = Tally()
    x, y = torch.ones(4, 6), torch.ones(4, 6)
    with Passes(tally, {"x": x, "y": y}, lambda: ignored):
        work(x, y)
    return {(m.kernel, m.tensor): (m.traffic.read_bytes, m.traffic.write_bytes) for m in tally.moved()}


@pytest.mark.parametrize(
    ("work", "moved"),
    [
        (lambda x, y: x + y, {"x": (96, 0), "y": (96, 0), "aten::add": (0, 96)}),
        (lambda x, _: x * x, {"x": (96, 0), "aten::mul": (0, 96)}),  # one tensor, given twice
        (lambda x, y: x.add_(y), {"x": (96, 0), "y": (96, 0), "aten::add_": (0, 96)}),
        (lambda x, y: torch.add(x, y, out=y), {"x": (96, 0), "y": (96, 0), "aten::add": (0, 96)}),
        (lambda x, y: x.copy_(y), {"y": (96, 0), "aten::copy_": (0, 96)}),  # x is overwritten, not read
        (lambda x, _: x.zero_(), {"aten::zero_": (0, 96)}),
        (lambda x, _: torch.zeros_like(x), {"aten::zeros_like": (0, 96)}),
        (lambda x, y: x[:1].expand(4, 6) * y, {"x": (24, 0), "y": (96, 0), "aten::mul": (0, 96)}),
        (lambda x, _: x.view(6, 4).t().detach()[1:], {}),
        (lambda x, _: (torch.empty_like(x), x.new_empty(3), torch.empty(2)), {}),
        # 4 x 6 by 6 x 4 gives 4 x 4: 64 bytes. The addend is read only if it counts.
        (
            lambda x, y: torch.addmm(x[:, :4], x, y.t(), beta=0),
            {"x": (96, 0), "y": (96, 0), "aten::addmm": (0, 64)},
        ),
        (lambda x, y: torch.addmm(y[:, :4], x, x.t()), {"y": (64, 0), "x": (192, 0), "aten::addmm": (0, 64)}),
    ],
)
def test_an_operation_reads_its_inputs_and_writes_its_outputs(work: Any, moved: dict[str, Any]) -> None:
    found = _passes(work)
    assert {tensor: sums for (_, tensor), sums in found.items()} == moved
    assert len({kernel for kernel, _ in found}) == bool(moved)


def test_what_was_written_has_a_name_from_then_on() -> None:
    found = _passes(lambda x, y: torch.relu(x * y))
    assert found["aten::relu", "aten::mul"] == (96, 0)


def test_nothing_is_seen_within_a_launch() -> None:
    assert _passes(lambda x, y: x + y, ignored=True) == {}


# The interpreter.


@pytest.mark.parametrize(
    ("owner", "name"),
    [("", "GridExecutor"), ("", "_patch_lang"), ("InterpreterBuilder", "create_masked_load")],
)
def test_another_interpreter_is_refused(owner: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    from perfkit.measure.counting.interpreter import observed

    monkeypatch.delattr(getattr(interpreter, owner) if owner else interpreter, name)
    with pytest.raises(EnvironmentMissing, match=f"has no {name}"), observed(SimpleNamespace()):  # type: ignore[arg-type]
        pass


def test_numpy_that_old_triton_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from perfkit.measure.counting.interpreter import _check_numpy

    monkeypatch.setattr(np, "__version__", "2.4.0")
    _check_numpy("3.7.1")
    with pytest.raises(EnvironmentMissing, match=r"Triton 3\.6\.0 cannot run loops with NumPy 2\.4\.0"):
        _check_numpy("3.6.0")
    monkeypatch.setattr(np, "__version__", "2.3.5")
    _check_numpy("3.6.0")
