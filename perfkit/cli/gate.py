"""`perfkit gate BASELINE CURRENT`: is a record as good as an earlier one."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from perfkit.cli import options as o

if TYPE_CHECKING:
    from perfkit.analysis.gate.judge import GateResult


def gate(
    baseline: Annotated[str, typer.Argument(help="The record to hold against.", metavar="BASELINE.json")],
    current: Annotated[str, typer.Argument(help="The record to judge.", metavar="CURRENT.json")],
    time: Annotated[
        str | None, typer.Option(help="How much longer it may take, for certain.  \\[default: 5%]")
    ] = None,
    traffic: Annotated[
        str | None,
        typer.Option(help="How many more bytes and FLOPs that repeat exactly.  \\[default: 0.5%]"),
    ] = None,
    dram: Annotated[
        str | None,
        typer.Option(help="How many more DRAM bytes where re-reads vary.  \\[default: 5%]"),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="How much more peak memory.  \\[default: 1%]")] = None,
    config: Annotated[
        str | None, typer.Option(help="A TOML file with these limits; options go before it.")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict/--no-strict", help="Warnings fail.", show_default=False)
    ] = None,
    md: o.Md = None,
    junit: Annotated[
        str | None, typer.Option(help="Write every check as JUnit XML; - is standard output.")
    ] = None,
    force: o.Force = False,
) -> None:
    """Fail if a record is worse than an earlier one: for CI.

    Hard on what repeats exactly (bytes, FLOPs, kernels, memory, correctness, IO check), soft on time. Exits
    with 0 if all is well, 1 if a check failed, 4 if a measurement cannot be true.
    """
    import msgspec

    from perfkit.analysis.gate.judge import gate as held
    from perfkit.analysis.gate.limits import Limits, load_limits
    from perfkit.analysis.study import study
    from perfkit.cli.output import check_targets
    from perfkit.model.units import parse_percent
    from perfkit.record import load

    targets = {"md": md, "junit": junit}
    check_targets(targets, force)
    given = {"time": time, "traffic": traffic, "dram": dram, "memory": memory}
    shares = {name: parse_percent(text, f"--{name}") for name, text in given.items() if text is not None}
    limits = load_limits(config) if config else Limits()
    limits = msgspec.structs.replace(limits, **shares)
    if strict is not None:
        limits = msgspec.structs.replace(limits, strict=strict)
    result = held(study(load(baseline)), study(load(current)), limits)
    _emit(result, targets)
    raise typer.Exit(result.exit_code)


def _emit(result: "GateResult", targets: dict[str, str | None]) -> None:
    """Write the files, and the terminal report unless standard output is taken."""
    from perfkit.reports.files import write
    from perfkit.reports.gate.junit import as_junit
    from perfkit.reports.gate.markdown import as_markdown

    for name, make in (("md", as_markdown), ("junit", as_junit)):
        path = targets[name]
        if path:
            write(make(result), path)
            if path != "-":
                print(f"wrote {path}", file=sys.stderr)
    if "-" not in targets.values():
        from perfkit.cli.output import print_plain, terminal_width
        from perfkit.reports.gate.terminal import render

        print_plain(render(result, terminal_width()))
