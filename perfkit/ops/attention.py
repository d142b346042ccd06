"""Attention as an op: FLOPs by convention and exactly, compulsory traffic, and who implements it."""

from typing import Final

from perfkit.ops import attention_cache as cached
from perfkit.ops import attention_decode as decode
from perfkit.ops import attention_flash1 as flash1
from perfkit.ops import attention_gpt2 as gpt2
from perfkit.ops import attention_io as io
from perfkit.ops import attention_sparse as sparse
from perfkit.ops import attention_sparse1 as sparse1
from perfkit.ops import attention_sparse_cache as sparse_cached
from perfkit.ops import attention_square as square
from perfkit.ops.attention_flash import FLASH
from perfkit.ops.attention_ledger import standard_ledger
from perfkit.ops.attention_peers import CACHE, HALF, KERNELS, PEERS, REFERENCE
from perfkit.ops.attention_published import published
from perfkit.ops.attention_tiles import chosen
from perfkit.ops.attention_variants import variants
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Implementation, IOModel, Op, no_zeros

#: FLOPs of a pass over those of the forward pass: the backward has five products to the forward's two.
_PASS_FACTOR: Final = {"fwd": 2, "bwd": 5, "fwd-bwd": 7}


def flops_convention(w: AttentionWorkload) -> int:
    """FLOPs as the papers count them: 4 N_q N_k d a head, half if causal, times 2.5 backward.

    Source: FlashAttention's benchmarks and FA2 section 4.1. Where N_q differs from N_k "half" means
    nothing, and the visible pairs are counted instead.
    """
    pairs = w.rows * w.seq_k // 2 if w.causal and w.seq_q == w.seq_k else w.pairs
    return _PASS_FACTOR[w.pass_] * 2 * pairs * w.head_dim


def flops_exact(w: AttentionWorkload) -> int:
    """FLOPs of the products over the pairs that the mask leaves, diagonal included."""
    return _PASS_FACTOR[w.pass_] * 2 * w.pairs * w.head_dim


def exps(w: AttentionWorkload) -> int:
    """Exponentials of an op that recomputes: one per visible pair in each pass."""
    return (2 if w.pass_ == "fwd-bwd" else 1) * w.pairs


