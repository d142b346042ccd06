"""The options that several commands share, each declared once."""

from typing import Annotated

import typer

Op = Annotated[str | None, typer.Option(help="The op.  \\[default: attention]")]
Phase = Annotated[
    str | None,
    typer.Option(help="prefill (causal attention) or decode (decode-attention), in place of --op."),
]
Like = Annotated[str | None, typer.Option(help="Heads, head dim and window of a model; see perfkit models.")]
SeqK = Annotated[str | None, typer.Option(help="Keys a head.  \\[default: --seq]")]
Tokens = Annotated[
    str | None, typer.Option(help="Queries a head, the last of --seq keys.  \\[default: 1 when decoding]")
]
Batch = Annotated[str, typer.Option(help="Batch size; several separated by commas.")]
Heads = Annotated[str | None, typer.Option(help="Query heads.  \\[default: 16, or --like]")]
KvHeads = Annotated[
    str | None, typer.Option(help="K/V heads; must divide --heads.  \\[default: --heads, or --like]")
]
HeadDim = Annotated[str | None, typer.Option(help="Width of one head.  \\[default: 64, or --like]")]
Dtype = Annotated[str, typer.Option(help="bf16, fp16 or fp32.")]
Causal = Annotated[
    bool | None, typer.Option("--causal/--no-causal", help="Causal mask, bottom-right aligned.")
]
Window = Annotated[str | None, typer.Option(help="Sliding window: each query sees so many keys.")]
Dilation = Annotated[str | None, typer.Option(help="Of the window only every D-th key, D given.")]
Page = Annotated[str | None, typer.Option(help="Tokens a page of the K/V cache, from 1 to 256.")]
Prefix = Annotated[str | None, typer.Option(help="First tokens that all sequences share, in whole pages.")]
CacheDtype = Annotated[
    str | None, typer.Option(help="fp8: a K/V cache in e4m3 with scales.  \\[default: --dtype]")
]
Append = Annotated[bool, typer.Option("--append", help="Write the new keys and values to the cache first.")]
Pass = Annotated[str, typer.Option("--pass", help="fwd, bwd or fwd-bwd.")]
Pattern = Annotated[
    str | None,
    typer.Option(
        help="Mask: window:4k, longformer:256+64, bigbird:1+2+3, random:25% ...; several by commas."
    ),
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
