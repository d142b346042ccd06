"""Device profiles as tables for a terminal of 80 columns: all of them, or one with its sources."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perfkit.model.device import DeviceProfile, Figure, Peak
from perfkit.model.device_figures import LevelFigures, LevelName
from perfkit.model.units import Hint, show

_MARK = "*"
_FOOTNOTE = f"{_MARK} from memory: nobody has looked it up in its source yet"


def catalogue(profiles: Sequence[DeviceProfile]) -> RenderableType:
    """One line per profile: what a roofline needs first."""
    table = _table(
        "device",
        (
            "SMs",
            "boost\nMHz",
            "fp16\nTFLOP/s",
            "DRAM\nGB",
            "DRAM\nGB/s",
            "ridge\nFLOP/B",
            "L2\nMiB",
            "power\nW",
        ),
    )
    for profile in profiles:
        fp16, dram, l2 = profile.peak("fp16", "tensor"), profile.level("dram"), profile.level("l2")
        _row(
            table,
            profile.name + (_MARK if any(part.from_memory for part in profile.sourced()) else ""),
            str(profile.sm_count),
            _scaled(profile.boost_hz, 1e6),
            _scaled(fp16.flop_per_s if fp16 else None, 1e12),
            _scaled(dram.capacity_bytes, 1e9),
            _scaled(dram.bandwidth(), 1e9),
            _scaled(profile.ridge("fp16"), 1),
            _scaled(l2.capacity_bytes, 1 << 20),
            _scaled(profile.power_limit_w, 1),
        )
    note = Text(
        "\nfp16: dense tensor peak with fp32 accumulation. ridge: that over DRAM bandwidth.\n"
        f"{_MARK} has figures from memory. perfkit devices NAME shows one with its sources."
    )
    return Group(table, note)


def profile(device: DeviceProfile) -> RenderableType:
    """Everything in one profile, each number with its source and its mark."""
    heading = Text(f"{device.model} ({device.name})\n")
    heading.append(f"{device.architecture}, {device.chip}, compute capability {device.compute_capability}\n")
    if device.derived:
        heading.append("Derived from what the driver says: no profile describes this device.\n")
    peaks = _peaks(device) if device.peaks else "No peaks: the rates of this compute capability are unknown."
    sections: list[RenderableType] = [heading, _figures(device), "", peaks, "", _memory(device)]
    if device.interconnects:
        sections += ["", _interconnects(device)]
    sections += ["", "Sources", _sources(device.sources.items())]
    if any(part.from_memory for part in device.sourced()):
        sections += ["", _FOOTNOTE]
    return Group(*sections)


def _figures(device: DeviceProfile) -> Table:
    f = device.figures
    table = _table("figure", ("value",), "source")
    numbers: tuple[tuple[str, Figure[int] | Figure[float] | None, Hint], ...] = (
        ("SMs", f.sm_count, "count"),
        ("boost clock", f.boost_hz, "hertz"),
        ("clock of the tensor peaks", f.tensor_hz, "hertz"),
        ("exp per clock and SM", f.exp_per_clock_per_sm, "count"),
        ("threads per SM", f.max_threads_per_sm, "count"),
        ("power limit", f.power_limit_w, "watt"),
    )
    sizes = (
        ("registers per SM", f.registers_bytes_per_sm),
        ("shared memory per block", f.shared_bytes_per_block),
    )
    for label, figure, hint in numbers:
        if figure is not None:
            _row(table, label, _marked(show(figure.value, hint), figure.from_memory), figure.source)
    for label, size in sizes:
        _row(table, label, _marked(_binary(size.value), size.from_memory), size.source)
    return table


def _peaks(device: DeviceProfile) -> Table:
    table = _table("peak (dense)", ("TFLOP/s", "FLOP/\nclock/SM", "at\nMHz", "ridge\nFLOP/B"), "source")
    for peak in device.peaks:
        _row(
            table,
            peak.label,
            _marked(f"{peak.flop_per_s / 1e12:.4g}", peak.from_memory),
            str(peak.flop_per_clock_per_sm),
            _scaled(device.clock_hz(peak), 1e6),
            _scaled(device.ridge(peak.dtype), 1, 1) if _sets_ridge(device, peak) else "",
            peak.source,
        )
    return table


def _sets_ridge(device: DeviceProfile, peak: Peak) -> bool:
    return peak is (device.peak(peak.dtype, "tensor") or device.peak(peak.dtype, "vector"))


def _memory(device: DeviceProfile) -> Table:
    table = _table("memory", ("capacity", "bytes/\nclock", "GB/s\nat boost"), "source")
    m = device.memory
    levels: tuple[tuple[LevelName, LevelFigures | None], ...] = (
        ("dram", m.dram),
        ("infinity_cache", m.infinity_cache),
        ("l2", m.l2),
        ("shared", m.shared),
    )
    for name, figures in levels:
        if figures is None:
            continue
        level = device.level(name)
        size = show(level.capacity_bytes, "bytes") if name == "dram" else _binary(level.capacity_bytes)
        _row(
            table,
            name + (" (capacity per SM)" if name == "shared" else ""),
            _marked(size, figures.capacity_bytes.from_memory),
            _scaled(level.bytes_per_clock, 1),
            _marked(_scaled(level.bandwidth(), 1e9), any(rate.from_memory for rate in figures.rates)),
            _level_source(figures),
        )
    return table


def _level_source(figures: LevelFigures) -> str:
    """The sources of capacity and bandwidth, once each."""
    keys = [figures.capacity_bytes.source, *(rate.source for rate in figures.rates)]
    return ", ".join(dict.fromkeys(keys))


def _interconnects(device: DeviceProfile) -> Table:
    table = _table("link", ("GB/s, both\ndirections",), "source")
    for link in device.interconnects:
        _row(table, link.name, _marked(_scaled(link.bytes_per_s, 1e9), link.from_memory), link.source)
    return table


def _sources(citations: Iterable[tuple[str, str]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for key, citation in citations:
        _row(grid, key, citation)
    return Padding(grid, (0, 0, 0, 2))


def _row(table: Table, *cells: str) -> None:
    """A row of plain text: names and keys come from users' files and are not markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _table(first: str, numbers: Sequence[str], *rest: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True, vertical="bottom")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for name in rest:
        table.add_column(name, vertical="bottom")
    return table


def _marked(text: str, from_memory: bool) -> str:
    return text.rstrip() + (_MARK if from_memory else " ")


def _scaled(value: float | None, unit: float, digits: int = 0) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def _binary(value: int) -> str:
    """On-chip capacities are powers of two: KiB, or MiB from 1 MiB."""
    return f"{value / (1 << 20):.4g} MiB" if value >= 1 << 20 else f"{value / 1024:.4g} KiB"
