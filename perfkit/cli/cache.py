"""`perfkit cache`: how much of a K/V cache holds no token, contiguous and paged, from a trace of requests."""

from typing import Annotated

import typer

from perfkit.cli import options as o


def cache(
    trace: Annotated[
        str | None, typer.Option(help="CSV file of requests.  \\[default: a synthetic trace]")
    ] = None,
    step_time: Annotated[
        float | None,
        typer.Option(help="Length of a decode step, in the unit of the trace's arrivals.  \\[default: 1]"),
    ] = None,
    requests: Annotated[
        str | None, typer.Option(help="Requests of the synthetic trace.  \\[default: 1000]")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Its requests in a decode step, at most 1.  \\[default: 0.5]")
    ] = None,
    prefix_tokens: Annotated[
        str | None, typer.Option(help="Tokens that all its prompts begin with.  \\[default: none]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another synthetic trace.  \\[default: 0]")] = None,
    page: Annotated[
        str, typer.Option(help="Tokens of a page, several separated by commas; 1 to 256.")
    ] = "1,16,64,256",
    max_len: Annotated[str, typer.Option(help="Most tokens of a request, prompt and generated.")] = "4k",
    memory: Annotated[str, typer.Option(help="Bytes of the cache, such as 40g (g is 2^30).")] = "8g",
    layers: Annotated[str, typer.Option(help="Layers of the model.")] = "32",
    kv_heads: Annotated[str, typer.Option(help="K/V heads of a layer.")] = "8",
    head_dim: Annotated[str, typer.Option(help="Width of one head.")] = "128",
    dtype: Annotated[str, typer.Option(help="Of the cache: bf16, fp16, fp32 or fp8.")] = "bf16",
    json: Annotated[
        str | None, typer.Option(help="Write numbers and timelines as JSON; - is standard output.")
    ] = None,
    csv: o.Csv = None,
    html: o.Html = None,
    force: o.Force = False,
) -> None:
    """Simulate how much K/V-cache memory a contiguous cache wastes, and a paged one.

    Requests from a trace arrive, grow token by token and leave. Nothing is measured, and no model is run.
    """
    from perfkit.analysis.cache_outcome import Shape, cache_study
    from perfkit.analysis.cache_waste import policies
    from perfkit.cli.cache_requests import requests_of
    from perfkit.cli.output import check_targets, print_plain, terminal_width
    from perfkit.model.units import parse_count
    from perfkit.reports.cache import render
    from perfkit.reports.cache_files import write_files

    targets = {"json": json, "csv": csv, "html": html}
    check_targets(targets, force)
    longest = parse_count(max_len, "--max-len")
    asked = policies([parse_count(size, "--page") for size in page.split(",")])
    shape = Shape(
        layers=parse_count(layers, "--layers"),
        kv_heads=parse_count(kv_heads, "--kv-heads"),
        head_dim=parse_count(head_dim, "--head-dim"),
        dtype=dtype,
    )
    size = parse_count(memory, "--memory")
    found, source = requests_of(
        trace=trace, step_time=step_time, requests=requests, rate=rate, prefix_tokens=prefix_tokens,
        seed=seed, max_len=longest,
    )  # fmt: skip
    study = cache_study(found, asked, source=source, shape=shape, memory_bytes=size, max_len=longest)
    write_files(study, targets)
    if "-" not in targets.values():
        print_plain(render(study, terminal_width()))
