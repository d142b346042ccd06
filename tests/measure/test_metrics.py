"""The metric table: every name exists on every chip and takes the passes that the table claims."""

import pytest

from perfkit.measure.counter_errors import CountersUnavailable
from perfkit.measure.cupti_host import passes, supported_chips
from perfkit.measure.cupti_library import load
from perfkit.measure.metrics import FAMILIES, family_of, metric_set, quantities

CHIPS = [chip for family in FAMILIES for chip in family.chips]
DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8", "fp64")


@pytest.fixture
def libcupti() -> None:
    try:
        load()
    except CountersUnavailable as error:
        pytest.skip(f"no libcupti on this machine: {error.reason}")


@pytest.mark.usefixtures("libcupti")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chip", CHIPS)
def test_every_group_exists_and_takes_the_claimed_passes(chip: str, dtype: str) -> None:
    groups = metric_set(chip, dtype).groups
    assert {group.name: passes(chip, group.metrics) for group in groups} == {
        group.name: group.passes for group in groups
    }


@pytest.mark.usefixtures("libcupti")
def test_settling_dram_takes_one_pass_on_every_chip() -> None:
    for chip in CHIPS:
        if names := metric_set(chip, "bf16").only("dram_read_bytes", "dram_write_bytes"):
            assert passes(chip, names) == 1, chip


@pytest.mark.usefixtures("libcupti")
def test_the_generic_set_exists_on_every_discrete_chip_but_blackwell_rtx() -> None:
    # GB20x renames its DRAM metrics; GV11B and the integrated GA10B, GB10B, GB20B have no DRAM of their own.
    lacking = []
    for chip in supported_chips():
        generic = metric_set("a chip of the future", "bf16")
        try:
            passes(chip, [metric for group in generic.groups for metric in group.metrics])
        except CountersUnavailable:
            lacking.append(chip)
    # GB10x and GB11x have FADD, FMUL and FFMA beside the packed ones.
    assert [chip for chip in lacking if not chip.startswith("GB20")] == ["GV11B", "GA10B", "GB10B"]


def test_a_chip_is_in_one_family_at_most() -> None:
    assert len(CHIPS) == len(set(CHIPS))
    assert family_of("unheard of").tensor == {}


@pytest.mark.parametrize("chip", CHIPS)
def test_a_term_stands_once_in_a_set(chip: str) -> None:
    terms = metric_set(chip, "fp8").terms
    assert len(terms) == len(set(terms))


def test_quantities_add_up() -> None:
    metrics = metric_set("GH100", "bf16")
    fadd, fmul, ffma = metrics.only("vector_flop")
    wgmma, mma = metrics.only("tensor_flop")
    raw = {
        "lts__t_sectors_srcunit_tex_op_read.sum": 10.0,
        "lts__t_sectors_srcunit_tex_op_write.sum": 3.0,
        "smsp__inst_executed_pipe_xu.sum": 5.0,
        fadd: 100.0,
        fmul: 20.0,
        ffma: 7.0,
        wgmma: 4096.0,
        mma: 512.0,
    }
    assert quantities(metrics, raw) == {
        "l2_read_bytes": 320.0,  # 10 sectors x 32 B
        "l2_write_bytes": 96.0,  # 3 sectors x 32 B
        "xu_inst": 160.0,  # 5 warp instructions x 32 threads
        "vector_flop": 134.0,  # 100 + 20 + 2 x 7
        "tensor_flop": 4608.0,  # wgmma + mma.sync
    }


def test_a_quantity_with_a_missing_part_is_left_out_and_not_too_small() -> None:
    metrics = metric_set("GH100", "bf16")
    _, fmul, ffma = metrics.only("vector_flop")
    assert quantities(metrics, {fmul: 1.0, ffma: 1.0}) == {}


def test_packed_instructions_count_twice() -> None:
    metrics = metric_set("GB100", "bf16")
    raw = dict.fromkeys(metrics.only("vector_flop"), 1.0)
    assert quantities(metrics, raw) == {"vector_flop": 12.0}  # 1 + 1 + 2, and twice that packed


def test_fp32_products_are_looked_for_on_the_tf32_path() -> None:
    assert metric_set("GA100", "fp32").only("tensor_flop") == metric_set("GA100", "tf32").only("tensor_flop")


def test_a_chip_without_memory_of_its_own_has_no_dram_quantities() -> None:
    assert metric_set("GA10B", "bf16").only("dram_read_bytes", "dram_write_bytes") == ()
