"""`perfkit roofline`: run an op's implementations and place them on the device's roofline."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def roofline(
    ctx: typer.Context,
    op: o.Op = None,
    phase: o.Phase = None,
    seq: Annotated[
        str, typer.Option(help="Queries a head, such as 4096 or 16k; several separated by commas.")
    ] = "16k",
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
    impl: Annotated[str, typer.Option(help="Implementations, separated by commas, or all.")] = "all",
    device: o.Device = None,
    warm: o.Warm = False,
    graph: o.Graph = False,
    energy: o.Energy = True,
    time_limit: o.TimeLimit = 3.0,
    json: o.Json = None,
    csv: o.Csv = None,
    md: o.Md = None,
    html: o.Html = None,
    force: o.Force = False,
) -> None:
    """Measure implementations of an op and place them on the device's roofline."""
    from perfkit.analysis.study import exit_code, study
    from perfkit.cli.output import check_targets, emit, titled
    from perfkit.cli.progress import progress
    from perfkit.cli.selection import select
    from perfkit.cli.workloads import op_of, workloads
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_cases
    from perfkit.ops.attention_tiles import with_tiles

    targets = {"json": json, "csv": csv, "md": md, "html": html}
    check_targets(targets, force)
    found = op_of(ctx.params)
    asked = workloads(found, ctx.params)
    select(found, impl, None)  # nonsense is refused before anything is opened
    options = Options(warm=warm, graph=graph, energy=energy, limit_s=time_limit)
    backend = choose_backend(device, dtype, options)
    tile = o.tile(block_m, block_n)
    cases = []
    for w in asked:
        rows = select(found, impl, backend.hardware, w.features)
        cases.append((w, [with_tiles(row, row.workload(w), backend.profile, *tile) for row in rows]))
    with progress(sum(len(rows) for _, rows in cases)) as stage:
        record = run_cases(found, cases, backend, stage)
    subject = study(record)
    emit(titled("roofline", subject), targets)
    raise typer.Exit(exit_code(subject))
