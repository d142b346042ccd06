"""What is imported when, in fresh interpreters, and which way imports point, read from the source."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "triton", "plotly", "pandas", "pynvml", "numpy", "matplotlib")

CLI = """
import sys
from perfkit.cli import main
sys.argv = ["perfkit", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded_after(code: str, cwd: Path) -> list[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`; what it prints is dropped."""
    program = f"""
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), contextlib.redirect_stderr(io.StringIO()):
    exec({code!r}, {{}})
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import perfkit.analysis.study",
        "import perfkit.cli.app, perfkit.measure.session, perfkit.measure.choose",
        CLI.format(arguments=["--help"]),
        CLI.format(arguments=["roofline", "--help"]),
        CLI.format(arguments=["devices", "t4"]),
    ],
    ids=["analysis", "app", "help", "roofline-help", "devices"],
)
def test_nothing_heavy_is_loaded(code: str, tmp_path: Path) -> None:
    assert loaded_after(code, tmp_path) == []


def test_a_modelled_report_and_its_rendering_load_nothing_heavy(tmp_path: Path) -> None:
    """No driver is pretended, so that a machine with a GPU models too. NVML may be asked for its name."""
    arguments = ["roofline", "--device", "t4", "--dtype", "fp16", "--json", "r.json", "--csv", "r.csv"]
    code = "import perfkit.measure.choose as c\nc.gpu_driver_present = lambda: False\n"
    code += CLI.format(arguments=arguments)
    assert set(loaded_after(code, tmp_path)) <= {"pynvml"}
    assert (tmp_path / "r.json").stat().st_size > 0
    assert (tmp_path / "r.csv").stat().st_size > 0
    assert loaded_after(CLI.format(arguments=["show", "r.json"]), tmp_path) == []


# Directions. Each layer may import itself and those to its left; `kernels` is a leaf.

LAYERS = {
    "model": {"errors"},
    "ops": {"errors", "model", "kernels"},
    "record": {"errors", "model", "ops"},
    "analysis": {"errors", "model", "ops", "record"},
    "measure": {"errors", "model", "ops", "record", "kernels", "profiles", ""},
    "reports": {"errors", "model", "ops", "record", "analysis"},
    "kernels": set[str](),
}
#: Types only, behind TYPE_CHECKING: what the doctor finds is measured, and its renderer names the types.
TYPES_ONLY = {("reports/doctor.py", "measure")}


def layer_files(layer: str) -> list[Path]:
    if layer == "record":
        return [ROOT / "perfkit" / "record.py"]
    folder = ROOT / layer if layer in ("kernels", "reports") else ROOT / "perfkit" / layer
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """(layer of perfkit, whether only for types) of every import in a file, those in functions included."""
    yield from _walk(ast.parse(path.read_text()), types=False)


def _walk(node: ast.AST, types: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _names(part, types=True)
            continue
        yield from _names(child, types)
        yield from _walk(child, types)


def _names(node: ast.AST, types: bool) -> Iterator[tuple[str, bool]]:
    modules: list[str] = []
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        modules = [node.module]
        if node.module == "perfkit":
            modules = [f"perfkit.{alias.name}" for alias in node.names]
    for module in modules:
        top, _, rest = module.partition(".")
        if top == "perfkit":
            yield rest.split(".")[0].replace("__version__", ""), types


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    files = layer_files(layer)
    assert files
    wrong = set()
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        for target, types in imported(path):
            allowed = target == layer or target in LAYERS[layer] or (types and (name, target) in TYPES_ONLY)
            if not allowed:
                wrong.add(f"{name} imports perfkit.{target}")
    assert wrong == set()


def test_every_exception_is_still_needed() -> None:
    for name, target in TYPES_ONLY:
        assert (target, True) in set(imported(ROOT / name))


def test_ops_reach_no_kernel_but_tables_of_tiles_and_spans() -> None:
    """Implementations are lazy targets: importing an op imports neither torch nor a kernel."""
    for path in layer_files("ops"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and "kernels" in (node.module or ""):
                names = {alias.name for alias in node.names}
                tables = node.module == "perfkit.kernels.attention" and names == {"tiles"}
                assert tables or node.module == "perfkit.kernels.attention.spans"


def test_cli_modules_do_no_arithmetic_with_torch() -> None:
    for path in sorted((ROOT / "perfkit" / "cli").glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names: list[Any] = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            assert not {str(name).split(".")[0] for name in names} & set(HEAVY), path.name
