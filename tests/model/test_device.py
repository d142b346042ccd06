"""Device profiles: the numbers with their derivations, and every contradiction that a file may hold."""

import msgspec
import pytest

from perfkit.model.catalogue import load, names
from perfkit.model.device import DeviceProfile, Peak

A100 = load("a100-40gb-sxm")
H100 = load("h100-80gb-sxm")
H200 = load("h200-141gb-sxm")


def peak(profile: DeviceProfile, dtype: str, pipe: str) -> Peak:
    found = profile.peak(dtype, pipe)
    assert found is not None
    return found


def test_identity_of_a_profile():
    assert (A100.name, A100.model, A100.vendor) == ("a100-40gb-sxm", "NVIDIA A100 40GB SXM4", "NVIDIA")
    assert (A100.architecture, A100.chip, A100.compute_capability) == ("Ampere", "GA100", "8.0")
    assert A100.derived is False


def test_limits_of_an_sm():
    assert A100.sm_count == 108
    assert A100.shared_bytes_per_sm == 164 * 1024
    assert A100.shared_bytes_per_block == 163 * 1024
    assert A100.registers_bytes_per_sm == 64 * 1024 * 4  # 64 K registers of 32 bits
    assert A100.max_threads_per_sm == 64 * 32  # 64 warps
    assert A100.power_limit_w == 400


@pytest.mark.parametrize(
    ("name", "dtype", "pipe", "flop_per_s"),
    [
        ("a100-40gb-sxm", "fp16", "tensor", 108 * 1.41e9 * 2048),  # 311.9e12; printed 312
        ("a100-40gb-sxm", "fp32", "vector", 108 * 1.41e9 * 64 * 2),  # 64 FMA a clock
        ("v100-16gb-sxm2", "fp16", "tensor", 80 * 1.53e9 * 1024),  # 125.3e12; printed 125
        ("t4", "fp16", "tensor", 40 * 1.59e9 * 1024),  # 65.1e12; printed 65
        ("a10", "fp16", "tensor", 72 * 1.695e9 * 1024),  # 125.0e12
        ("l4", "fp16", "tensor", 58 * 2.04e9 * 1024),  # 121.2e12; printed 121
        ("h100-80gb-sxm", "bf16", "tensor", 132 * 1.83e9 * 4096),  # 989.4e12
        ("h100-80gb-pcie", "bf16", "tensor", 114 * 1.62e9 * 4096),  # 756.4e12; printed 756
        ("b200-180gb-sxm", "bf16", "tensor", 148 * 1.85e9 * 8192),  # 2243e12; printed 2250
        ("rtx-4090", "fp16", "tensor", 128 * 2.52e9 * 512),  # 165.2e12 with fp32 accumulation
        ("rtx-5090", "fp16", "tensor", 170 * 2.407e9 * 512),  # 209.5e12
        ("mi300x", "fp16", "tensor", 304 * 2.1e9 * 2048),  # 1307.4e12; printed 1307
    ],
)
def test_printed_peak_is_sms_times_clock_times_rate(name, dtype, pipe, flop_per_s):
    assert peak(load(name), dtype, pipe).flop_per_s == pytest.approx(flop_per_s, rel=4e-3)


def test_a100_peak_is_within_a_thousandth():
    assert A100.ceiling("bf16", "tensor", 1.41e9) == 108 * 1.41e9 * 2048 == pytest.approx(312e12, rel=1e-3)
    assert peak(A100, "bf16", "tensor").flop_per_s == 312e12
    assert peak(A100, "bf16", "tensor").flop_per_clock_per_sm == 2048


@pytest.mark.parametrize(
    ("name", "ridge"),
    [
        ("t4", 203.1),  # 65e12 / 320e9
        ("v100-32gb-sxm2", 138.9),  # 125e12 / 900e9
        ("a100-40gb-sxm", 200.6),  # 312e12 / 1.555e12
        ("a100-80gb-sxm", 153.0),  # 312e12 / 2.039e12
        ("h100-80gb-sxm", 295.3),  # 989.4e12 / 3.35e12
        ("h200-141gb-sxm", 206.1),  # 989.4e12 / 4.8e12
        ("b200-180gb-sxm", 281.3),  # 2250e12 / 8e12
    ],
)
def test_ridge_is_printed_peak_over_dram_bandwidth(name, ridge):
    assert load(name).ridge("fp16") == pytest.approx(ridge, abs=0.06)


def test_ridge_takes_the_vector_pipe_where_there_is_no_tensor_peak():
    assert A100.ridge("fp32") == 19.5e12 / 1.555e12
    assert A100.ridge("fp64") == 19.5e12 / 1.555e12  # tensor: twice the vector rate of 9.7e12
    assert A100.ridge("fp8") is None


def test_fp32_and_tf32_are_two_peaks():
    assert peak(A100, "fp32", "vector").flop_per_s == 19.5e12
    assert peak(A100, "tf32", "tensor").flop_per_s == 156e12
    assert A100.peak("fp32", "tensor") is None
    assert A100.peak("tf32", "vector") is None


