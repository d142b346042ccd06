"""`perfkit roofline`: run an op's implementations and place them on the device's roofline."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def roofline(
    op: o.Op = "attention",
    seq: Annotated[str, typer.Option(help="Queries a head, such as 4096, 16k or 1m (k is 1024).")] = "16k",
    seq_k: o.SeqK = None,
    batch: o.Batch = "1",
    heads: o.Heads = "16",
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
    from perfkit.cli.selection import attention_workloads, select
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_session
    from perfkit.ops import find_op
    from perfkit.ops.attention_tiles import with_tiles

    targets = {"json": json, "csv": csv, "md": md, "html": html}
    check_targets(targets, force)
    found = find_op(op)
    (workload,) = attention_workloads(
        seqs=[seq], seq_k=seq_k, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        dtype=dtype, causal=causal, pass_=pass_, pattern=pattern, dropout=dropout, padding=padding,
    )  # fmt: skip
    select(found, impl, None)  # nonsense is refused before anything is opened
    options = Options(warm=warm, graph=graph, energy=energy, limit_s=time_limit)
    backend = choose_backend(device, dtype, options)
    rows = select(found, impl, backend.hardware, workload.features)
    tile = o.tile(block_m, block_n)
    rows = [with_tiles(row, workload, backend.profile, *tile) for row in rows]
    with progress(len(rows)) as stage:
        record = run_session(found, [workload], rows, backend, stage)
    subject = study(record)
    emit(titled("roofline", subject), targets)
    raise typer.Exit(exit_code(subject))
