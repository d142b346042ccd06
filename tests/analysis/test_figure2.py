"""Figure 2 from made-up records: its panels, the fitted line, and where time leaves bytes."""

from functools import cache
from typing import Any

import msgspec
import pytest

from perfkit.analysis import figure2 as fig
from perfkit.analysis.figure2 import BlockPoint, Figure2, SharePoint, figure2, fit_line, stalls
from perfkit.cli.figure2_cases import PANELS, cases
from perfkit.measure.fake_backend import FakeBackend
from perfkit.measure.session import run_cases
from perfkit.ops import find_op
from perfkit.ops.attention_gpt2 import gpt2_kernels
from perfkit.ops.attention_published import GPT2_PIPELINE
from perfkit.record import KernelCounts, Record

OP = find_op("attention")


@cache
def record(*panels: str) -> Record:
    backend = FakeBackend()
    asked = cases(OP, panels or PANELS, backend.profile)
    return run_cases(OP, [(one.workload, [one.row]) for one in asked], backend, lambda *_: None)


def found(*panels: str) -> Figure2:
    figure = figure2(record(*panels))
    assert figure is not None
    return figure


def with_kernels() -> Record:
    """The record with a kernel of n us for the nth launch of gpt2, and 1 and 2 MB a microsecond."""
    runs = list(record().runs)
    at = next(at for at, run in enumerate(runs) if run.impl == "gpt2")
    launches = sum(count for _, count in gpt2_kernels(GPT2_PIPELINE))
    counted = (
        {"duration_ns": 1e3 * n, "dram_read_bytes": 1e6 * n, "dram_write_bytes": 2e6 * n}
        for n in range(1, launches + 1)
    )
    kernels = tuple(KernelCounts(name=f"k{n}", values=values) for n, values in enumerate(counted, 1))
    runs[at] = msgspec.structs.replace(runs[at], kernels=kernels)
    return msgspec.structs.replace(record(), runs=tuple(runs))


# Panels


def test_the_left_panel_has_the_pipeline_beside_runs_without_dropout() -> None:
    left = found().left
    assert left is not None
    assert [(run.impl, run.workload.dropout, run.workload.padding) for run in left.runs] == [
        ("gpt2", 0.1, 20), ("standard", 0.0, 0), ("flash", 0.0, 0)
    ]  # fmt: skip
    assert [line.tag for line in left.printed] == ["flops", "dram_bytes", "time"]
    # 21 passes of 2.147483648 GB, 12 u of 0.134217728 GB, and a mask of 64 x 1024 x 2 B written and read
    assert left.runs[0].moved("DRAM") == 21 * 2147483648 + 12 * 134217728 + 2 * 131072


def test_steps_without_counted_kernels_are_those_of_the_ledger() -> None:
    left = found().left
    assert left is not None
    assert left.steps is not None
    assert (left.steps.steps, left.steps.reason) == (None, "no kernels were counted")
    steps = fig.pipeline(left)
    assert [step.name for step in steps][:3] == ["padding mask", "S = Q K^T", "S + mask"]
    assert steps[1].read_modelled == 2 * 134217728  # Q and K
    assert sum(step.read_modelled + step.write_modelled for step in steps) == left.runs[0].moved("DRAM")
    assert {(step.kernels, step.time_s, step.share, step.read_measured) for step in steps} == {
        ((), None, None, None)
    }


def test_steps_with_counted_kernels_are_theirs() -> None:
    figure = figure2(with_kernels())
    assert figure is not None
    assert figure.left is not None
    steps = fig.pipeline(figure.left)
    assert steps[0].kernels == ("k1", "k2")
    assert steps[0].time_s == pytest.approx(3e-6)  # 1 and 2 us
    assert steps[0].write_measured == pytest.approx(6e6)
    assert sum(step.share or 0 for step in steps) == pytest.approx(1)


def test_the_middle_panel_has_a_point_for_each_block_size() -> None:
    middle = found().middle
    assert [(p.impl, p.block, p.block_m, p.block_n) for p in middle] == [
        ("flash1", 64, 64, 64), ("flash1", 128, 64, 128), ("flash1", 256, 32, 256), ("flash1", 512, 16, 512),
        ("flash", 32, 32, 64), ("flash", 64, 64, 64), ("flash", 128, 128, 64), ("flash", 256, 256, 64),
    ]  # fmt: skip
    assert [p.paper for p in middle[:4]] == pytest.approx(
        [6.7108864e9, 3.489660928e9, 1.879048192e9, 1.073741824e9]
    )
    assert all(p.paper is None for p in middle[4:])
    # T_c = 16, V = 16 x 1024: a head reads 2 N d e + V (d e + 4 d + 8) and writes V (4 d + 8) + N (d e + 8)
    read, written = 2 * 1024 * 128 + 16384 * (128 + 256 + 8), 16384 * (256 + 8) + 1024 * (128 + 8)
    assert middle[0].l2_modelled == 1024 * (read + written)
    assert all(p.l2_measured == p.l2_modelled and p.dram_measured == p.dram_modelled for p in middle)
    assert all(p.l2_counted is None and p.reason is None for p in middle)


