"""Which profile is the local device: all names that drivers say, all names that only resemble them."""

import msgspec
import pytest

from perfkit.model.catalogue import load, names
from perfkit.model.device import DeviceProfile
from perfkit.model.identify import _CAPABILITIES, derive, identify

GIB = 1 << 30
MIB = 1 << 20


@pytest.mark.parametrize(
    ("driver_name", "sm_count", "memory_bytes", "profile"),
    [
        ("NVIDIA H100 80GB HBM3", 132, 81559 * MIB, "h100-80gb-sxm"),
        ("NVIDIA A100-SXM4-40GB", 108, 40960 * MIB, "a100-40gb-sxm"),
        ("NVIDIA A100-SXM4-80GB", 108, 81920 * MIB, "a100-80gb-sxm"),
        ("NVIDIA A100 80GB PCIe", 108, 81920 * MIB, "a100-80gb-pcie"),
        ("NVIDIA A100-PCIE-40GB", 108, 40960 * MIB, "a100-40gb-pcie"),
        ("A100-SXM4-40GB", 108, 40536 * MIB, "a100-40gb-sxm"),  # drivers before 470
        ("Tesla T4", 40, 15360 * MIB, "t4"),
        ("Tesla V100-SXM2-16GB", 80, 16160 * MIB, "v100-16gb-sxm2"),
        ("Tesla V100-SXM2-32GB", 80, 32510 * MIB, "v100-32gb-sxm2"),
        ("NVIDIA H200", 132, 143771 * MIB, "h200-141gb-sxm"),
        ("NVIDIA GH200 480GB", 132, 97871 * MIB, "gh200-96gb"),
        ("NVIDIA GH200 480GB", 132, 146831 * MIB, "gh200-144gb"),
        ("NVIDIA GH200 144G HBM3e", 132, 153_008_209_920, "gh200-144gb"),
        ("NVIDIA B200", 148, 183359 * MIB, "b200-180gb-sxm"),
        ("NVIDIA H100 PCIe", 114, 81559 * MIB, "h100-80gb-pcie"),
        ("NVIDIA H100 NVL", 132, 95830 * MIB, "h100-94gb-nvl"),
        ("NVIDIA GeForce RTX 3090", 82, 24576 * MIB, "rtx-3090"),
        ("NVIDIA GeForce RTX 4090", 128, 24564 * MIB, "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", 170, 32607 * MIB, "rtx-5090"),
        ("NVIDIA L40S", 142, 46068 * MIB, "l40s"),
        ("NVIDIA L4", 58, 23034 * MIB, "l4"),
        ("NVIDIA A10", 72, 23028 * MIB, "a10"),
        ("AMD Instinct MI300X", 304, 196592 * MIB, "mi300x"),
        ("AMD Instinct MI300X OAM", 304, 192 * GIB, "mi300x"),
        ("nvidia  h200 ", 132, 143771 * MIB, "h200-141gb-sxm"),  # case and spaces do not matter
    ],
)
def test_a_driver_name_is_recognised(driver_name, sm_count, memory_bytes, profile):
    found = identify(driver_name, sm_count, memory_bytes)
    assert found is not None
    assert found.name == profile


