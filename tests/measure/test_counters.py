"""What counters say about one callable, with a machine whose L2 is simulated."""

from collections.abc import Callable, Sequence

import pytest

from perfkit.measure import counters, ncu
from perfkit.measure.counter_errors import CuptiFailure, InsufficientPrivileges
from perfkit.measure.counters import check, collect, settle, total
from perfkit.record import BY_TAG, KernelCounts

Work = Callable[[], object]
SWEEP = 240_000.0
BOOKKEEPING = 64.0


class FakeGpu:
    """A device with a write-back cache: writes reach DRAM when a sweep drives them out."""

    method = "cupti"

    def __init__(self, launches: Sequence[str] = ("first", "second"), dirty: float = 5000.0) -> None:
        self.launches = launches
        self.dirty = dirty
        self.read = self.written = 0.0
        self.kernels: list[dict[str, float]] = []

    def chip(self) -> str:
        return "GH100"

    def names(self, work: Work) -> list[str]:
        work()
        return list(self.launches)

    def launch(self, read: float, write: float) -> None:
        """A kernel: reads from DRAM, leaves what it writes dirty in L2."""
        self.read += read
        self.dirty += write
        self.kernels.append({"read": read, "l2_write": write})

    def sweeps(self) -> tuple[Work, Work]:
        def sweep() -> None:
            self.read += SWEEP
            self.written += self.dirty + BOOKKEEPING  # a sweep's own few bytes of result
            self.dirty = 0.0

        return sweep, sweep

    def count(
        self, metrics: Sequence[str], work: Work, *, per_kernel: bool, prepare: Work, max_ranges: int
    ) -> tuple[list[dict[str, float]], int]:
        assert max_ranges >= 1
        prepare()
        self.read = self.written = 0.0
        self.kernels = []
        work()
        if not per_kernel:
            return [self._values(metrics, self.read, self.written, 0.0)], 1
        return [self._values(metrics, k["read"], 0.0, k["l2_write"]) for k in self.kernels], 1

    def _values(
        self, metrics: Sequence[str], read: float, written: float, l2_write: float
    ) -> dict[str, float]:
        known = {
            "dram__bytes_read.sum": read,
            "dram__bytes_write.sum": written,
            "lts__t_sectors_srcunit_tex_op_write.sum": l2_write / 32,
        }
        return {metric: known.get(metric, 1.0) for metric in metrics}


def two_kernels(gpu: FakeGpu) -> Work:
    def work() -> None:
        gpu.launch(1000.0, 320.0)
        gpu.launch(200.0, 3200.0)

    return work


def test_settled_traffic_is_the_works_own() -> None:
    gpu = FakeGpu(dirty=5000.0)  # foreign dirty lines wait in L2
    reading = collect(two_kernels(gpu), dtype="bf16", backend=gpu)
    assert reading.settled
    assert reading.totals["dram_read_bytes"] == 1200.0  # 1000 + 200; the sweep's 240,000 are subtracted
    assert reading.totals["dram_write_bytes"] == 3520.0  # 320 + 3200, all of it dirty when the work ended
    assert reading.raw_dram == {"dram_read_bytes": 1200.0, "dram_write_bytes": 0.0}
    assert reading.totals["l2_write_bytes"] == 3520.0  # (10 + 100) sectors x 32 B


def test_kernels_are_raw_and_in_order() -> None:
    gpu = FakeGpu(launches=("_ZN5flash3fwdILi1EEEvi", "second"))
    reading = collect(two_kernels(gpu), dtype="bf16", backend=gpu)
    assert [kernel.name for kernel in reading.kernels] == ["flash::fwd", "second"]
    assert [kernel.values["dram_read_bytes"] for kernel in reading.kernels] == [1000.0, 200.0]
    assert [kernel.values["dram_write_bytes"] for kernel in reading.kernels] == [0.0, 0.0]
    # Every other metric reads 1: FADD 1 + FMUL 1 + 2 FFMA; hgmma 1 + hmma 1; one warp instruction x 32.
    assert reading.kernels[0].values["vector_flop"] == 4.0
    assert reading.kernels[0].values["tensor_flop"] == 2.0
    assert reading.totals["xu_inst"] == 64.0
    assert reading.passes == 5  # core, flops, l1, the sweep alone, work and sweep