def test_geforce_gives_attention_the_rate_with_fp32_accumulation():
    card = load("rtx-4090")
    both = {
        row.accumulate: row.flop_per_s for row in card.peaks if (row.dtype, row.pipe) == ("fp16", "tensor")
    }
    assert both == {"fp32": 165e12, "fp16": 330e12}
    assert peak(card, "fp16", "tensor").flop_per_s == 165e12
    assert peak(card, "fp8", "tensor").flop_per_s == 330e12  # 661 with fp16 accumulation


def test_ceiling_follows_the_clock_that_a_run_really_had():
    assert H200.ceiling("bf16", "tensor", 1.83e9) == pytest.approx(989.4e12, rel=1e-4)
    # A power cap that leaves 1455 MHz leaves 132 x 4096 x 1.455e9 of it.
    assert (
        H200.ceiling("bf16", "tensor", 1.455e9) == 132 * 4096 * 1.455e9 == pytest.approx(786.7e12, rel=1e-4)
    )
    assert H200.ceiling("fp32", "tensor", 1.83e9) is None


def test_tensor_clock_is_the_boost_clock_unless_stated():
    assert (A100.boost_hz, A100.tensor_hz) == (1.41e9, 1.41e9)
    assert (H100.boost_hz, H100.tensor_hz) == (1.98e9, 1.83e9)
    assert H100.clock_hz(peak(H100, "fp64", "tensor")) == 1.98e9  # 132 x 256 x 1.98e9 = 66.9e12
    assert H100.clock_hz(peak(H100, "bf16", "tensor")) == 1.83e9


def test_exponentials_are_sixteen_a_clock_and_sm():
    assert H100.exp_per_s(1.83e9) == 132 * 16 * 1.83e9  # 3.9e12: 256 times fewer than bf16 FLOP/s
    assert peak(H100, "bf16", "tensor").flop_per_clock_per_sm == 256 * 16


def test_on_chip_levels_follow_the_clock_and_dram_does_not():
    dram, l2, shared = A100.level("dram"), A100.level("l2"), A100.level("shared")
    assert (dram.capacity_bytes, l2.capacity_bytes, shared.capacity_bytes) == (
        40 * 10**9,
        40 << 20,
        164 << 10,
    )
    assert dram.bandwidth() == dram.bandwidth(1e9) == 1.555e12
    assert l2.bandwidth(1e9) == 5120 * 1e9
    assert l2.bandwidth() == 5120 * 1.41e9
    assert shared.bandwidth() == 108 * 128 * 1.41e9 == pytest.approx(19.5e12, rel=1e-3)


def test_only_mi300x_has_an_infinity_cache():
    assert load("mi300x").level("infinity_cache").bandwidth(1.0) == 17.2e12  # it has its own clock
    with pytest.raises(KeyError, match="infinity_cache"):
        A100.level("infinity_cache")


@pytest.mark.parametrize("name", names())
def test_a_profile_survives_json(name):
    profile = load(name)
    assert msgspec.json.decode(msgspec.json.encode(profile), type=DeviceProfile) == profile


@pytest.mark.parametrize("name", names())
def test_order_of_roofs(name):
    profile = load(name)
    dram, l2, shared = (profile.level(level).bandwidth() for level in ("dram", "l2", "shared"))
    assert dram is not None
    assert l2 is not None
    assert shared is not None
    assert dram < l2 < shared
    assert peak(profile, "fp32", "vector").flop_per_s < peak(profile, "fp16", "tensor").flop_per_s
    assert profile.level("dram").capacity_bytes > profile.level("l2").capacity_bytes


@pytest.mark.parametrize("name", names())
def test_tensor_rates_halve_with_the_width(name):
    """Dense rates: 16 bit = 2 x tf32 and fp8 = int8 = 2 x 16 bit, per clock, with equal accumulators."""
    rates = {row.dtype: row.flop_per_clock_per_sm for row in load(name).peaks if row.pipe == "tensor"}
    best = {row.dtype: row for row in load(name).peaks if row.accumulate == "fp16"}
    for dtype, factor in (("tf32", 0.5), ("fp8", 2)):
        own = load(name).peak(dtype, "tensor")
        if own:
            assert (
                own.flop_per_clock_per_sm == factor * peak(load(name), "fp16", "tensor").flop_per_clock_per_sm
            )
    if "int8" in rates:
        wide = best["fp16"].flop_per_clock_per_sm if best else rates["fp16"]
        assert rates["int8"] == 2 * wide


def test_four_a100s_differ_where_the_cards_do():
    cards = {name: load(name) for name in names() if name.startswith("a100")}
    told = {name: (card.level("dram").bandwidth(), card.power_limit_w) for name, card in cards.items()}
    assert told == {
        "a100-40gb-sxm": (1.555e12, 400),
        "a100-80gb-sxm": (2.039e12, 400),
        "a100-40gb-pcie": (1.555e12, 250),
        "a100-80gb-pcie": (1.935e12, 300),
    }


def test_h200_has_the_chip_of_h100_with_more_memory_and_l2():
    assert H200.peak("bf16", "tensor") == H100.peak("bf16", "tensor")
    assert (H100.level("l2").capacity_bytes, H200.level("l2").capacity_bytes) == (50 << 20, 60 << 20)


@pytest.mark.parametrize("name", ["gh200-96gb", "gh200-144gb", "mi300x"])
def test_rows_from_memory_are_marked(name):
    assert all(row.from_memory for row in load(name).peaks)
    assert load(name).memory.dram.bytes_per_s.from_memory
