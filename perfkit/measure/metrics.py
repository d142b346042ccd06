"""Which hardware metrics make which quantity, chip by chip. Pure: names and arithmetic, no library, no GPU.

A quantity is a weighted sum of metrics. Metrics that fit one pass stand in one group: `core` first, then
`flops` (instrumented instructions, a pass of their own) and, where it is cheap, `l1`.

Quantities: `duration_ns`; `sm_cycles`; `dram_read_bytes`, `dram_write_bytes`; `l2_read_bytes`,
`l2_write_bytes` (SM<->L2 seen from L2, 32-byte sectors); `l1_fill_bytes`, `l1_write_bytes` (the same seen
from L1, TMA included); `tensor_flop` of the working dtype, dense; `vector_flop` in fp32; `xu_inst` in thread
instructions (warp instructions x 32: exp and conversions); `red_sectors`, `atom_sectors` at L2.

Source: the metric names are those of the CUPTI Profiler Host API (cuptiProfilerHostGetBaseMetrics, 13.0.85).
"""

from collections.abc import Mapping
from typing import Final

import msgspec

SECTOR_BYTES: Final = 32
WARP_THREADS: Final = 32

Names = tuple[str, ...]


class Term(msgspec.Struct, frozen=True):
    """`factor` times `metric` is a part of the quantity `tag`."""

    tag: str
    metric: str
    factor: float = 1.0


class MetricGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics collected together, and the passes that they take."""

    name: str
    terms: tuple[Term, ...]
    passes: int

    @property
    def metrics(self) -> Names:
        """The metric names, each once."""
        return tuple(dict.fromkeys(term.metric for term in self.terms))


class MetricSet(msgspec.Struct, frozen=True, kw_only=True):
    """All that is read on one chip for one dtype."""

    chip: str
    dtype: str
    groups: tuple[MetricGroup, ...]

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of all groups."""
        return tuple(term for group in self.groups for term in group.terms)

    def group(self, name: str) -> MetricGroup | None:
        """The group called `name`; None where the chip has none."""
        return next((group for group in self.groups if group.name == name), None)

    def only(self, *tags: str) -> Names:
        """The metrics that the quantities `tags` need."""
        return tuple(dict.fromkeys(term.metric for term in self.terms if term.tag in tags))


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Chips that share metric names and pass counts."""

    chips: Names
    dram: Names = ("dram__bytes_read", "dram__bytes_write")  # read, write; empty: shared system memory
    tensor: dict[str, Names] = {}
    packed: bool = False  # FADD2, FMUL2, FFMA2: two fp32 operations an instruction
    fill: bool = True  # L1 fills ride in the core pass,
    crowded: Names = ()  # but for dtypes whose tensor metrics leave no room, there and for XU, in that pass
    atomics: bool = True  # and so do atomics
    core_passes: int = 1
    extra_pass: Names = ()  # dtypes whose tensor metrics take one more
    l1_passes: int | None = None  # None: L1 writes are too dear to be worth a group
    crowded_l1_passes: int | None = None


def _src(*names: str) -> Names:
    return tuple(f"src_{name}" for name in names)


_AMPERE_TENSOR: Final[dict[str, Names]] = {
    "bf16": _src("bf16_dst_fp32_sparsity_off"),
    "fp16": _src("fp16_dst_fp32_sparsity_off", "fp16_dst_fp16_sparsity_off"),
    "tf32": _src("tf32_dst_fp32_sparsity_off"),
    "int8": _src("int8_sparsity_off"),
    "fp64": _src("fp64"),
}
_ADA_TENSOR: Final = {**_AMPERE_TENSOR, "fp8": _src("fp8_sparsity_off")}
_TURING_TENSOR: Final[dict[str, Names]] = {
    "fp16": _src("fp16_bf16_tf32_dst_fp32", "fp16_dst_fp16"),
    "int8": _src("int8"),
}
# hgmma is wgmma, hmma is mma.sync: a kernel shows in one of them and reads 0 in the other.
_HOPPER_TENSOR: Final[dict[str, Names]] = {
    "bf16": ("op_hgmma_src_bf16_dst_fp32_sparsity_off", "op_hmma_src_bf16_dst_fp32_sparsity_off"),
    "fp16": (
        "op_hgmma_src_fp16_sparsity_off",
        "op_hmma_src_fp16_dst_fp32_sparsity_off",
        "op_hmma_src_fp16_dst_fp16_sparsity_off",
    ),
    "tf32": ("op_hgmma_src_tf32_dst_fp32_sparsity_off", "op_hmma_src_tf32_dst_fp32_sparsity_off"),
    "fp8": _src("fp8_sparsity_off"),
    "int8": ("op_igmma_src_int8_sparsity_off", "op_imma_src_int8_sparsity_off"),
    "fp64": _src("fp64"),
}
_HMMA_TENSOR: Final[dict[str, Names]] = {
    "bf16": ("op_hmma_src_bf16_dst_fp32_sparsity_off",),
    "fp16": ("op_hmma_src_fp16_dst_fp32_sparsity_off", "op_hmma_src_fp16_dst_fp16_sparsity_off"),
    "tf32": ("op_hmma_src_tf32_dst_fp32_sparsity_off",),
    "int8": ("op_imma_src_int8_sparsity_off",),
    "fp64": _src("fp64"),
}
_BLACKWELL_RTX_TENSOR: Final = {
    **_HMMA_TENSOR,
    "fp8": _src("fp8_dst_fp32_sparsity_off", "fp8_dst_fp16_sparsity_off"),
}
# utchmma is tcgen05.mma.
_BLACKWELL_TENSOR: Final[dict[str, Names]] = {
    "bf16": ("op_utchmma_src_bf16_dst_fp32_sparsity_off", *_HMMA_TENSOR["bf16"]),
    "fp16": (
        "op_utchmma_src_fp16_dst_fp32_sparsity_off",
        "op_utchmma_src_fp16_dst_fp16_sparsity_off",
        *_HMMA_TENSOR["fp16"],
    ),
    "tf32": ("op_utchmma_src_tf32_dst_fp32_sparsity_off", *_HMMA_TENSOR["tf32"]),
    "fp8": (
        "op_utcqmma_src_fp4_fp6_fp8_dst_fp32_sparsity_off",
        "op_utcqmma_src_fp4_fp6_fp8_dst_fp16_sparsity_off",
    ),
    "int8": ("op_utcimma_src_int8_sparsity_off", *_HMMA_TENSOR["int8"]),
    "fp64": _src("fp64"),
}
_BLACKWELL_ULTRA_TENSOR: Final[dict[str, Names]] = {
    **_BLACKWELL_TENSOR,
    "fp8": (
        "op_utcqmma_src_fp8_dst_fp32_sparsity_off",
        "op_utcqmma_src_fp8_dst_fp16_sparsity_off",
    ),
    "int8": _HMMA_TENSOR["int8"],
}
_BLACKWELL_CROWDED: Final = ("fp16", "tf32", "fp32", "fp8", "int8")
_OP_DRAM: Final = ("dram__bytes_op_read", "dram__bytes_op_write")

FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        chips=("GV100",),
        tensor={"fp16": _src("fp16_dst_fp32", "fp16_dst_fp16")},
        fill=False,
        atomics=False,
        core_passes=2,
    ),
    Family(chips=("TU102", "TU104", "TU106"), tensor=_TURING_TENSOR),
    Family(chips=("TU116", "TU117")),
    Family(chips=("GA100",), tensor=_AMPERE_TENSOR, atomics=False),
    Family(chips=("GA102", "GA103", "GA104", "GA106", "GA107"), tensor=_AMPERE_TENSOR),
    Family(chips=("GA10B",), tensor=_AMPERE_TENSOR, dram=()),
    Family(chips=("AD102", "AD103", "AD104", "AD106", "AD107"), tensor=_ADA_TENSOR),
    Family(chips=("GH100",), tensor=_HOPPER_TENSOR, l1_passes=1),
    Family(
        chips=("GB100", "GB102"),
        tensor=_BLACKWELL_TENSOR,
        packed=True,
        crowded=_BLACKWELL_CROWDED,
        l1_passes=2,
        crowded_l1_passes=3,
    ),
    Family(
        chips=("GB110",),
        tensor=_BLACKWELL_ULTRA_TENSOR,
        packed=True,
        extra_pass=("fp8",),
        crowded=_BLACKWELL_CROWDED,
        l1_passes=2,
        crowded_l1_passes=3,
    ),
    Family(
        chips=("GB10B",),
        tensor=_BLACKWELL_TENSOR,
        dram=(),
        crowded=_BLACKWELL_CROWDED,
        l1_passes=2,
        crowded_l1_passes=3,
    ),
    Family(
        chips=("GB202", "GB203", "GB205", "GB206", "GB207"),
        tensor=_BLACKWELL_RTX_TENSOR,
        dram=_OP_DRAM,
        crowded=("fp8",),
        l1_passes=2,
        crowded_l1_passes=3,
    ),
    Family(
        chips=("GB20B",),
        tensor=_BLACKWELL_RTX_TENSOR,
        dram=(),
        crowded=("fp8",),
        l1_passes=2,
        crowded_l1_passes=3,
    ),
)

_XU: Final = Term("xu_inst", "smsp__inst_executed_pipe_xu.sum", WARP_THREADS)
_CROWDED_OUT: Final = (_XU, Term("l1_fill_bytes", "l1tex__m_xbar2l1tex_read_bytes.sum"))
_L1_WRITE: Final = Term("l1_write_bytes", "l1tex__m_l1tex2xbar_write_bytes.sum")

#: For chips that the table does not know: what every chip so far has had.
GENERIC: Final = Family(chips=(), fill=False, atomics=False)


def family_of(chip: str) -> Family:
    """The family of `chip` (CUPTI's name, as GH100); the generic one for an unknown chip."""
    return next((family for family in FAMILIES if chip in family.chips), GENERIC)


def metric_set(chip: str, dtype: str) -> MetricSet:
    """What to read on `chip` for work in `dtype`; fp32 products run as tf32 on tensor units."""
    family = family_of(chip)
    groups = [
        MetricGroup(
            name="core", terms=_core(family, dtype), passes=family.core_passes + (dtype in family.extra_pass)
        ),
        MetricGroup(name="flops", terms=_flops(family), passes=1),
    ]
    crowded = dtype in family.crowded
    passes = family.crowded_l1_passes if crowded else family.l1_passes
    if passes is not None:
        terms = (*_CROWDED_OUT, _L1_WRITE) if crowded else (_L1_WRITE,)
        groups.append(MetricGroup(name="l1", terms=terms, passes=passes))
    return MetricSet(chip=chip, dtype=dtype, groups=tuple(groups))


def quantities(metrics: MetricSet, raw: Mapping[str, float]) -> dict[str, float]:
    """The quantities that the metric values `raw` suffice for; one with a metric missing is left out."""
    lacking = {term.tag for term in metrics.terms if term.metric not in raw}
    values: dict[str, float] = {}
    for term in metrics.terms:
        if term.tag not in lacking:
            values[term.tag] = values.get(term.tag, 0.0) + term.factor * raw[term.metric]
    return values


def _core(family: Family, dtype: str) -> tuple[Term, ...]:
    terms = [
        Term("duration_ns", "gpu__time_duration.sum"),
        Term("sm_cycles", "sm__cycles_elapsed.max"),
        Term("l2_read_bytes", "lts__t_sectors_srcunit_tex_op_read.sum", SECTOR_BYTES),
        Term("l2_write_bytes", "lts__t_sectors_srcunit_tex_op_write.sum", SECTOR_BYTES),
    ]
    terms += [
        Term(tag, f"{name}.sum")
        for tag, name in zip(("dram_read_bytes", "dram_write_bytes"), family.dram, strict=False)
    ]
    tensor = family.tensor.get("tf32" if dtype == "fp32" else dtype, ())
    terms += [Term("tensor_flop", f"sm__ops_path_tensor_{name}.sum") for name in tensor]
    if dtype not in family.crowded:
        terms += _CROWDED_OUT if family.fill else (_XU,)
    if family.atomics:
        terms.append(Term("red_sectors", "lts__t_sectors_op_red.sum"))
        terms.append(Term("atom_sectors", "lts__t_sectors_op_atom.sum"))
    return tuple(terms)


def _flops(family: Family) -> tuple[Term, ...]:
    flops = {"fadd": 1.0, "fmul": 1.0, "ffma": 2.0}
    if family.packed:
        flops |= {"fadd2": 2.0, "fmul2": 2.0, "ffma2": 4.0}
    return tuple(
        Term("vector_flop", f"smsp__sass_thread_inst_executed_op_{name}_pred_on.sum", count)
        for name, count in flops.items()
    )
