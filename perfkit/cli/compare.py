"""`perfkit compare A B`: implementations side by side, or two records."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def compare(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="Two or more implementations, or two records.", metavar="A B...", show_default=False
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="What the others are compared with.  \\[default: the first]")
    ] = None,
    op: o.Op = None,
    phase: o.Phase = None,
    seq: Annotated[
        str, typer.Option(help="Queries a head; several separated by commas, such as 1k,4k,16k.")
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
    device: o.Device = None,
    warm: o.Warm = False,
    graph: o.Graph = False,
    energy: o.Energy = True,
    time_limit: o.TimeLimit = 3.0,
    threshold: o.Threshold = "1%",
    json: o.Json = None,
    csv: o.Csv = None,
    md: o.Md = None,
    html: o.Html = None,
    force: o.Force = False,
) -> None:
    """Say which is better, by how much, and whether that is certain.

    Implementations are timed together, their samples interleaved: a clock that drifts meets all alike. Two
    records (paths ending in .json) are compared as they are: first the old one, then the new one.
    """
    from perfkit.analysis.study import exit_code, study
    from perfkit.cli.output import check_targets, emit, titled
    from perfkit.cli.progress import progress
    from perfkit.cli.selection import compared
    from perfkit.cli.workloads import op_of, workloads
    from perfkit.errors import UsageError
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_cases
    from perfkit.model.units import parse_percent
    from perfkit.ops.attention_tiles import with_tiles

    targets = {"json": json, "csv": csv, "md": md, "html": html}
    check_targets(targets, force)
    least = parse_percent(threshold, "--threshold")
    if any(name.endswith(".json") for name in names):
        if json:
            raise UsageError(
                "--json writes a record, and comparing records makes none", "use --csv, --md or --html"
            )
        raise typer.Exit(_records(names, baseline, least, targets))
    found = op_of(ctx.params)
    asked = workloads(found, ctx.params)
    compared(found, names, baseline, None)  # nonsense is refused before anything is opened
    options = Options(warm=warm, graph=graph, energy=energy, limit_s=time_limit)
    backend = choose_backend(device, dtype, options)
    rows, base = compared(found, names, baseline, backend.hardware)
    tile = o.tile(block_m, block_n)
    cases = [(w, [with_tiles(row, row.workload(w), backend.profile, *tile) for row in rows]) for w in asked]
    with progress(len(rows) * len(asked)) as stage:
        record = run_cases(found, cases, backend, stage, baseline=base)
    subject = study(record)
    emit(titled("compare", subject, threshold=least), targets)
    raise typer.Exit(exit_code(subject))


def _records(names: list[str], baseline: str | None, threshold: float, targets: dict[str, str | None]) -> int:
    """Compare two saved records; the exit code of the newer one."""
    from perfkit.analysis.report import Report, Titled
    from perfkit.analysis.study import exit_code, study
    from perfkit.cli.output import emit, names_of
    from perfkit.errors import UsageError
    from perfkit.record import load

    if len(names) != 2 or baseline is not None:
        raise UsageError(
            "two records are compared, the old one and the new one", "perfkit compare old.json new.json"
        )
    titles = zip(names_of(names), names, strict=True)
    old, new = (Titled(name=title, study=study(load(path))) for title, path in titles)
    emit(Report(parts=(new,), baseline=old, threshold=threshold), targets)
    return exit_code(new.study)
