"""`perfkit roofline`: run an op's implementations and place them on the device's roofline."""

from typing import Annotated

import typer


def roofline(
    op: Annotated[str, typer.Option(help="The op.")] = "attention",
    seq: Annotated[str, typer.Option(help="Queries a head, such as 4096, 16k or 1m (k is 1024).")] = "16k",
    seq_k: Annotated[str | None, typer.Option(help="Keys a head.  \\[default: --seq]")] = None,
    batch: Annotated[str, typer.Option(help="Batch size.")] = "1",
    heads: Annotated[str, typer.Option(help="Query heads.")] = "16",
    kv_heads: Annotated[
        str | None, typer.Option(help="K/V heads; must divide --heads.  \\[default: --heads]")
    ] = None,
    head_dim: Annotated[str, typer.Option(help="Width of one head.")] = "64",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    causal: Annotated[
        bool, typer.Option("--causal/--no-causal", help="Causal mask, bottom-right aligned.")
    ] = False,
    pass_: Annotated[str, typer.Option("--pass", help="fwd, bwd or fwd-bwd.")] = "fwd",
    impl: Annotated[str, typer.Option(help="Implementations, separated by commas, or all.")] = "all",
    device: Annotated[
        str | None,
        typer.Option(
            help="Profile name, .toml file, or cpu.  \\[default: the local GPU, else a100-80gb-sxm modelled]"
        ),
    ] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Do not flush L2 before each sample.")] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Time through a CUDA graph, for small kernels.")
    ] = False,
    energy: Annotated[bool, typer.Option(help="Measure energy per op.")] = True,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Seconds of timing per implementation, at most.")
    ] = 3.0,
    json: Annotated[str | None, typer.Option(help="Write the record; - is standard output.")] = None,
    csv: Annotated[str | None, typer.Option(help="Write all numbers as CSV; - is standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Measure implementations of an op and place them on the device's roofline."""
    from perfkit.analysis.study import exit_code, study
    from perfkit.cli.output import check_targets, emit
    from perfkit.cli.progress import progress
    from perfkit.cli.selection import attention_workload, select
    from perfkit.measure.choose import choose_backend
    from perfkit.measure.options import Options
    from perfkit.measure.session import run_session
    from perfkit.ops import find_op

    targets = {"json": json, "csv": csv}
    check_targets(targets, force)
    found = find_op(op)
    workload = attention_workload(
        seq=seq, seq_k=seq_k, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        dtype=dtype, causal=causal, pass_=pass_,
    )  # fmt: skip
    select(found, impl, None)  # nonsense is refused before anything is opened
    options = Options(warm=warm, graph=graph, energy=energy, limit_s=time_limit)
    backend = choose_backend(device, dtype, options)
    rows = select(found, impl, backend.hardware)
    with progress(len(rows)) as stage:
        record = run_session(found, workload, rows, backend, stage)
    subject = study(record)
    emit(subject, targets)
    raise typer.Exit(exit_code(subject))
