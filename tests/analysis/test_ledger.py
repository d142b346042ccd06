"""The byte ledger of a run: model and counters side by side, by hand and on the records of an H200."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.analysis.io_check import zeros_counted
from perfkit.analysis.ledger import ALL_KERNELS, ZEROS, LedgerLine, ledger
from perfkit.errors import UsageError
from perfkit.model.catalogue import load as profile
from perfkit.model.traffic import Traffic
from perfkit.ops.attention import ATTENTION
from perfkit.ops.base import IOModel, KernelUse, Moved
from perfkit.record import KernelCounts, Run, load

MakeRun = Callable[..., Run]
RECORDS = sorted((Path(__file__).parents[2] / "docs/examples/h200").glob("*.json"))
HOPPER = Path(__file__).parents[2] / "docs/examples/h200/hopper"

SMALL = {"seq_q": 4, "seq_k": 4, "head_dim": 2}
TILES = tuple(
    KernelUse(kernel=name, block_m=2, block_n=2) for name in ("flash_forward", "flash_dkdv", "flash_dq")
)


def counts(name: str, **values: float) -> KernelCounts:
    return KernelCounts(name=name, values=values)


def with_kernels(run: Run, *kernels: KernelCounts) -> Run:
    return msgspec.structs.replace(run, kernels=kernels)


def plain(lines: tuple[LedgerLine, ...]) -> list[tuple[Any, ...]]:
    """(kernel, tensor, level, read modelled, read measured, written modelled, written measured)."""
    return [
        (a.kernel, a.tensor, a.level, a.read_modelled, a.read_measured, a.write_modelled, a.write_measured)
        for a in lines
    ]


@pytest.fixture
def forward(make_run: MakeRun) -> Run:
    """flash forward, N 4, d 2, 2 B, tiles 2 x 2: a tensor is 16 B, LSE 16 B, K and V are read twice."""
    return make_run(w=SMALL, uses=TILES, time=1.0)


def test_a_kernel_is_its_tensors_and_then_its_total(forward: Run) -> None:
    run = with_kernels(forward, counts("flash_forward", l1_fill_bytes=81.0, l2_write_bytes=33.0))
    assert plain(ledger("attention", run)) == [
        ("flash_forward", "Q", "L2", 16, None, 0, None),
        ("flash_forward", "K", "L2", 32, None, 0, None),
        ("flash_forward", "V", "L2", 32, None, 0, None),
        ("flash_forward", "O", "L2", 0, None, 16, None),
        ("flash_forward", "LSE", "L2", 0, None, 16, None),
        ("flash_forward", None, "L2", 16 + 32 + 32, 81.0, 16 + 16, 33.0),
    ]


def test_kernels_of_the_backward_pass_find_their_counters(make_run: MakeRun) -> None:
    kernels = [
        counts(name, l1_fill_bytes=read, l2_write_bytes=written)
        for name, read, written in (("flash_delta", 1, 2), ("flash_dkdv", 3, 4), ("flash_dq", 5, 6))
    ]
    run = with_kernels(make_run(w={**SMALL, "pass_": "bwd"}, uses=TILES, time=1.0), *kernels)
    assert [line for line in plain(ledger("attention", run)) if line[1] is None] == [
        ("flash_delta", None, "L2", 32, 1, 16, 2),  # O, dO; D
        ("flash_dkdv", None, "L2", 2 * 16 + 2 * (4 * 16), 3, 32, 4),  # K, V; twice Q, dO, LSE, D; dK, dV
        ("flash_dq", None, "L2", 4 * 16 + 2 * 32, 5, 16, 6),  # Q, dO, LSE, D; twice K, V; dQ
    ]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ({"l1_fill_bytes": 81.0, "l2_read_bytes": 50.0}, 81.0),
        ({"l2_read_bytes": 50.0}, 50.0),
        ({"sm_cycles": 7.0}, None),
    ],
    ids=["at L1", "at L2", "not counted"],
)
def test_reads_are_taken_at_l1_where_that_was_counted(
    forward: Run, values: dict[str, float], read: float | None
) -> None:
    total = ledger("attention", with_kernels(forward, counts("flash_forward", **values)))[-1]
    assert (total.tensor, total.read_measured, total.write_measured) == (None, read, None)


def test_launches_of_one_kernel_add_up(forward: Run) -> None:
    twice = (
        counts("flash_forward", l1_fill_bytes=40, l2_write_bytes=1),
        counts("flash_forward", l1_fill_bytes=41, l2_write_bytes=2),
    )
    total = ledger("attention", with_kernels(forward, *twice))[-1]
    assert (total.read_measured, total.write_measured) == (81, 3)
    half = with_kernels(forward, twice[0], counts("flash_forward", l2_write_bytes=2))
    assert ledger("attention", half)[-1].read_measured is None  # a part is no sum


def test_a_kernel_that_is_not_in_the_model_is_not_lost(forward: Run) -> None:
    copy = counts("copy", l1_fill_bytes=7, l2_write_bytes=8)
    lines = plain(ledger("attention", with_kernels(forward, copy)))
    assert lines[-2:] == [
        ("flash_forward", None, "L2", 80, None, 32, None),
        ("copy", None, "L2", None, 7, None, 8),
    ]


def test_a_modelled_run_has_the_model_alone(forward: Run) -> None:
    lines = ledger("attention", forward)
    assert [line.read_modelled for line in lines] == [16, 32, 32, 0, 0, 80]
    assert {(line.read_measured, line.write_measured) for line in lines} == {(None, None)}


def of_count(lines: tuple[LedgerLine, ...]) -> list[tuple[Any, ...]]:
    return [(a.kernel, a.tensor, a.read_modelled, a.read_counted, a.write_counted) for a in lines]


def moved(kernel: str, tensor: str, read: int, written: int) -> Moved:
    return Moved(kernel=kernel, tensor=tensor, traffic=Traffic(read_bytes=read, write_bytes=written))


def test_what_was_counted_stands_beside_the_model(forward: Run) -> None:
    """A tensor that the count has not seen is 0 there; one that the model does not have has its own line."""
    seen = (moved("flash_forward", "Q", 16, 0), moved("flash_forward", "X", 3, 5), moved("copy", "Y", 7, 0))
    assert of_count(ledger("attention", msgspec.structs.replace(forward, counted=seen))) == [
        ("flash_forward", "Q", 16, 16, 0),
        ("flash_forward", "K", 32, 0, 0),
        ("flash_forward", "V", 32, 0, 0),
        ("flash_forward", "O", 0, 0, 0),
        ("flash_forward", "LSE", 0, 0, 0),
        ("flash_forward", "X", None, 3, 5),
        ("flash_forward", None, 80, 19, 5),
        ("copy", "Y", None, 7, 0),
        ("copy", None, None, 7, 0),
    ]
    assert {(a.read_counted, a.write_counted) for a in ledger("attention", forward)} == {(None, None)}


def test_counted_steps_of_standard_have_their_sum(make_run: MakeRun) -> None:
    run = make_run("standard", w=SMALL, dram_read=115.0, dram_write=79.0)
    seen = (moved("S = Q K^T", "Q", 16, 0), moved("S = Q K^T", "S", 0, 32), moved("mask", "index", 4, 0))
    found = of_count(ledger("attention", msgspec.structs.replace(run, counted=seen)))
    assert found[0] == ("S = Q K^T", "Q", 16, 16, 0)
    assert found[-2:] == [("mask", "index", None, 4, 0), (ALL_KERNELS, None, 112, 20, 32)]


def test_standard_is_steps_their_sum_and_the_kernels_that_ran(make_run: MakeRun) -> None:
    # N 4, d 2, 2 B: Q, K, V, O 16 B; S, P 4 x 4 x 2 B = 32 B
    run = with_kernels(
        make_run("standard", w=SMALL, dram_read=115.0, dram_write=79.0),
        counts("gemm", dram_read_bytes=34.0, dram_write_bytes=30.0, l1_fill_bytes=999.0),
        counts("softmax", dram_read_bytes=33.0),
        counts("gemm", dram_read_bytes=50.0, dram_write_bytes=20.0),
    )
    assert plain(ledger("attention", run)) == [
        ("S = Q K^T", "Q", "DRAM", 16, None, 0, None),
        ("S = Q K^T", "K", "DRAM", 16, None, 0, None),
        ("S = Q K^T", "S", "DRAM", 0, None, 32, None),
        ("P = softmax(S)", "S", "DRAM", 32, None, 0, None),
        ("P = softmax(S)", "P", "DRAM", 0, None, 32, None),
        ("O = P V", "P", "DRAM", 32, None, 0, None),
        ("O = P V", "V", "DRAM", 16, None, 0, None),
        ("O = P V", "O", "DRAM", 0, None, 16, None),
        (ALL_KERNELS, None, "DRAM", 112, 115.0, 80, 79.0),  # 2 N^2 + 3 N d read, 2 N^2 + N d written
        ("gemm", None, "DRAM", None, 34.0, None, 30.0),
        ("softmax", None, "DRAM", None, 33.0, None, None),
        ("gemm", None, "DRAM", None, 50.0, None, 20.0),
    ]


def test_bytes_that_were_not_counted_are_none_in_the_sum(make_run: MakeRun) -> None:
    run = make_run("standard", w=SMALL, dram_read="counters are not permitted", dram_write=79.0)
    total = next(line for line in ledger("attention", run) if line.kernel == ALL_KERNELS)
    assert (total.read_measured, total.write_measured) == (None, 79.0)


@pytest.mark.parametrize("impl", ["sdpa-cudnn", "reference", "one that this perfkit does not know"])
def test_without_a_model_there_are_the_kernels_alone(make_run: MakeRun, impl: str) -> None:
    run = with_kernels(
        make_run(impl, time=1.0),
        counts("one", l1_fill_bytes=5.0, l2_read_bytes=3.0, l2_write_bytes=2.0, dram_read_bytes=1.0),
        counts("two", l2_read_bytes=4.0),
    )
    assert plain(ledger("attention", run)) == [
        ("one", None, "L2", None, 5.0, None, 2.0),
        ("two", None, "L2", None, 4.0, None, None),
    ]
    assert ledger("attention", make_run(impl, time=1.0)) == ()


def test_a_run_without_numbers_has_none(make_run: MakeRun) -> None:
    for impl in ("flash", "standard", "sdpa-cudnn"):
        assert ledger("attention", with_kernels(make_run(impl, "failed", uses=TILES), counts("one"))) == ()


@pytest.mark.parametrize(
    "uses",
    [
        (),
        TILES[:1],
        (*TILES[:2], KernelUse(kernel="flash_dq", block_m=2, block_n=0)),
        (*TILES[:2], KernelUse(kernel="flash_dq", block_m=-2, block_n=2)),
    ],
    ids=["none", "forward only", "zero", "negative"],
)
def test_without_tiles_there_is_none(make_run: MakeRun, uses: tuple[KernelUse, ...]) -> None:
    run = make_run("flash", "failed", w={**SMALL, "pass_": "bwd"}, uses=uses, flops_convention=1.0)
    assert ledger("attention", run) == ()
    ran = with_kernels(run, counts("flash_dkdv", l1_fill_bytes=3.0, l2_write_bytes=4.0))
    assert plain(ledger("attention", ran)) == [("flash_dkdv", None, "L2", None, 3.0, None, 4.0)]


def test_kernels_of_before_are_not_lost(make_run: MakeRun) -> None:
    """`flash` above head dim 128 took the portable backward beside its forward for Hopper."""
    uses = tuple(
        KernelUse(kernel=name, block_m=64, block_n=64)
        for name in ("flash_hopper_forward", "flash_dkdv", "flash_dq")
    )
    kernels = [
        counts(name, l1_fill_bytes=read, l2_write_bytes=written)
        for name, read, written in (("flash_delta", 1, 2), ("flash_dkdv", 3, 4), ("flash_dq", 5, 6))
    ]
    run = with_kernels(make_run(w={"head_dim": 192, "pass_": "bwd"}, uses=uses, time=1.0), *kernels)
    assert plain(ledger("attention", run)) == [
        ("flash_delta", None, "L2", None, 1, None, 2),
        ("flash_dkdv", None, "L2", None, 3, None, 4),
        ("flash_dq", None, "L2", None, 5, None, 6),
    ]


# Zeros by TMA, where the SM counted them.

PADDED = {"heads": 1, "kv_heads": 1, "seq_q": 256, "seq_k": 256, "head_dim": 96}
BLOCKS = (KernelUse(kernel="flash_forward", block_m=128, block_n=64),)


@pytest.fixture
def padded(make_run: MakeRun) -> Callable[..., Run]:
    """`flash-triton`, N 256, d 96 in boxes of 128 columns: 2 blocks of queries, tensors of 256 * 96 * 2 B."""

    def make(counter: str = "cupti: l1_fill_bytes", **numbers: float) -> Run:
        notes = {"l2_read": counter, "l2_zeros_modelled": "beyond head dim 96"}
        known = {"l2_zeros_modelled": 81_920.0, "l2_read": 327_680.0, **numbers}
        run = make_run("flash-triton", w=PADDED, uses=BLOCKS, notes=notes, **known)
        return with_kernels(run, counts("flash_forward", l1_fill_bytes=327_680.0, l2_write_bytes=50_176.0))

    return make


def test_zeros_are_a_line_of_their_kernel_and_in_its_total(padded: Callable[..., Run]) -> None:
    """Q once, K and V twice, and 32 columns of 96 in zeros for each: 5 * 256 * 128 * 2 B with them."""
    lines = plain(ledger("attention", padded(), profile("h200-141gb-sxm")))
    assert lines[-3:] == [
        ("flash_forward", "LSE", "L2", 0, None, 256 * 4, None),
        ("flash_forward", ZEROS, "L2", 5 * 256 * 32 * 2, None, 0, None),
        ("flash_forward", None, "L2", 327_680, 327_680.0, 256 * 96 * 2 + 256 * 4, 50_176.0),
    ]
    assert 5 * 256 * 32 * 2 == 81_920
    assert 5 * 256 * 128 * 2 == 327_680


def test_there_are_none_where_no_sm_counted_them(
    padded: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = profile("h200-141gb-sxm")
    bare = ledger("attention", padded())
    assert bare[-1].read_modelled == 5 * 256 * 96 * 2
    assert ledger("attention", padded("cupti: l2_read_bytes"), device) == bare
    assert ledger("attention", padded(l2_zeros_modelled=0.0), device) == bare
    # A model that does not know them, of a record that has them.
    row = ATTENTION.implementation("flash-triton")
    assert row is not None
    assert isinstance(row.io, IOModel)
    io = msgspec.structs.replace(row.io, zeros=None)
    unknown = msgspec.structs.replace(ATTENTION, implementations=(msgspec.structs.replace(row, io=io),))
    monkeypatch.setattr("perfkit.analysis.ledger.find_op", lambda _: unknown)
    assert ledger("attention", padded(), device) == bare


def test_an_unknown_op_is_refused(forward: Run) -> None:
    with pytest.raises(UsageError, match="unknown op 'convolution'"):
        ledger("convolution", forward)


# Real records. Their modelled numbers were computed when they were measured.


def h200_runs(impl: str) -> list[Any]:
    runs = [(path.stem, run) for path in RECORDS for run in load(path).runs if run.impl == impl]
    return [pytest.param(run, id=stem) for stem, run in runs if run.numbers]


@pytest.mark.parametrize("run", h200_runs("flash"))
def test_flash_on_an_h200_kernel_by_kernel(run: Run) -> None:
    totals = [line for line in ledger("attention", run) if line.tensor is None]
    assert sum(line.read_modelled or 0 for line in totals) == run.value("l2_read_modelled")
    assert sum(line.write_modelled or 0 for line in totals) == run.value("l2_write_modelled")
    assert [line.kernel for line in totals] == [kernel.name for kernel in run.kernels]
    assert sum(line.read_measured or 0 for line in totals) == run.value("l2_read")
    assert sum(line.write_measured or 0 for line in totals) == run.value("l2_write")
    spills = {use.kernel for use in run.uses if use.spills}
    for line in totals:
        if line.kernel in spills:
            continue
        assert line.write_measured == pytest.approx(line.write_modelled, rel=1e-3)
        # LSE and D come by plain loads, which may hit in L1; on an H200 up to half of them do. They are 8 of
        # 2 d e + 8 bytes a row: half of that is 1.5 % at d 64.
        tolerance = 0.016 if line.kernel == "flash_dkdv" else 1e-3
        assert line.read_measured == pytest.approx(line.read_modelled, rel=tolerance)


@pytest.mark.parametrize("run", h200_runs("standard"))
def test_standard_on_an_h200_sums_to_what_its_record_says(run: Run) -> None:
    total = next(line for line in ledger("attention", run) if line.kernel == ALL_KERNELS)
    assert total.write_modelled == run.value("dram_write_modelled")
    read, modelled = total.read_modelled, run.value("dram_read_modelled")
    assert read is not None
    assert modelled is not None
    # The ledger has every pass; where a part of S stays in L2 (16 heads at N 1k), DRAM sees fewer.
    assert read == modelled if run.workload.scores_bytes > 2 * 60 * 2**20 else read > modelled
    assert (total.read_measured, total.write_measured) == (run.value("dram_read"), run.value("dram_write"))


def test_every_implementation_of_the_records_has_a_ledger() -> None:
    seen = set()
    for run in (run for path in RECORDS for run in load(path).runs if run.kernels):
        lines = ledger("attention", run)
        row = ATTENTION.implementation(run.impl)
        level = row.io.level if row and row.io else "L2"
        assert {line.level for line in lines} == {level}
        counted = [line for line in lines if line.tensor is None and line.kernel != ALL_KERNELS]
        assert [line.kernel for line in counted] == [kernel.name for kernel in run.kernels]
        seen.add(run.impl)
    assert {"standard", "flash", "sdpa-flash", "sdpa-cudnn"} <= seen


@pytest.mark.parametrize(
    ("name", "impl", "filled"),
    [
        ("fwd-d96-8k", "flash", []),
        ("fwd-d96-8k", "flash-triton", ["flash_forward"]),
        ("fwd-d192-8k", "flash-triton", ["flash_forward"]),
        ("bwd-d96-8k", "flash", ["flash_hopper_dkdv"]),
    ],
)
def test_kernels_on_an_h200_read_their_ledger_and_zeros(name: str, impl: str, filled: list[str]) -> None:
    record = load(HOPPER / f"{name}.json")
    (run,) = (run for run in record.runs if run.impl == impl)
    lines = ledger(record.op, run, record.device)
    zeros = [line for line in lines if line.tensor == ZEROS]
    assert [line.kernel for line in zeros] == filled
    assert sum(line.read_modelled or 0 for line in zeros) == zeros_counted(run)
    for line in lines:
        if line.tensor is None:
            assert line.read_measured == pytest.approx(line.read_modelled, rel=1e-3)
