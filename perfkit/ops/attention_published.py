"""Published figures of attention: what others measured, on which device, and where they say so."""

from typing import Final

import msgspec

from perfkit.model.units import Hint
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Published

#: GPT-2 medium as FA1 measured it.
GPT2_MEDIUM: Final = AttentionWorkload(
    batch=64, heads=16, kv_heads=16, seq_q=1024, seq_k=1024, head_dim=64, dtype="fp16", pass_="fwd-bwd"
)

#: The same with what their script of that day also had: dropout, and sequences of N - 20 to N keys.
GPT2_PIPELINE: Final = msgspec.structs.replace(GPT2_MEDIUM, dropout=0.1, padding=20)


def _fa1(impl: str, tag: str, value: float, hint: Hint, note: str) -> Published:
    return Published(
        impl=impl,
        tag=tag,
        value=value,
        hint=hint,
        device="A100 40 GB",
        source="FlashAttention, arXiv 2205.14135, Figure 2 left",
        note=note,
    )


def _left_table(standard: str, note: str) -> tuple[Published, ...]:
    """Figure 2's left table with `standard` as the name of its standard attention."""
    return (
        _fa1(standard, "time", 41.7e-3, "time", note),
        _fa1(standard, "dram_bytes", 40.3e9, "bytes", note),
        _fa1("flash", "time", 7.3e-3, "time", note),
        _fa1("flash", "dram_bytes", 4.4e9, "bytes", note),
    )


_FIGURES: Final = _left_table(
    "standard", "fp16, dropout 0.1 and a padding mask, here neither: only direction and rough ratio compare"
)
_PIPELINE_FIGURES: Final = _left_table("gpt2", "fp16, dropout 0.1 and a padding mask; the torch of 2022")


def published(w: AttentionWorkload) -> tuple[Published, ...]:
    """The figures for `w`, in either 16-bit dtype; none for other workloads."""
    if w.dtype == "fp32":
        return ()
    in_fp16 = msgspec.structs.replace(w, dtype="fp16")
    return {GPT2_MEDIUM: _FIGURES, GPT2_PIPELINE: _PIPELINE_FIGURES}.get(in_fp16, ())
