"""`perfkit reproduce FIGURE`: a published figure beside the model, the counts and this device."""

from typing import Annotated, Final

import typer

from perfkit.cli import options as o

FIGURES: Final = ("fa1-fig2",)


def reproduce(
    figure: Annotated[str, typer.Argument(help=f"What to reproduce: {', '.join(FIGURES)}.")],
    panel: Annotated[
        str, typer.Option(help="Panels, separated by commas: left, middle, right.")
    ] = "left,middle,right",
    device: o.Device = None,
    count: Annotated[
        bool | None,
        typer.Option(
            help="Count loads and stores of one head by executing the kernels on the CPU.  "
            "\\[default: where nothing is measured]",
            show_default=False,
        ),
    ] = None,
    time_limit: o.TimeLimit = 1.0,
    json: o.Json = None,
    csv: o.Csv = None,
    md: o.Md = None,
    html: o.Html = None,
    force: o.Force = False,
) -> None:
    """Run the workloads of a published figure and set them beside what was published.

    fa1-fig2 is Figure 2 of FlashAttention: GPT-2 medium's attention as a table, traffic and time against the
    block size, and the time of block-sparse attention against the share of blocks.
    """
    from perfkit.analysis.figure2 import figure2
    from perfkit.analysis.held import explained
    from perfkit.analysis.study import exit_code, study
    from perfkit.cli.figure2_cases import cases
    from perfkit.cli.io_cases import counted, marked
    from perfkit.cli.output import check_targets, emit, print_plain, terminal_width, titled, write_files
    from perfkit.cli.progress import progress
    from perfkit.errors import UsageError
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_cases
    from perfkit.ops import find_op
    from perfkit.reports.figure2 import render

    if figure not in FIGURES:
        raise UsageError(f"unknown figure '{figure}'", f"allowed: {', '.join(FIGURES)}")
    targets = {"json": json, "csv": csv, "md": md, "html": html}
    check_targets(targets, force)
    op = find_op("attention")
    backend = choose_backend(device, "fp16", Options(energy=False, limit_s=time_limit))
    asked = cases(op, [name.strip() for name in panel.split(",")], backend.profile)
    with progress(len(asked)) as stage:
        record = run_cases(op, [(case.workload, [case.row]) for case in asked], backend, stage)
    record = marked(record, asked)
    if count if count is not None else backend.hardware is None:
        record = counted(record, asked)
    subject, found = study(record), figure2(record)
    write_files(titled(figure, subject), targets)
    if found is None:
        emit(titled(figure, subject), {})  # nothing of it ran: the report says why
    elif "-" not in targets.values():
        print_plain(render(subject, found, terminal_width()))
    raise typer.Exit(exit_code(subject) or int(not explained(record, complete=bool(count))))