@pytest.mark.parametrize(
    ("driver_name", "sm_count", "memory_bytes"),
    [
        ("NVIDIA GH200", 132, 143771 * MIB),  # not an H200, whatever its memory
        ("NVIDIA GH200 480GB", 132, 143771 * MIB // 2),
        ("NVIDIA H200 NVL", 132, 143771 * MIB),  # 600 W, PCIe
        ("NVIDIA H200", 132, 81559 * MIB),
        ("NVIDIA H20", 78, 97871 * MIB),
        ("NVIDIA GB200", 148, 189471 * MIB),
        ("NVIDIA A10G", 80, 23028 * MIB),
        ("NVIDIA A10G", 72, 23028 * MIB),
        ("NVIDIA A100", 72, 23028 * MIB),
        ("NVIDIA A10-24Q", 72, 23028 * MIB),  # a virtual GPU
        ("NVIDIA A100-SXM-64GB", 124, 65536 * MIB),
        ("NVIDIA A100-SXM4-40GB", 108, 81920 * MIB),  # name and memory contradict each other
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 42, 20096 * MIB),
        ("NVIDIA H100 80GB HBM3", 16, 81559 * MIB),  # a MIG slice has fewer SMs
        ("NVIDIA H100 80GB HBM3", 132, 9984 * MIB),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16, 9984 * MIB),
        ("NVIDIA L40", 142, 46068 * MIB),
        ("NVIDIA L40S", 58, 23034 * MIB),
        ("NVIDIA L4", 142, 46068 * MIB),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, 16376 * MIB),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 128, 24564 * MIB),
        ("NVIDIA GeForce RTX 4090 D", 114, 24564 * MIB),
        ("NVIDIA GeForce RTX 4090 D", 128, 24564 * MIB),
        ("NVIDIA GeForce RTX 3090 Ti", 84, 24564 * MIB),
        ("NVIDIA GeForce RTX 5090 D", 170, 32607 * MIB),
        ("Tesla V100-PCIE-16GB", 80, 16160 * MIB),
        ("Tesla V100-SXM3-32GB", 80, 32510 * MIB),
        ("Tesla T40", 40, 15360 * MIB),
        ("AMD Instinct MI300A", 228, 128 * GIB),
        ("AMD Instinct MI325X", 304, 256 * GIB),
        ("", 132, 143771 * MIB),
    ],
)
def test_a_name_that_only_resembles_is_not_recognised(driver_name, sm_count, memory_bytes):
    assert identify(driver_name, sm_count, memory_bytes) is None


def test_memory_may_differ_by_eight_percent():
    assert identify("NVIDIA H200", 132, int(141e9 * 1.079)) is not None
    assert identify("NVIDIA H200", 132, int(141e9 * 0.921)) is not None
    assert identify("NVIDIA H200", 132, int(141e9 * 1.081)) is None
    assert identify("NVIDIA H200", 132, int(141e9 * 0.919)) is None


def test_no_two_profiles_match_the_same_device():
    keys = [
        (name, load(p).sm_count, load(p).level("dram").capacity_bytes)
        for p in names()
        for name in load(p).match.names
    ]
    assert len(keys) == len(set(keys))


def local(driver_name="NVIDIA RTX A6000", **changes):
    """An RTX A6000 (GA102, 84 SMs, 384 bit of GDDR6 at 8.001 GHz), or something near it."""
    properties = {
        "sm_count": 84,
        "memory_bytes": 48 * GIB,
        "compute_capability": "8.6",
        "boost_hz": 1.8e9,
        "memory_clock_hz": 8.001e9,
        "bus_bits": 384,
        "l2_bytes": 6 * MIB,
        "shared_bytes_per_sm": 100 * 1024,
        "shared_bytes_per_block": 99 * 1024,
        "power_limit_w": 300.0,
    }
    return derive(driver_name, **(properties | changes))


def test_a_derived_profile_says_so_and_keeps_what_the_driver_said():
    profile = local()
    assert profile.derived is True
    assert (profile.name, profile.model, profile.vendor) == ("nvidia-rtx-a6000", "NVIDIA RTX A6000", "NVIDIA")
    assert (profile.architecture, profile.chip, profile.compute_capability) == ("Ampere", "unknown", "8.6")
    assert (profile.sm_count, profile.boost_hz, profile.tensor_hz) == (84, 1.8e9, 1.8e9)
    assert (profile.shared_bytes_per_sm, profile.shared_bytes_per_block) == (102_400, 101_376)
    assert (profile.registers_bytes_per_sm, profile.max_threads_per_sm) == (262_144, 1536)
    assert profile.power_limit_w == 300
    assert profile.level("l2").capacity_bytes == 6 * MIB


def test_derived_bandwidths():
    profile = local()
    assert profile.level("dram").bandwidth() == 2 * 8.001e9 * 384 / 8 == pytest.approx(768.1e9, rel=1e-4)
    assert profile.level("l2").bandwidth(1e9) == 64 * 84 * 1e9
    assert profile.level("shared").bandwidth(1e9) == 128 * 84 * 1e9


