"""`benchmarks/attention.py` without a GPU: rungs, tables, the record, and what passes between processes."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import attention
import attention_cases as cases
import attention_compile as compiling

from perfkit.kernels.attention.tiles import (
    hopper_backward_tile,
    hopper_tile,
)


@pytest.mark.parametrize(
    ("pass_", "ours", "baseline", "published", "expected"),
    [
        ("fwd", 399, 400, 461, 0),  # 0.9975x
        ("fwd", 400, 400, 461, 2),  # forward the first rung is the second
        ("fwd", 461, 400, 461, 3),
        ("fwd", 465, 470, 461, 0),
        ("fwd", 470, 470, 461, 3),  # cuDNN is the better of the two
        ("bwd", 359, 400, 456, 0),  # 0.8975x
        ("bwd", 360, 400, 456, 1),
        ("bwd", 399, 400, 456, 1),
        ("bwd", 455, 400, 456, 2),
        ("bwd", 456, 400, 456, 3),
        ("bwd", 900, 400, None, 2),  # no published figure to be better than
        ("fwd", None, 400, 461, None),
        ("fwd", 400, None, 461, None),
    ],
)
def test_rung(pass_, ours, baseline, published, expected):
    assert attention.rung(pass_, ours, baseline, published) == expected


def timed(median_s, low=None, high=None):
    """A column as a child reports it."""
    return {
        "median_s": median_s,
        "quartiles_s": [low or median_s, high or median_s],
        "rounds": 3,
        "kernels": [],
    }


def test_rates_by_convention():
    # 4 N^2 d h B = 4 * 2048^2 * 64 * 32 * 8 = 274_877_906_944; in 0.5 ms 549.76 TFLOP/s.
    found = {"asked": ["flash"], "columns": {"flash": timed(0.5e-3)}, "errors": {}}
    full = attention.completed({"pass": "fwd", "cell": "64x2048f", **found})
    assert (full["batch"], full["heads"], full["flops"]) == (8, 32, 274_877_906_944)
    assert full["columns"]["flash"]["tflops"] == pytest.approx(549.755813888)
    # Causal half of it. d 128 has half the heads, and N 16384 an eighth of the batch for 8^2 of the pairs.
    assert attention.completed({"pass": "fwd", "cell": "64x2048c", **found})["flops"] == 137_438_953_472
    assert attention.completed({"pass": "fwd", "cell": "128x16384f", **found})["flops"] == 8 * 274_877_906_944
    # Five products instead of two.
    assert attention.completed({"pass": "bwd", "cell": "64x2048f", **found})["flops"] == 687_194_767_360


@pytest.mark.parametrize(
    ("cell", "batch", "heads", "flops"),
    [
        # 4 * 8192^2 * d * h * B, times 2.5: heads as whole ones, the largest number with d * h <= 2048
        ("192x8192f", 2, 10, 10 * 8192**2 * 192 * 10 * 2),
        ("96x8192f", 2, 21, 10 * 8192**2 * 96 * 21 * 2),
        ("256x8192c", 2, 8, 5 * 8192**2 * 256 * 8 * 2),
        ("512x32768f", 1, 4, 10 * 32768**2 * 512 * 4),
    ],
)
def test_cells_of_other_head_dims(cell, batch, heads, flops):
    made = attention.completed(
        {"pass": "bwd", "cell": cell, "asked": [], "errors": {}, "columns": {"flash": timed(1e-3)}}
    )
    assert (made["batch"], made["heads"], made["flops"]) == (batch, heads, flops)
    assert made["columns"]["flash"]["tflops"] == pytest.approx(flops / 1e9)
    # Nothing is published of them: no third rung, and no rung at all without cuDNN.
    assert attention.ends(made)[:3] == ["-", "-", "-"]


def test_published_figures_are_in_the_order_of_the_cells():
    at = {(pass_, str(cell)): rate for (pass_, cell), rate in cases.PUBLISHED.items()}
    assert len(at) == 16
    assert [at["fwd", cell] for cell in ("64x2048f", "64x2048c", "64x16384f", "64x16384c")] == [
        461,
        347,
        530,
        452,
    ]
    assert [at["fwd", cell] for cell in ("128x2048f", "128x16384c")] == [590, 591]
    assert [at["bwd", cell] for cell in ("64x2048f", "64x16384c", "128x2048c", "128x16384f")] == [
        456,
        505,
        447,
        604,
    ]


def test_the_whole_table():
    # 274.88 GFLOP: 0.5 ms 550, 0.625 ms 440, 0.55 ms 500; the quartiles are 0.01 of 0.5 ms apart: 2 %.
    # Causal 137.44 GFLOP: 0.4 ms 344.
    columns = {
        "sdpa-cudnn": timed(0.625e-3),
        "64-3p": timed(0.55e-3),
        "flash": timed(0.5e-3, 0.495e-3, 0.505e-3),
    }
    cells = [
        attention.completed({**found, "asked": ["flash", "sdpa-cudnn", "flex", "64-3p"]})
        for found in (
            {"pass": "fwd", "cell": "64x2048f", "columns": columns, "errors": {"flex": "no"},
             "power_w": 688.4, "sm_clock_hz": 1.5e9},
            {"pass": "fwd", "cell": "64x2048c", "columns": {"flash": timed(0.4e-3)},
             "errors": {"sdpa-cudnn": "hung", "flex": "no"}},
        )
    ]  # fmt: skip
    assert cells[0]["columns"]["64-3p"]["tile"]["groups"] == 3
    assert attention.tables(cells).splitlines()[:7] == [
        "",
        "forward, d 64",
        "cell      flash  sdpa-cudnn  flex  64-3p  ratio  FA4*  rung  spread   MHz    W",
        "64x2048f    550         440     -    500  1.250   461     3    2.0%  1500  688",
        "64x2048c    344           -     -      -      -   347     -    0.0%     -    -",
        "",
        "- flex: no (everywhere)",
    ]
    assert attention.tables(cells).splitlines()[7] == "- sdpa-cudnn: hung (fwd 64x2048c)"


def test_a_variant_is_of_one_pass_and_one_head_dim():
    cells = [cases.Cell(64, 2048, False), cases.Cell(128, 2048, True)]
    jobs = attention.jobs_of(["bwd", "fwd"], cells, ["flash", "64-3p", "128-2", "64", "128-det"])
    assert [(job["pass"], job["cell"], job["columns"]) for job in jobs] == [
        ("fwd", "64x2048f", ["flash", "64-3p"]),
        ("fwd", "128x2048c", ["flash", "128-2"]),
        ("bwd", "64x2048f", ["flash", "64"]),
        ("bwd", "128x2048c", ["flash", "128-det"]),
    ]


def test_variants_are_tiles_and_those_of_the_table_are_among_them():
    forward = [(one.head_dim, one.tile) for one in cases.FORWARD.values()]
    backward = [(one.head_dim, one.deterministic, one.tile) for one in cases.BACKWARD.values()]
    assert len(set(forward)) == len(forward)
    assert len(set(backward)) == len(backward)
    dims = (64, 96, 128, 192, 256)
    assert {(d, hopper_tile(d, causal)) for d in dims for causal in (False, True)} <= set(forward)
    assert {
        (d, det, hopper_backward_tile(d, causal, det))
        for d in (64, 128, 192, 256) for causal in (False, True)
        for det in ((False, True) if d <= 128 else (False,))
    } <= set(backward)  # fmt: skip


def test_default_columns_are_ours_and_the_peers_of_the_op():
    columns = cases.default_columns()
    assert columns[:4] == ["flash", "flash-triton", "flash-hopper", "sdpa-cudnn"]
    assert {"sdpa-flash", "sdpa-efficient", "flex"} < set(columns)
    # On the CPU, N x N in memory, a cache, the oracle.
    assert not {"sdpa", "sdpa-math", "gathered", "reference"} & set(columns)


def test_options():
    asked = attention.parsed(
        ["time", "--pass", "bwd", "--cells", "128x2048c", "--impl", "flash,flex", "--tiles", "all"]
    )
    assert (asked.passes, asked.cells, asked.impl) == (
        ["bwd"],
        [cases.Cell(128, 2048, True)],
        ["flash", "flex"],
    )
    assert asked.tiles == list(cases.BACKWARD)
    assert attention.parsed(["check"]).tiles == [*cases.FORWARD, *cases.BACKWARD]
    assert attention.parsed(["time"]).tiles == []
    assert len(attention.parsed(["time"]).cells) == 8
    assert attention.parsed(["time", "--without", "flex"]).without == ["flex"]


def test_rows_can_be_left_out(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sys, "argv", ["attention.py", "time", "--without", "flex,flash", "--pass", "fwd"])
    monkeypatch.setattr(attention, "warm_all", lambda jobs, _: asked.extend(jobs) or {})
    monkeypatch.setattr(attention, "time_all", lambda *_: None)
    attention.main()
    rest = [name for name in cases.default_columns() if name not in ("flex", "flash")]
    assert [job["columns"] for job in asked] == [rest] * 8
    assert "compiled in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["time", "--cells", "64x2048"], "'64x2048' is no cell"),
        (["time", "--cells", "0x2048f"], "'0x2048f' is no cell"),
        (["time", "--cells", "64x0c"], "'64x0c' is no cell"),
        (["time", "--cells", "2048x64c"], "head-dim is the width of one head, at most 1024"),
        (["time", "--impl", "flash", "--without", "flex"], "not among the rows: flex"),
        (["time", "--pass", "fwd", "--tiles", "64-det"], "no such variant: 64-det"),
        (["check", "--pass", "sideways"], "no such pass: sideways"),
        (["time", "--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_bad_options_are_refused(argv, said, capsys):
    with pytest.raises(SystemExit):
        attention.parsed(argv)
    assert said in capsys.readouterr().err


class FakeChildren:
    """Children that say what a test wants, in turn: each a list of lines, and whether it then hangs."""

    def __init__(self, *scripts):
        self.scripts, self.requests = list(scripts), []

    def __call__(self, request):
        self.requests.append(request)
        lines, hung = self.scripts.pop(0)
        return SimpleNamespace(lines=lambda: iter(lines), hung=hung)


class FakeCompilers:
    """Children that compile, and say what a test wants of their column, pass and first cell."""

    def __init__(self, scripts):
        self.scripts, self.requests = scripts, []

    def __call__(self, request):
        assert request["do"] == "warm"
        self.requests.append(request["jobs"])
        first = request["jobs"][0]
        lines, hung = self.scripts[first["columns"][0], first["pass"], first["cell"]]
        return SimpleNamespace(lines=lambda _=None: iter(lines), hung=hung)


def cell_line(pass_, cell, *columns, **errors):
    found = {
        "pass": pass_,
        "cell": cell,
        "columns": {name: timed(1e-3) for name in columns},
        "errors": errors,
    }
    return "cell " + json.dumps(found)


def test_a_hang_costs_a_column_and_a_crash_elsewhere_a_cell(monkeypatch, tmp_path, capsys):
    jobs = attention.jobs_of(["fwd", "bwd"], [cases.Cell(64, 2048, False)], ["flash", "sdpa-cudnn", "64-3p"])
    jobs.append({**jobs[1], "cell": "64x2048c"})
    environment = 'environment {"torch": "2.11"}'
    children = FakeChildren(
        ([environment, "@ inputs", "@ flash", "! ValueError", "@ 64-3p"], True),
        ([environment, "@ inputs", "@ flash", cell_line("fwd", "64x2048f", "flash", peer="no module"),
          "@ inputs", "@ timing", "at /root/here/x.py", "Error in /usr/lib/torch/x.py"], False),
        ([environment, "@ inputs", "@ timing", cell_line("bwd", "64x2048c", "flash", "sdpa-cudnn")], False),
    )  # fmt: skip
    monkeypatch.setattr(attention, "Child", children)
    report = attention.Report(3, tmp_path / "record.json")
    attention.time_all(jobs, 3, {("flash", "fwd", "64x16384f"): "never asked for"}, report)
    asked = [[(job["cell"], job["columns"]) for job in request["jobs"]] for request in children.requests]
    assert asked[0][0] == ("64x2048f", ["flash", "sdpa-cudnn", "64-3p"])
    assert asked[1][0] == ("64x2048f", ["flash", "sdpa-cudnn"])  # without the one that hung
    assert asked[2] == [("64x2048c", ["flash", "sdpa-cudnn"])]  # the second cell was given up
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["environment"] == {"torch": "2.11"}
    assert [(cell["pass"], cell["cell"], cell["errors"]) for cell in record["cells"]] == [
        ("fwd", "64x2048f", {"peer": "no module", "64-3p": "hung (in fwd 64x2048f)"}),
        ("bwd", "64x2048f", dict.fromkeys(["flash", "sdpa-cudnn"], "stopped: Error in x.py")),
        ("bwd", "64x2048c", {}),
    ]
    assert "fwd 64x2048f at 64-3p: hung" in capsys.readouterr().out


def test_children_that_never_begin_end_the_timing(monkeypatch, capsys):
    jobs = attention.jobs_of(["fwd"], [cases.Cell(64, 2048, False), cases.Cell(64, 2048, True)], ["flash"])
    monkeypatch.setattr(attention, "Child", FakeChildren((["ImportError: no torch"], False)))
    report = attention.Report(3)
    attention.time_all(jobs, 3, {}, report)
    assert [cell["errors"] for cell in report.cells] == [{"flash": "stopped: ImportError: no torch"}] * 2
    assert "at the start" in capsys.readouterr().out


def test_a_column_may_be_lost_in_one_cell(monkeypatch):
    jobs = attention.jobs_of(["fwd"], [cases.Cell(64, 2048, causal) for causal in (False, True)], ["a", "b"])
    children = FakeChildren(
        ([cell_line("fwd", "64x2048f", "a"), "@ inputs", "@ b"], True),
        ([cell_line("fwd", "64x2048c", "a")], False),
    )
    monkeypatch.setattr(attention, "Child", children)
    report = attention.Report(3)
    attention.time_all(jobs, 3, {("b", "fwd", "64x2048f"): "not compiled"}, report)
    asked = [[job["columns"] for job in request["jobs"]] for request in children.requests]
    assert asked == [[["a"], ["a", "b"]], [["a"]]]
    assert [cell["errors"] for cell in report.cells] == [
        {"b": "not compiled"}, {"b": "hung (in fwd 64x2048c)"}
    ]  # fmt: skip


def test_who_hangs_while_compiling_is_not_timed(monkeypatch):
    jobs = attention.jobs_of(["fwd", "bwd"], [cases.Cell(64, 2048, False)], ["flash", "sdpa-cudnn", "64-3p"])
    children = FakeCompilers(
        {
            ("flash", "fwd", "64x2048f"): (["warm fwd 64x2048f"], True),
            ("64-3p", "fwd", "64x2048f"): (["! no GPU", "warm fwd 64x2048f"], False),
        }
    )
    monkeypatch.setattr(compiling, "Child", children)
    why = "hung while it was compiled for bwd 64x2048f"
    assert compiling.warm_all(jobs) == {("flash", pass_, "64x2048f"): why for pass_ in ("fwd", "bwd")}
    warmed = [[(job["pass"], job["columns"]) for job in request] for request in children.requests]
    assert sorted(warmed) == [
        [("fwd", ["64-3p"])],
        [("fwd", ["flash"]), ("bwd", ["flash"])],
    ]  # cuDNN compiles nothing


def test_a_peer_is_compiled_for_each_cell_and_pass(monkeypatch, capsys):
    jobs = attention.jobs_of(["fwd", "bwd"], [cases.Cell(64, 2048, c) for c in (False, True)], ["flex"])
    children = FakeCompilers(
        {
            ("flex", "fwd", "64x2048f"): (["a warning", "warm fwd 64x2048f"], False),
            ("flex", "fwd", "64x2048c"): (["! InductorError: too large", "warm fwd 64x2048c"], False),
            ("flex", "bwd", "64x2048f"): (["a warning"], True),
            ("flex", "bwd", "64x2048c"): (["Traceback", "Killed in /usr/lib/torch/x.py"], False),
        }
    )
    monkeypatch.setattr(compiling, "Child", children)
    monkeypatch.setattr(compiling, "COMPILERS", 1)
    assert compiling.warm_all(jobs, limit_s=90) == {
        ("flex", "fwd", "64x2048c"): "InductorError: too large",
        ("flex", "bwd", "64x2048f"): "not compiled within 90 s",
        ("flex", "bwd", "64x2048c"): "stopped: Killed in x.py",
    }
    # Backward takes longest and goes first.
    assert [(job["pass"], job["cell"]) for (job,) in children.requests] == [
        ("bwd", "64x2048c"), ("bwd", "64x2048f"), ("fwd", "64x2048c"), ("fwd", "64x2048f")
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "flex bwd 64x2048c: stopped: Killed in x.py (1 of 4, 0 s)",
        "flex bwd 64x2048f: not compiled within 90 s (2 of 4, 0 s)",
        "flex fwd 64x2048c: InductorError: too large (3 of 4, 0 s)",
        "flex fwd 64x2048f: compiled (4 of 4, 0 s)",
    ]


def test_nothing_is_begun_after_the_limit(monkeypatch):
    jobs = attention.jobs_of(["fwd"], [cases.Cell(64, 2048, False)], ["flex"])
    monkeypatch.setattr(compiling, "Child", FakeCompilers({}))  # it knows nobody
    assert compiling.warm_all(jobs, 0) == {("flex", "fwd", "64x2048f"): "not compiled within 0 s"}


def test_a_check_is_right_only_if_it_says_so(monkeypatch, capsys):
    right = ["ok    a", "64-3p worst error / torch's 0.9", "done 64-3p"]
    children = FakeChildren((right, False), (["WRONG", "wrong 64"], False), (["ok"], True))
    monkeypatch.setattr(attention, "Child", children)
    assert attention.check_all(["64-3p", "64", "128"]) == ["64-3p"]
    assert capsys.readouterr().out.splitlines() == [
        *["== 64-3p: right", "64-3p worst error / torch's 0.9"],
        *["== 64: FAILED", "WRONG", "wrong 64"],
        *["== 128: HUNG", "ok"],
    ]


def test_a_child_that_falls_silent_is_killed(monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "PATIENCE_S", 0.2)
    script = tmp_path / "script.py"
    script.write_text("import sys, time\nprint(sys.argv[1:])\nprint('@ here')\ntime.sleep(60)\n")
    child = cases.Child({"do": "time"}, script)
    assert list(child.lines()) == ["['--child', '{\"do\": \"time\"}']", "@ here"]
    assert child.hung
    assert child.process.wait(10) < 0


def child_of(tmp_path, *statements):
    script = tmp_path / "script.py"
    script.write_text("\n".join(["import os, time", *statements]))
    return cases.Child({}, script)


def test_a_child_may_ask_for_patience_and_give_it_back(monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "PATIENCE_S", 0.2)
    asks = ["print('@ flex')", "print('wait 30')", "print('a warning')", "time.sleep(1)", "print('ready')"]
    child = child_of(tmp_path, *asks, "print('wait 1')", "time.sleep(60)")
    assert list(child.lines()) == ["@ flex", "a warning", "ready"]
    assert child.hung
    assert child.process.wait(10) < 0


def test_a_child_with_a_limit_may_be_silent_until_then(monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "PATIENCE_S", 0.1)
    statements = ["print('one')", "time.sleep(0.5)", "print('two')"]
    child = child_of(tmp_path, *statements)
    assert list(child.lines(time.monotonic() + 60)) == ["one", "two"]
    assert not child.hung
    child = child_of(tmp_path, *statements, "time.sleep(60)")
    began = time.monotonic()
    assert list(child.lines(began + 3)) == ["one", "two"]
    assert child.hung
    assert 3 <= time.monotonic() - began < 30


def test_torch_compiles_within_a_child(monkeypatch, tmp_path):
    statement = "print(os.environ['TORCHINDUCTOR_COMPILE_THREADS'])"
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    assert list(child_of(tmp_path, statement).lines()) == ["1"]
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    assert list(child_of(tmp_path, statement).lines()) == ["3"]


def test_a_child_that_ends_has_not_hung(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('one')\nsys.exit('two')\n")
    child = cases.Child({}, script)
    assert list(child.lines()) == ["one", "two"]
    assert (child.hung, child.process.returncode) == (False, 1)