def test_the_right_panel_has_the_shares_that_the_patterns_make() -> None:
    figure = found()
    # Of 32 blocks a row sees round(32 s).
    assert [p.share for p in figure.right] == [n / 32 for n in (2, 3, 6, 8, 10, 13, 16, 19, 26, 32)]
    times = [p.time_s for p in figure.right]
    assert None not in times
    assert [p.relative for p in figure.right] == [time / times[-1] for time in times if time and times[-1]]
    assert figure.right[-1].relative == 1
    assert figure.dense_s == record().runs[-1].value("time")


@pytest.mark.parametrize("panel", PANELS)
def test_one_panel_alone(panel: str) -> None:
    figure = found(panel)
    assert [figure.left is not None, bool(figure.middle), bool(figure.right)] == [
        panel == name for name in PANELS
    ]


def test_a_record_of_something_else_has_no_figure() -> None:
    whole = record()
    assert figure2(msgspec.structs.replace(whole, runs=())) is None
    # standard and flash of the left panel, and one point of the middle one, are no panel
    rest = tuple(run for run in whole.runs if run.impl in ("standard", "flash"))
    assert figure2(msgspec.structs.replace(whole, runs=rest[:3])) is None


# The line


def share(at: float, time_s: float | None) -> SharePoint:
    return SharePoint(
        share=at, l2_modelled=None, l2_measured=None, time_s=time_s, relative=None, reason=None
    )  # fmt: skip


def test_points_on_a_line_give_it_back() -> None:
    line = fit_line([share(x, 2e-3 + 0.5e-3 * x) for x in (0.1, 0.4, 0.8, 1.0)])
    assert line is not None
    assert (line.intercept_s, line.slope_s) == pytest.approx((2e-3, 0.5e-3))
    assert line.deviation == pytest.approx(0, abs=1e-12)


def test_the_line_by_hand() -> None:
    """Shares 0, 1/2, 1 and times 1, 1, 4: means 1/2 and 2, slope 1.5 / 0.5 = 3, intercept 1/2.

    The line has 0.5, 2 and 3.5: off by 0.5 of 1, 1 of 1, 0.5 of 4. A point without a time does not count.
    """
    line = fit_line([share(0, 1), share(0.5, 1), share(0.7, None), share(1, 4)])
    assert line is not None
    assert (line.intercept_s, line.slope_s, line.deviation, line.at) == pytest.approx((0.5, 3, 1, 0.5))


def test_two_shares_make_no_line() -> None:
    assert fit_line([share(0.1, 1), share(0.5, 2), share(0.7, None)]) is None
    assert fit_line([share(0.5, 1), share(0.5, 2), share(0.5, 3)]) is None
    assert fit_line([]) is None


# Where time leaves bytes


def blocks(bytes_: list[float | None], times: list[float | None], **fields: Any) -> list[BlockPoint]:
    """Points of `flash1` with blocks 64, 128, ..."""
    rest: dict[str, Any] = {"l2_modelled": 1e9, "l2_counted": None, "dram_modelled": None}
    rest |= {"dram_measured": None, "reason": None, "paper": None, **fields}
    return [
        BlockPoint(
            impl="flash1", block=64 << at, block_m=64, block_n=64 << at, l2_measured=moved, time_s=time_s,
            **rest,
        )
        for at, (moved, time_s) in enumerate(zip(bytes_, times, strict=True))
    ]  # fmt: skip


def test_the_block_from_which_time_stays() -> None:
    (one,) = stalls(blocks([8, 4, 2, 1], [10, 6, 5.9, 5.85]))
    assert (one.impl, one.block, one.last) == ("flash1", 128, 512)
    assert (one.bytes_ratio, one.time_ratio) == (1 / 4, 5.85 / 6)  # 75 % fewer bytes, 2.5 % less time


def test_time_that_grows_has_left_the_bytes() -> None:
    (one,) = stalls(blocks([8, 4, 2], [10, 6, 9]))
    assert (one.block, one.time_ratio) == (128, 1.5)


@pytest.mark.parametrize(
    ("bytes_", "times"),
    [
        ([8, 4, 2], [10, 6, 3]),  # follows to the end
        ([8, 4, 2], [10, 9.9, 6]),  # a halt, and then it follows again
        ([8, 7.2, 6.48], [10, 10, 10]),  # bytes fall by 10 %, and that is not more
        ([8, 4, 2], [10, 6, 6 * 0.97]),  # time falls by 3 %, and that is not less
        ([8], [10]),
        ([8, 4], [10, None]),
    ],
)
def test_time_that_follows_bytes(bytes_: list[float | None], times: list[float | None]) -> None:
    assert stalls(blocks(bytes_, times)) == ()


def test_bytes_are_measured_where_all_are_and_else_modelled() -> None:
    # The measured bytes would fall; the modelled ones do not.
    assert stalls(blocks([8, None], [10, 10])) == ()
    assert [one.block for one in stalls(blocks([8, 4], [10, 10]))] == [64]


def test_the_fake_device_leaves_the_bytes_of_flash() -> None:
    """There time is the longest floor: of `flash` L2 bytes at 32 rows, and FLOPs from 64 on."""
    (one,) = stalls(found().middle)
    assert (one.impl, one.block, one.last, one.time_ratio) == ("flash", 64, 256, 1)
