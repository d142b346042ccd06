"""What a mark of a chart says when it is pointed at: all numbers of its run."""

from collections.abc import Iterator

from perfkit.analysis.placement import Point
from perfkit.analysis.study import Finding
from perfkit.model.units import Hint, show
from perfkit.record import BY_TAG, Number
from perfkit.reports.html.cells import MARKS
from perfkit.reports.html.embed import plain
from perfkit.reports.places import common


def run_text(finding: Finding, source: str, modelled: bool) -> str:
    """The numbers of one run, a line for each subject, in plotly's HTML with everything else escaped."""
    run = finding.placement.run
    head = [f"<b>{plain(run.impl)}</b>", plain(common([run.workload])), plain(source)]
    if modelled:
        head.append("<b>MODELLED</b>, not measured")
    lines = [plain(line) for line in (*_speed(finding), *_work(finding), *_conditions(finding))]
    return "<br>".join([*head, *lines])


def point_text(point: Point) -> str:
    """Which of its marks this is: level, intensity and bytes, and how good they are."""
    mark = MARKS[point.provenance]
    bound = "at most " if point.upper else ""
    level = "SM<->L2" if point.level == "L2" else "DRAM"
    return plain(
        f"at {level}: {bound}{show(point.intensity, 'intensity')}{mark}, {show(point.bytes, 'bytes')}{mark}"
    )


def _number(number: Number | None, hint: Hint) -> str:
    if number is None or number.value is None:
        return "-"
    return show(number.value, hint) + MARKS[number.provenance]


def _speed(finding: Finding) -> Iterator[str]:
    p, metrics = finding.placement, finding.metrics
    if p.time_s is None:
        yield f"least time {show(p.least_s, 'time')}*, {show(p.best, 'flop_rate')}* at best"
    else:
        low, high = p.run.value("time_low"), p.run.value("time_high")
        yield f"time {show(p.time_s, 'time')} ({show(low, 'time')} to {show(high, 'time')})"
        yield f"achieved {show(p.achieved, 'flop_rate')}; bound: {p.bound or '-'}"
        for name, share, roof in (("run clock", "efficiency_clock", "attainable_clock"),
                                  ("data sheet", "efficiency_datasheet", "attainable_datasheet"),
                                  ("exp, not hidden", "efficiency_exp", "exp_ceiling")):  # fmt: skip
            yield f"{_number(metrics[share], 'percent')} of {_number(metrics[roof], 'flop_rate')}, {name}"


def _work(finding: Finding) -> Iterator[str]:
    numbers = finding.placement.run.numbers
    for label, tag in (("DRAM read", "dram_read"), ("DRAM write", "dram_write"),
                       ("L2->SM", "l2_read"), ("SM->L2", "l2_write")):  # fmt: skip
        model, least = numbers.get(f"{tag}_modelled"), numbers.get(f"{tag}_compulsory")
        rest = f", at least {_number(least, 'bytes')}" if least else ""
        yield f"{label} {_number(numbers.get(tag), 'bytes')} (model {_number(model, 'bytes')}{rest})"
    flops = ("convention", "exact", "issued", "tensor", "vector")
    each = [f"{name} {_number(numbers.get(f'flops_{name}'), 'flop')}" for name in flops]
    yield f"FLOPs: {', '.join(each[:2])}"
    yield f"FLOPs: {', '.join(each[2:])}"
    exps = (_number(numbers.get(tag), "count") for tag in ("exps", "exps_measured"))
    yield "exps {}, with conversions {}".format(*exps)


def _conditions(finding: Finding) -> Iterator[str]:
    numbers = finding.placement.run.numbers

    def text(tag: str) -> str:
        return _number(numbers.get(tag), BY_TAG[tag].hint)

    yield f"clock {text('clock')}, {text('power')}, {text('temperature')}, {text('energy')} an op"
    yield f"back to back {text('sustained_time')} at {text('sustained_clock')}"
    yield f"peak memory {text('peak_memory')}, kernels {text('launches')}"
    yield f"error {text('error')}, eager path {text('eager_error')}"