def test_derived_bandwidth_of_a_known_card_is_its_data_sheets():
    # A100 40GB: HBM2 at 1215 MHz on 5120 bit: 2 x 1.215e9 x 5120 / 8 = 1555.2e9
    profile = local(memory_clock_hz=1.215e9, bus_bits=5120)
    assert profile.level("dram").bandwidth() == pytest.approx(
        load("a100-40gb-sxm").level("dram").bandwidth(), rel=1e-3
    )


def test_derived_peaks_are_sms_times_clock_times_the_rate_of_the_capability():
    profile = local()
    assert profile.peak("bf16", "tensor").flop_per_s == 84 * 1024 * 1.8e9
    assert profile.peak("fp32", "vector").flop_per_s == 84 * 256 * 1.8e9
    assert profile.peak("fp8", "tensor") is None
    assert profile.ridge("bf16") == pytest.approx(84 * 1024 * 1.8e9 / 768.096e9)


def test_derived_geforce_halves_floating_point_tensor_rates_only():
    card = local("NVIDIA GeForce RTX 3080")
    assert card.peak("fp16", "tensor").flop_per_clock_per_sm == 512
    assert card.peak("int8", "tensor").flop_per_clock_per_sm == 2048
    assert card.peak("fp32", "vector").flop_per_clock_per_sm == 256


@pytest.mark.parametrize(
    "driver_name", ["NVIDIA A10G", "NVIDIA H20", "NVIDIA H20-3e", "NVIDIA GeForce GTX 1660"]
)
def test_no_tensor_peaks_where_the_card_may_have_less_than_its_chip(driver_name):
    card = local(driver_name)
    assert card.peak("fp16", "tensor") is None
    assert card.peak("fp32", "vector") is not None


def test_an_unknown_capability_has_no_roofs_rather_than_wrong_ones():
    profile = local(
        "NVIDIA Z900", compute_capability="13.7", memory_clock_hz=None, bus_bits=None, power_limit_w=None
    )
    assert profile.peaks == ()
    assert profile.ridge("fp16") is None
    assert profile.ceiling("fp16", "tensor", 1e9) is None
    assert [profile.level(name).bandwidth() for name in ("dram", "l2", "shared")] == [None, None, None]
    assert (profile.max_threads_per_sm, profile.power_limit_w) == (None, None)
    assert profile.exp_per_s(1e9) == 84 * 16 * 1e9
    assert profile.figures.exp_per_clock_per_sm.from_memory


def test_the_capability_table_is_nvidias():
    # ROCm calls the MI200 series 9.0, which is Hopper's number.
    card = local("AMD Instinct MI250X", compute_capability="9.0")
    assert (card.vendor, card.architecture, card.peaks) == ("AMD", "unknown", ())


@pytest.mark.parametrize(
    "changes", [{}, {"compute_capability": "13.7", "memory_clock_hz": None, "power_limit_w": None}]
)
def test_a_derived_profile_survives_json(changes):
    profile = local(**changes)
    assert msgspec.json.decode(msgspec.json.encode(profile), type=DeviceProfile) == profile


@pytest.mark.parametrize("name", [name for name in names() if load(name).vendor == "NVIDIA"])
def test_the_capability_table_agrees_with_the_profiles(name):
    card = load(name)
    capability = _CAPABILITIES[card.compute_capability]
    halved = 2 if "GeForce" in card.model else 1
    for pipe, rates in (("tensor", capability.tensor), ("vector", capability.vector)):
        assert {row.dtype for row in card.peaks if row.pipe == pipe} == set(rates)
        for dtype, rate in rates.items():
            expected = rate // halved if pipe == "tensor" and dtype != "int8" else rate
            assert card.peak(dtype, pipe).flop_per_clock_per_sm == expected
    assert card.max_threads_per_sm == capability.max_threads
    assert card.figures.exp_per_clock_per_sm.value == capability.exp_per_clock
