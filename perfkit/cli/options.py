"""The options that several commands share, each declared once."""

from typing import Annotated

import typer

Op = Annotated[str, typer.Option(help="The op.")]
SeqK = Annotated[str | None, typer.Option(help="Keys a head.  \\[default: --seq]")]
Batch = Annotated[str, typer.Option(help="Batch size.")]
Heads = Annotated[str, typer.Option(help="Query heads.")]
KvHeads = Annotated[str | None, typer.Option(help="K/V heads; must divide --heads.  \\[default: --heads]")]
HeadDim = Annotated[str, typer.Option(help="Width of one head.")]
Dtype = Annotated[str, typer.Option(help="bf16, fp16 or fp32.")]
Causal = Annotated[bool, typer.Option("--causal/--no-causal", help="Causal mask, bottom-right aligned.")]
Pass = Annotated[str, typer.Option("--pass", help="fwd, bwd or fwd-bwd.")]
Pattern = Annotated[
    str | None, typer.Option(help="Block mask: random:25%, butterfly or local:2, and @BLOCK for its blocks.")
]
Dropout = Annotated[float, typer.Option(help="Share of P that is dropped.")]
Padding = Annotated[str, typer.Option(help="Sequences of a batch are up to so many keys shorter.")]
BlockM = Annotated[str | None, typer.Option(help="Rows of queries of a tile.  \\[default: a table]")]
BlockN = Annotated[str | None, typer.Option(help="Rows of keys of a tile.  \\[default: a table]")]
Device = Annotated[
    str | None,
    typer.Option(
        help="Profile name, .toml file, or cpu.  \\[default: the local GPU, else a100-80gb-sxm modelled]"
    ),
]
Warm = Annotated[bool, typer.Option("--warm", help="Do not flush L2 before each sample.")]
Graph = Annotated[bool, typer.Option("--graph", help="Time through a CUDA graph, for small kernels.")]
Energy = Annotated[bool, typer.Option(help="Measure energy per op.")]
TimeLimit = Annotated[float, typer.Option(min=0.1, help="Seconds of timing per implementation, at most.")]
Threshold = Annotated[str, typer.Option(help="Smallest difference in time that counts, such as 1% or 0.01.")]
Json = Annotated[str | None, typer.Option(help="Write the record; - is standard output.")]
Csv = Annotated[str | None, typer.Option(help="Write all numbers as CSV; - is standard output.")]
Md = Annotated[str | None, typer.Option(help="Write a summary as Markdown; - is standard output.")]
Html = Annotated[str | None, typer.Option(help="Write the report as one HTML file; - is standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


def tile(block_m: str | None, block_n: str | None) -> tuple[int | None, int | None]:
    """The sides of a tile that were asked for; UsageError for what is no number."""
    from perfkit.model.units import parse_count

    return (
        parse_count(block_m, "--block-m") if block_m else None,
        parse_count(block_n, "--block-n") if block_n else None,
    )
