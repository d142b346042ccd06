"""`perfkit io`: the bytes that the mathematics says, counted in the kernels, measured, and the law."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def io(
    op: o.Op = "attention",
    seq: Annotated[
        str, typer.Option(help="Queries a head; several separated by commas, such as 2k,16k,256k.")
    ] = "4k",
    seq_k: o.SeqK = None,
    batch: o.Batch = "1",
    heads: o.Heads = "1",
    kv_heads: o.KvHeads = None,
    head_dim: o.HeadDim = "64",
    dtype: o.Dtype = "bf16",
    causal: o.Causal = False,
    pass_: o.Pass = "fwd",
    pattern: o.Pattern = None,
    dropout: o.Dropout = 0.0,
    padding: o.Padding = "0",
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
    from perfkit.cli.selection import attention_workloads, modelled_rows
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_cases
    from perfkit.ops import find_op
    from perfkit.reports.io import render

    targets = {"json": json, "csv": csv, "md": md, "html": html}
    check_targets(targets, force)
    found = find_op(op)
    workloads = attention_workloads(
        seqs=seq.split(","), seq_k=seq_k, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        dtype=dtype, causal=causal, pass_=pass_, pattern=pattern, dropout=dropout, padding=padding,
    )  # fmt: skip
    rows = modelled_rows(found, impl, workloads)
    backend = choose_backend(device, dtype, Options(energy=False, limit_s=time_limit))
    asked = cases(rows, workloads, backend.profile, o.tile(block_m, block_n), sweep, count)
    with progress(len(asked)) as stage:
        record = run_cases(found, [(case.workload, [case.row]) for case in asked], backend, stage)
    record = marked(record, asked)
    if count:
        record = counted(record, asked)
    subject = study(record)
    write_files(titled("io", subject), targets)
    if "-" not in targets.values():
        print_plain(render(subject, terminal_width()))
    raise typer.Exit(exit_code(subject) or int(not explained(record)))
