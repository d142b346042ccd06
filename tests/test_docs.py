"""The documentation against the code: fields, tags, options, links, extras."""

import re
import tomllib
from pathlib import Path

import pytest
import typer

from perfkit.analysis import io_check
from perfkit.analysis.metrics import METRICS
from perfkit.analysis.placement import ROOF_TOLERANCE
from perfkit.cli.app import app
from perfkit.measure.options import Options
from perfkit.measure.stopping import StoppingRule
from perfkit.model import cache
from perfkit.model.roofline import LAUNCH_S
from perfkit.model.units import UNITS
from perfkit.ops import OPS
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import KernelUse
from perfkit.record import (
    QUANTITIES,
    SCHEMA,
    Environment,
    KernelCounts,
    Number,
    Provenance,
    Record,
    Run,
    Status,
    Timing,
)

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
RECORD = (ROOT / "docs/record.md").read_text()
CLI = (ROOT / "docs/cli.md").read_text()
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("row", [*QUANTITIES, *METRICS], ids=lambda row: row.tag)
def test_every_tag_has_its_row_with_unit_and_meaning(row):
    assert f"| `{row.tag}` | {UNITS[row.hint]} | {row.description} |" in RECORD


@pytest.mark.parametrize(
    "struct", [Record, Run, Number, Timing, Environment, KernelCounts, KernelUse, AttentionWorkload]
)
def test_every_field_of_a_record_is_explained(struct):
    assert [name for name in struct.__struct_encode_fields__ if f"`{name}`" not in RECORD] == []


def test_schema_statuses_and_provenances_are_explained():
    words = [SCHEMA, *Status.__args__, *Provenance.__args__]
    assert [word for word in words if f"`{word}`" not in RECORD] == []


def options(command):
    """All option names of a command, --no- forms included."""
    found = typer.main.get_command(app).commands[command].params
    return [name for one in found for name in (*one.opts, *one.secondary_opts) if name.startswith("--")]


WITH_OPTIONS = ("roofline", "compare", "show", "report", "gate", "io", "reproduce", "cache")


@pytest.mark.parametrize("command", [*WITH_OPTIONS, "devices", "models", "doctor"])
def test_every_option_is_explained(command):
    assert f"## perfkit {command}\n" in CLI
    assert [name for name in options(command) if f"`{name}`" not in CLI] == []


def test_no_option_is_explained_that_does_not_exist():
    known = {"--help", "--version"} | {name for command in WITH_OPTIONS for name in options(command)}
    assert set(re.findall(r"`(--[a-z-]+)", CLI)) <= known


def test_defaults_are_those_of_the_command():
    for one in typer.main.get_command(app).commands["roofline"].params:
        if isinstance(one.default, (str, float)) and not isinstance(one.default, bool):
            assert f"| `{one.opts[0]}` | {one.default} |" in CLI


def test_every_implementation_is_listed():
    assert [row.name for op in OPS for row in op.implementations if f"`{row.name}`" not in CLI] == []


def anchors(text):
    """The anchors that the headings of a page get."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there.read_text()), f"{page.name}: {target}"


def test_every_guide_is_linked_from_the_readme():
    assert [page.name for page in ROOT.glob("docs/*.md") if f"(docs/{page.name})" not in README] == []


def between(name):
    """The lines of the README's block `name`, without the fence."""
    block = README.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]
    return [line for line in block.splitlines() if line and not line.startswith("```")]


@pytest.mark.parametrize(("name", "extras"), [("main", {"measure"}), ("tests", {"measure", "dev"})])
def test_readme_has_one_line_that_installs_extras_that_exist(name, extras):
    (line,) = between(name)
    (named,) = re.findall(r"-e '\.\[([a-z,]+)\]'", line)
    assert set(named.split(",")) == extras
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras <= project["optional-dependencies"].keys()


def test_every_extra_named_anywhere_exists():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    for page in PAGES:
        for named in re.findall(r"'(?:\.|perfkit)\[([a-z,]+)\]'", page.read_text()):
            assert set(named.split(",")) <= known, page.name


def percent(share):
    return f"{share * 100:g} %"


def test_tolerances_are_those_of_the_code():
    text = (ROOT / "docs/io-check.md").read_text()
    slack = f"{io_check.SLACK_BYTES >> 20} MiB"
    for check, within in {
        "SM<->L2 read, write = IO model": percent(io_check.L2_TOLERANCE),
        "DRAM read, write = IO model": f"{percent(io_check.DRAM_ALGORITHM_TOLERANCE)}, or {slack}",
        "tile height from counter": percent(io_check.L2_TOLERANCE),
        "DRAM read = L2 model": f"{percent(io_check.DRAM_MODEL_TOLERANCE)}, or {slack}",
        "tensor FLOPs = tiles": percent(io_check.FLOPS_TOLERANCE),
    }.items():
        assert re.search(rf"^\| {check} \| .* \| {within} \|$", text, re.MULTILINE), check
    assert f"at most {percent(cache.RESIDENT)} of L2" in text
    assert f"take {percent(cache.LOST)} or more" in text


def test_constants_of_roofline_and_timing_are_those_of_the_code():
    report = (ROOT / "docs/roofline.md").read_text()
    assert f"{LAUNCH_S * 1e6:g} us for each kernel" in report
    assert f"by more than {percent(ROOF_TOLERANCE)}" in report
    measuring = " ".join((ROOT / "docs/measuring.md").read_text().split())
    rule = StoppingRule()
    assert f"at least {rule.min_samples} samples and {rule.min_time_s:g} s of sample time" in measuring
    assert f"below {percent(rule.half_width)} of the median" in measuring
    assert Options().limit_s == 3 and "seconds (3 by default)" in measuring  # noqa: PT018


def test_readme_has_a_picture():
    (path,) = re.findall(r"!\[[^]]+\]\(([^)]+\.png)\)", README)
    assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


def test_the_changelog_knows_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
