"""What is shipped: sdist and wheel, the wheel installed, a bare checkout, and a machine without typer."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = (
    ".git",
    ".venv*",
    ".*_cache",
    ".whl",
    ".out",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    "shared",
)

BLOCK_TYPER = """
import sys

class NoTyper:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "typer":
            raise ModuleNotFoundError("No module named 'typer'", name="typer")

sys.meta_path.insert(0, NoTyper())
"""


def run(*arguments, cwd, path=""):
    """This interpreter with these arguments; nothing of the surrounding PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the tree, links as links, so that building leaves nothing behind."""
    copy = tmp_path_factory.mktemp("checkout") / "perfkit"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


@pytest.fixture(scope="module")
def built(checkout):
    """The folder with an sdist and with the wheel that was made from it."""
    pytest.importorskip("build")
    done = run("-m", "build", "--no-isolation", "--outdir", checkout / "dist", cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "dist"


def names_in_wheel(built):
    (wheel,) = built.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_has_kernels_profiles_and_reports_below_perfkit(built):
    names = set(names_in_wheel(built))
    for folder in ("kernels", "profiles", "reports"):
        kept = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".toml")]
        assert kept
        assert {f"perfkit/{path.relative_to(ROOT).as_posix()}" for path in kept} <= names
    assert {"perfkit/kernels/attention/flash.py", "perfkit/ops/models.toml"} <= names


def test_the_wheel_has_every_module_of_the_engine_and_nothing_at_top_level(built):
    names = names_in_wheel(built)
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "perfkit").glob("*/*.py")]
    assert set(modules) <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert [top for top in tops if not top.endswith(".dist-info")] == ["perfkit"]
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_has_tests_and_documentation(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "docs/record.md",
        "tests/conftest.py",
        "tests/golden/devices.txt",
    } <= names
    assert {"LICENSE", ".ci/run", "perfkit/profiles/t4.toml"} <= names


def test_the_installed_wheel_runs(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "target"
    done = run(
        "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    where = run("-c", "import perfkit; print(perfkit.__file__)", cwd=tmp_path, path=target)
    assert where.stdout.strip() == str(target / "perfkit/__init__.py")
    listed = run("-m", "perfkit", "devices", cwd=tmp_path, path=target)
    assert listed.returncode == 0, listed.stderr
    assert "h200-141gb-sxm" in listed.stdout


def test_a_bare_checkout_runs(checkout):
    done = run("-m", "perfkit", "roofline", "--device", "t4", "--dtype", "fp16", "--seq", "4k", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("attention on NVIDIA T4\n")
    assert "MODELLED: no number here was measured" in done.stdout


def test_without_typer_it_says_so_and_exits_with_3(checkout, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK_TYPER)
    done = run("-m", "perfkit", "roofline", cwd=checkout, path=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: typer is not installed, and the command line needs it\nhint:  ")