def test_unsettled_traffic_is_the_sum_over_kernels() -> None:
    gpu = FakeGpu()
    reading = collect(two_kernels(gpu), dtype="bf16", settled=False, groups=("core",), backend=gpu)
    assert not reading.settled
    assert reading.totals["dram_write_bytes"] == 0.0
    assert "vector_flop" not in reading.totals
    assert reading.passes == 1


def test_prepare_runs_before_every_run_and_is_not_counted() -> None:
    gpu = FakeGpu()
    runs: list[str] = []

    def prepare() -> None:
        runs.append("prepare")
        gpu.launch(7.0, 7.0)

    def work() -> None:
        runs.append("work")
        gpu.launch(1000.0, 320.0)

    reading = collect(work, dtype="bf16", prepare=prepare, backend=gpu)
    assert runs == ["prepare", "work"] * 5  # names, core, flops, l1, settled
    assert reading.totals["dram_write_bytes"] == 320.0  # prepare's dirty lines were swept before


def test_kernels_are_numbered_where_the_names_do_not_match() -> None:
    gpu = FakeGpu(launches=("only one",))
    reading = collect(two_kernels(gpu), dtype="bf16", backend=gpu)
    assert [kernel.name for kernel in reading.kernels] == ["kernel 0", "kernel 1"]
    assert reading.notes == ("2 kernels counted, 1 launches seen: kernels are numbered",)


def test_the_correction_never_goes_below_zero() -> None:
    alone = {"dram_read_bytes": 240.0, "dram_write_bytes": 8.0}
    together = {"dram_read_bytes": 1240.0, "dram_write_bytes": 6.0}
    assert settle(together, alone) == {"dram_read_bytes": 1000.0, "dram_write_bytes": 0.0}
    assert settle({}, {}) == {}


def test_a_total_covers_what_every_kernel_has() -> None:
    kernels = [
        KernelCounts(name="a", values={"x": 1.0, "y": 2.0}),
        KernelCounts(name="b", values={"x": 10.0}),
    ]
    assert total(kernels) == {"x": 11.0}
    assert total([]) == {}


def test_the_check_tells_which_number_is_wrong() -> None:
    expected = {"dram_read_bytes": 1000.0, "dram_write_bytes": 1000.0}
    assert check(expected, {"dram_read_bytes": 1009.0, "dram_write_bytes": 991.0}, 0.01).ok
    found = check(expected, {"dram_read_bytes": 1000.0, "dram_write_bytes": 900.0}, 0.01)
    assert not found.ok
    assert "dram_write_bytes 900 for 1000 (-10.0%)" in found.reason
    assert "dram_read_bytes" not in found.reason
    with pytest.raises(counters.CountersUnavailable, match="self-check"):
        found.require()


def test_a_check_that_saw_nothing_is_not_ok() -> None:
    assert not check({"dram_read_bytes": 1000.0}, {}, 0.01).ok


class Refusing(FakeGpu):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def chip(self) -> str:
        raise self.error


def test_ncu_steps_in_where_cupti_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = KernelCounts(name="k", values={"dram_read_bytes": 5.0, "dram_write_bytes": 6.0})
    monkeypatch.setattr(ncu, "collect", lambda _command, _metrics: [kernel])
    reading = collect(
        lambda: None,
        dtype="bf16",
        chip_hint="GH100",
        command=["python", "work.py"],
        backend=Refusing(CuptiFailure("cuptiX answered CUPTI_ERROR_UNKNOWN (999)")),
    )
    assert (reading.method, reading.settled) == ("ncu", False)
    assert reading.totals == reading.raw_dram == {"dram_read_bytes": 5.0, "dram_write_bytes": 6.0}
    assert "CUPTI_ERROR_UNKNOWN" in reading.notes[0]


def test_ncu_is_no_way_round_a_missing_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncu, "collect", lambda *_: pytest.fail("ncu was called"))
    with pytest.raises(InsufficientPrivileges) as caught:
        collect(
            lambda: None,
            dtype="bf16",
            command=["python"],
            backend=Refusing(InsufficientPrivileges("refused")),
        )
    assert "NVreg_RestrictProfilingToAdminUsers=0" in caught.value.fix


def test_without_a_command_the_failure_is_told() -> None:
    with pytest.raises(CuptiFailure):
        collect(lambda: None, dtype="bf16", backend=Refusing(CuptiFailure("broken")))


def test_record_tags_exist() -> None:
    assert set(counters.RECORD_TAGS) <= set(BY_TAG)