IMPLEMENTATIONS: Final = (
    Implementation(
        name="standard",
        target=f"{KERNELS}.standard:attention",
        description="Algorithm 0: S and P in device memory",
        role="shipped",
        dtypes=(*HALF, "fp32"),
        hardware=("cuda", "cpu"),
        materialises=True,
        workspace=io.standard_workspace,
        io=IOModel(
            level="DRAM",
            ledger=standard_ledger,
            tiled=lambda *_: (),
            dram=cached.standard_dram,
            issued_flops=io.standard_flops,
            exps=io.standard_exps,
            extra_flops=io.standard_extra_flops,
            launches=io.standard_launches,
            zeros=no_zeros,
            source="4 N^2 + 4 N d forward (FA1 section 2.2, Algorithm 0)",
        ),
    ),
    *FLASH,
    Implementation(
        name="flash1",
        target=f"{KERNELS}.flash1:attention",
        description="FlashAttention-1 as written, slow by design",
        role="shipped",
        named_only=True,
        dtypes=HALF,
        workspace=flash1.flash1_workspace,
        plan=flash1.flash1_plan,
        retiled=chosen(flash1.flash1_plan, flash1.flash1_tiled),
        refuses=flash1.flash1_refuses,
        io=IOModel(
            level="L2",
            ledger=flash1.flash1_ledger,
            tiled=flash1.flash1_tiled,
            dram=flash1.flash1_dram,
            issued_flops=flash1.flash1_flops,
            exps=flash1.flash1_exps,
            extra_flops=flash1.flash1_extra_flops,
            launches=flash1.flash1_launches,
            zeros=no_zeros,
            source="3 N_k d + T_c (3 N_q d + 4 N_q) forward (FA1 Algorithm 1)",
        ),
    ),
    Implementation(
        name="gpt2",
        target=f"{KERNELS}.gpt2:attention",
        description="GPT-2's pipeline, each step apart",
        role="shipped",
        named_only=True,
        dtypes=HALF,
        hardware=("cuda", "cpu"),
        materialises=True,
        serves=frozenset({"dropout", "padding"}),
        workspace=gpt2.gpt2_workspace,
        refuses=gpt2.gpt2_refuses,
        io=IOModel(
            level="DRAM",
            ledger=gpt2.gpt2_ledger,
            tiled=lambda *_: (),
            dram=gpt2.gpt2_dram,
            issued_flops=io.standard_flops,
            exps=io.standard_exps,
            extra_flops=gpt2.gpt2_extra_flops,
            launches=gpt2.gpt2_launches,
            zeros=no_zeros,
            source="8.5 N^2 + 4 N d forward, with mask and dropout (FA1 section 3.2)",
        ),
    ),
    Implementation(
        name="square",
        target=f"{KERNELS}.square:attention",
        description="square tiles, best where M < d^2",
        role="shipped",
        named_only=True,
        dtypes=HALF,
        materialises=True,
        workspace=square.square_workspace,
        plan=square.square_plan,
        retiled=square.square_retiled,
        refuses=square.square_refuses,
        io=IOModel(
            level="L2",
            ledger=square.square_ledger,
            tiled=square.square_tiled,
            dram=square.square_dram,
            issued_flops=square.square_flops,
            exps=square.square_exps,
            extra_flops=square.square_extra_flops,
            launches=square.square_launches,
            zeros=no_zeros,
            source="4 N_q N_k d / t + 2 N_q N_k + N_q d forward (Saha and Ye, Theorem 3.1)",
        ),
    ),
    Implementation(
        name="flash-decode",
        target=f"{KERNELS}.decode:attention",
        description="a few queries over a K/V cache, split over its keys",
        role="shipped",
        named_only=True,
        dtypes=HALF,
        workspace=decode.decode_workspace,
        serves=CACHE,
        plan=decode.decode_plan,
        pinned=lambda uses: {"splits": decode.splits_of(uses)},
        refuses=decode.decode_refuses,
        io=IOModel(
            level="L2",
            ledger=decode.decode_ledger,
            tiled=decode.decode_tiled,
            dram=decode.decode_dram,
            issued_flops=decode.decode_flops,
            exps=decode.decode_exps,
            extra_flops=decode.decode_extra_flops,
            launches=decode.decode_launches,
            source="2 h_kv N_k d + (S + 1) h N_q d, and S h N_q (d + 1) fp32 twice (flash-decoding)",
        ),
    ),
    Implementation(
        name="block-sparse",
        target=f"{KERNELS}.block_sparse:attention",
        description="the visible tiles of any mask, in FlashAttention-2 order",
        role="shipped",
        named_only=True,
        dtypes=HALF,
        serves=frozenset({"pattern"}),
        workspace=sparse.block_sparse_workspace,
        plan=sparse.block_sparse_plan,
        retiled=sparse.within_blocks(sparse.block_sparse_plan, sparse.block_sparse_tiled),
        refuses=sparse.sparse_refuses,
        io=IOModel(
            level="L2",
            ledger=sparse.block_sparse_ledger,
            tiled=sparse.block_sparse_tiled,
            dram=sparse_cached.block_sparse_dram,
            issued_flops=sparse.block_sparse_flops,
            exps=sparse.block_sparse_exps,
            extra_flops=sparse.block_sparse_extra_flops,
            launches=sparse.block_sparse_launches,
            source="N d + s T_r 2 N d forward (FA1 section 3.3, FA2 Algorithm 1)",
        ),
    ),
    Implementation(
        name="block-sparse1",
        target=f"{KERNELS}.sparse1:attention",
        description="block-sparse FlashAttention-1 as written, slow by design",
        role="shipped",
        named_only=True,
        dtypes=HALF,
        serves=frozenset({"pattern"}),
        workspace=sparse1.sparse1_workspace,
        plan=sparse1.sparse1_plan,
        retiled=sparse.within_blocks(sparse1.sparse1_plan, sparse1.sparse1_tiled),
        refuses=sparse1.sparse1_refuses,
        io=IOModel(
            level="L2",
            ledger=sparse1.sparse1_ledger,
            tiled=sparse1.sparse1_tiled,
            dram=sparse_cached.sparse1_dram,
            issued_flops=sparse1.sparse1_flops,
            exps=sparse1.sparse1_exps,
            extra_flops=sparse1.sparse1_extra_flops,
            launches=sparse1.sparse1_launches,
            zeros=no_zeros,
            source="3 N d + s T_c (3 N d + 4 N) forward (FA1 Algorithm 5)",
        ),
    ),
    *PEERS,
    REFERENCE,
)

ATTENTION: Final = Op(
    name="attention",
    workload=AttentionWorkload,
    flops_convention=flops_convention,
    flops_exact=flops_exact,
    exps=exps,
    compulsory=io.compulsory,
    published=published,
    implementations=(
        *IMPLEMENTATIONS,
        *variants(next(row for row in IMPLEMENTATIONS if row.name == "flash")),
    ),
)
