"""`perfkit io`: the bytes that the mathematics says, counted in the kernels, measured, and the law."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def io(
    ctx: typer.Context,
    op: o.Op = None,
    phase: o.Phase = None,
    seq: Annotated[
        str, typer.Option(help="Queries a head; several separated by commas, such as 2k,16k,256k.")
    ] = "4k",
    seq_k: o.SeqK = None,
    tokens: o.Tokens = None,
    batch: o.Batch = "1",
    heads: o.Heads = None,
    kv_heads: o.KvHeads = None,
    head_dim: o.HeadDim = None,
    like: o.Like = None,
    dtype: o.Dtype = "bf16",
    causal: o.Causal = None,
    pass_: o.Pass = "fwd",
    pattern: o.Pattern = None,
    window: o.Window = None,
    dilation: o.Dilation = None,
    dropout: o.Dropout = 0.0,
    padding: o.Padding = "0",
    page: o.Page = None,
    prefix: o.Prefix = None,
    cache_dtype: o.CacheDtype = None,
    append: o.Append = False,
    block_m: o.BlockM = None,
    block_n: o.BlockN = None,
    impl: Annotated[
        str, typer.Option(help="Implementations with an IO model, separated by commas.")
    ] = "standard,flash1,flash",
    device: o.Device = None,
    count: Annotated[
        bool, typer.Option("--count", help="Count every load and store by executing the kernels on the CPU.")
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Vary N, d and on-chip memory M; fit the law's exponents."),
    ] = False,
    time_limit: o.TimeLimit = 1.0,
    json: o.Json = None,
    csv: o.Csv = None,
    md: o.Md = None,
    html: o.Html = None,
    force: o.Force = False,
) -> None:
    """Show what each tensor of a workload costs in bytes, and the law behind it.

    On a GPU the kernels run, and counters are held against the formulas. --count needs none: it executes the
    shipped kernels on the CPU and holds every load and store against the formulas.
    """
    from perfkit.analysis.held import explained
    from perfkit.analysis.study import exit_code, study
    from perfkit.cli.io_cases import cases, counted, marked
    from perfkit.cli.output import check_targets, print_plain, terminal_width, titled, write_files
    from perfkit.cli.progress import progress
    from perfkit.cli.selection import modelled_rows
    from perfkit.cli.workloads import op_of, workloads
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_cases
    from perfkit.reports.io import render

    targets = {"json": json, "csv": csv, "md": md, "html": html}
    check_targets(targets, force)
    found = op_of(ctx.params)
    asked = workloads(found, ctx.params, heads=1)
    rows = modelled_rows(found, impl, asked)
    backend = choose_backend(device, dtype, Options(energy=False, limit_s=time_limit))
    all_cases = cases(rows, asked, backend.profile, o.tile(block_m, block_n), sweep, count)
    with progress(len(all_cases)) as stage:
        record = run_cases(found, [(case.workload, [case.row]) for case in all_cases], backend, stage)
    record = marked(record, all_cases)
    if count:
        record = counted(record, all_cases)
    subject = study(record)
    write_files(titled("io", subject), targets)
    if "-" not in targets.values():
        print_plain(render(subject, terminal_width()))
    raise typer.Exit(exit_code(subject) or int(not explained(record)))
