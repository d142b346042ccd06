"""Who else implements attention: torch's kernels, and the oracle. None of them has an IO model."""

from typing import Final

from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation

KERNELS = "perfkit.kernels.attention"
HALF: Final = ("bf16", "fp16")
#: What a K/V cache may be: of sequences of several lengths, in pages, in fp8, and still to be appended to.
CACHE: Final = frozenset({"padding", "pages", "fp8 cache", "append"})
#: What torch's SDPA takes as a dense mask.
MASKED: Final = frozenset({"pattern", "padding"})


def _no_workspace(_: AttentionWorkload) -> int:
    return 0


def _causal_rectangle(w: AttentionWorkload) -> str | None:
    if w.causal and w.seq_q != w.seq_k:
        return "torch aligns a causal mask to the top left; perfkit's is bottom right, and they differ here"
    return None


def _forward_only(w: AttentionWorkload) -> str | None:
    return None if w.pass_ == "fwd" else f"pass {w.pass_}: a cache is read forward only"


def _peer(
    name: str,
    function: str,
    description: str,
    materialises: bool = False,
    serves: frozenset[str] = frozenset(),
) -> Implementation:
    return Implementation(
        name=name,
        target=f"{KERNELS}.{function}",
        description=description,
        role="peer",
        dtypes=HALF,
        workspace=_no_workspace,
        refuses=_causal_rectangle,
        materialises=materialises,
        serves=serves,
    )


PEERS: Final = (
    _peer("sdpa-flash", "sdpa:flash", "torch SDPA, FlashAttention-2"),
    _peer("sdpa-cudnn", "sdpa:cudnn", "torch SDPA, cuDNN"),
    _peer("sdpa-efficient", "sdpa:efficient", "torch SDPA, memory-efficient"),
    _peer("sdpa-math", "sdpa:math", "torch SDPA, eager math", materialises=True, serves=MASKED),
    _peer("flex", "flex:attention", "torch flex_attention, compiled", serves=frozenset({"pattern"})),
    Implementation(
        name="gathered",
        target=f"{KERNELS}.gathered:attention",
        description="the K/V cache gathered in one piece, then torch SDPA",
        role="peer",
        named_only=True,
        dtypes=(*HALF, "fp32"),
        hardware=("cuda", "cpu"),
        workspace=lambda w: 2 * w.key_bytes,
        refuses=_forward_only,
        serves=CACHE,
    ),
    Implementation(
        name="sdpa",
        target=f"{KERNELS}.sdpa:default",
        description="torch SDPA on the CPU",
        role="peer",
        dtypes=(*HALF, "fp32"),
        hardware=("cpu",),
        workspace=_no_workspace,
        refuses=_causal_rectangle,
        serves=MASKED,
    ),
)

REFERENCE: Final = Implementation(
    name="reference",
    target=f"{KERNELS}.reference:attention",
    description="the oracle, float64, chunked",
    role="oracle",
    named_only=True,
    dtypes=(*HALF, "fp32"),
    hardware=("cuda", "cpu"),
    materialises=True,
    workspace=_no_workspace,
    serves=frozenset({"pattern"}) | CACHE,
)
