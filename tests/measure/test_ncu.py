"""The ncu fall-back: its command line, the CSV it prints, and what it says when it refuses."""

from pathlib import Path

import pytest

from perfkit.measure import ncu
from perfkit.measure.counter_errors import CountersUnavailable, InsufficientPrivileges, ProfilerBusy
from perfkit.measure.metrics import metric_set, quantities

# Two kernels; units as ncu scales them by default, a value with thousands separators, one that is no number.
CSV = """==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "vectorized_elementwise_kernel" - 0: 0%....50%....100% - 2 passes
==PROF== Disconnected from process 4242
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",\
"Device","CC","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum",\
"lts__t_bytes.sum.peak_sustained","lts__t_sectors_srcunit_tex_op_read.sum"
"","","","","","","","","","","","Mbyte","byte","us","Kbyte/cycle","sector"
"0","4242","python3.12","127.0.0.1","void at::native::vectorized_elementwise_kernel<4, float>(int, float)",\
"1","7","(128, 1, 1)","(262144, 1, 1)","0","9.0","536.87","1,024","260.5","5.12","16777216"
"1","4242","python3.12","127.0.0.1","matmul_kernel","1","7","(128, 1, 1)","(64, 1, 1)","0","9.0",\
"1.5","n/a","2","5.12","12"
"""


def test_values_come_in_base_units() -> None:
    first, second = ncu.parse(CSV)
    assert first.name == "at::native::vectorized_elementwise_kernel"
    assert first.values == pytest.approx(
        {
            "dram__bytes_read.sum": 536_870_000.0,  # 536.87 Mbyte
            "dram__bytes_write.sum": 1024.0,  # thousands separator
            "gpu__time_duration.sum": 260_500.0,  # us -> ns
            "lts__t_bytes.sum.peak_sustained": 5120.0,  # Kbyte/cycle -> byte/cycle
            "lts__t_sectors_srcunit_tex_op_read.sum": 16_777_216.0,
        }
    )
    assert second.name == "matmul_kernel"
    assert "dram__bytes_write.sum" not in second.values  # n/a is absent and not 0
    assert second.values["gpu__time_duration.sum"] == 2000.0


def test_quantities_need_every_part() -> None:
    values = quantities(metric_set("GH100", "bf16"), ncu.parse(CSV)[0].values)
    assert values["l2_read_bytes"] == 536_870_912.0  # 16,777,216 sectors x 32 B = 512 MiB
    assert values["duration_ns"] == 260_500.0
    assert "l2_write_bytes" not in values


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("byte", 1.0),
        ("Kbyte", 1e3),
        ("Gbyte", 1e9),
        ("Tbyte/s", 1e12),
        ("ns", 1.0),
        ("nsecond", 1.0),
        ("ms", 1e6),
        ("s", 1e9),
        ("second", 1e9),
        ("sector", 1.0),
        ("inst", 1.0),
        ("GHz", 1e9),
        ("Hz", 1.0),
        ("%", 1.0),
        ("", 1.0),
    ],
)
def test_units(unit: str, factor: float) -> None:
    assert ncu.unit_factor(unit) == factor


@pytest.mark.parametrize(
    "text", ["", "==ERROR== nothing\n", '"ID","Kernel Name"\n', '"ID","Kernel Name"\n"",""\n']
)
def test_no_kernels_in_no_table(text: str) -> None:
    assert ncu.parse(text) == []


def test_the_command_line_leaves_clocks_alone_and_flushes_caches() -> None:
    line = ncu.command_line("ncu", ["a.sum", "b.max"], Path("log.csv"), ["python", "work.py"])
    assert " ".join(line) == (
        "ncu --clock-control none --cache-control all --profile-from-start off --target-processes all "
        "--metrics a.sum,b.max --csv --page raw --print-units base --log-file log.csv python work.py"
    )


def test_a_range_is_counted_whole_with_the_caches_of_the_command() -> None:
    line = ncu.command_line("ncu", ["a.sum"], Path("log.csv"), ["python", "work.py"], "range")
    assert line[1:7] == [
        *("--clock-control", "none"),
        *("--cache-control", "none"),
        "--replay-mode",
        "app-range",
    ]


def test_a_refusal_is_typed() -> None:
    denied = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    assert isinstance(ncu.refusal(denied), InsufficientPrivileges)
    busy = "==ERROR== Profiling failed because a driver resource was unavailable."
    assert isinstance(ncu.refusal(busy), ProfilerBusy)
    assert "No kernels were profiled" in ncu.refusal("==WARNING== No kernels were profiled.").reason


def test_a_missing_binary_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(CountersUnavailable, match="no ncu binary"):
        ncu.find_ncu([tmp_path / "ncu"])
    (tmp_path / "ncu").touch()
    assert ncu.find_ncu([tmp_path / "ncu"]) == str(tmp_path / "ncu")


def test_profiling_reads_the_log_that_the_binary_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "ncu"
    (tmp_path / "answer.csv").write_text(CSV)
    fake.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --log-file ]; do shift; done\ncp {tmp_path / "answer.csv"} "$2"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(ncu, "find_ncu", lambda: str(fake))
    kernels = ncu.collect(["python", "work.py"], metric_set("GH100", "bf16"))
    assert [kernel.name for kernel in kernels] == [
        "at::native::vectorized_elementwise_kernel",
        "matmul_kernel",
    ]
    assert kernels[1].values["l2_read_bytes"] == 384.0  # 12 sectors x 32 B
