"""`perfkit io`: the bytes that the mathematics says, by tensor, counted in the kernels, and the law."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from perfkit.cli import options as o

if TYPE_CHECKING:
    from perfkit.analysis.io_model import Held, Subject


def io(
    op: o.Op = "attention",
    seq: Annotated[str, typer.Option(help="Queries a head, such as 4096, 16k or 1m (k is 1024).")] = "4k",
    seq_k: o.SeqK = None,
    batch: o.Batch = "1",
    heads: o.Heads = "1",
    kv_heads: o.KvHeads = None,
    head_dim: o.HeadDim = "64",
    dtype: o.Dtype = "bf16",
    causal: o.Causal = False,
    pass_: o.Pass = "fwd",
    impl: Annotated[
        str, typer.Option(help="Implementations with an IO model, separated by commas.")
    ] = "standard,flash1,flash",
    device: Annotated[str, typer.Option(help="Profile whose tiles are taken.")] = "h200-141gb-sxm",
    count: Annotated[
        bool, typer.Option("--count", help="Count every load and store by executing the kernels on the CPU.")
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Vary N, d and on-chip memory M; fit the law's exponents."),
    ] = False,
) -> None:
    """Show what each tensor of a workload costs in bytes, and the law behind it.

    Needs no GPU. --count executes the shipped kernels and holds every load and store against the formulas.
    """
    from perfkit.analysis.io_model import subjects
    from perfkit.cli.output import print_plain
    from perfkit.cli.selection import attention_workloads, select
    from perfkit.model.catalogue import load
    from perfkit.ops import find_op
    from perfkit.ops.plan import capability_of
    from perfkit.reports.io import render

    found = find_op(op)
    (w,) = attention_workloads(
        seqs=[seq], seq_k=seq_k, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        dtype=dtype, causal=causal, pass_=pass_,
    )  # fmt: skip
    profile = load(device)
    asked = subjects(select(found, impl, None), w, profile)
    counts = _counted(asked, capability_of(profile)) if count else {}
    print_plain(render(found.name, w, asked, counts, sweep))
    if not all(one.explained for one in counts.values()):
        raise typer.Exit(1)


def _counted(asked: Sequence["Subject"], capability: tuple[int, int]) -> dict[str, "Held"]:
    """Every implementation executed once on the CPU, held against its ledger."""
    from perfkit.analysis.io_model import Deviation, Held
    from perfkit.cli.progress import progress
    from perfkit.measure.counting.count import count_all, differences
    from perfkit.measure.counting.types import request

    found = {}
    with progress(len(asked)) as stage:
        for one in asked:
            stage(one.row.name, "executing its kernels")
            (count,) = count_all([request(one.row, one.workload, None, capability)])
            deviations = tuple(
                Deviation(kernel=d.kernel, tensor=d.tensor, counted=d.counted, reason=d.reason)
                for d in differences(count.moved, one.ledger)
            )
            found[one.row.name] = Held(deviations=deviations, notes=count.notes)
    return found
