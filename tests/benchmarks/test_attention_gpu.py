"""The children of `benchmarks/attention.py` on the CPU, with tiny workloads and a clock that counts."""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
knobs = pytest.importorskip("triton").knobs
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import attention_cases as cases  # noqa: E402
import attention_gpu as gpu  # noqa: E402

from perfkit.ops.attention_workload import AttentionWorkload  # noqa: E402


class Event:
    """The n-th recorded event is at n milliseconds."""

    count = itertools.count()

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = next(self.count)

    def elapsed_time(self, end):
        return float(end.at - self.at)


@pytest.fixture
def on_cpu(monkeypatch):
    def tiny(cell, pass_):
        return AttentionWorkload(
            heads=2, kv_heads=2, seq_q=32, seq_k=32, head_dim=cell.head_dim, causal=cell.causal, pass_=pass_
        )

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(cases.Cell, "workload", tiny)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("pass_", ["fwd", "bwd"])
def test_a_cell_of_the_timing(pass_, capsys):
    variant = {"fwd": "64-3p", "bwd": "64"}[pass_]
    job = {"pass": pass_, "cell": "64x2048c", "columns": ["standard", "nobody", "gathered", variant]}
    found = gpu.time_job(job, torch.empty(8), rounds=3)
    assert (found["pass"], found["cell"]) == (pass_, "64x2048c")
    # Nothing is recorded between start and end: 1 ms, whatever ran.
    timed = {"median_s": 1e-3, "quartiles_s": [1e-3, 1e-3], "rounds": 3, "kernels": []}
    assert found["columns"]["standard"] == timed
    assert found["errors"]["nobody"] == "perfkit has no implementation called nobody"
    assert found["errors"][variant]  # it needs a GPU
    assert ("gathered" in found["errors"]) == (pass_ == "bwd")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("@")] == [
        "@ inputs", "@ standard", "@ nobody", "@ gathered", f"@ {variant}", *["@ timing"] * 5
    ]  # fmt: skip
    assert json.loads(json.dumps(found)) == found


@pytest.mark.usefixtures("on_cpu")
def test_each_round_runs_every_call_once():
    ran = []
    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    samples = gpu.sample(calls, torch.empty(8), flushes=1, rounds=4)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = [ran[at : at + 3] for at in range(0, len(ran), 3)]
    assert len(rounds) == 4 + gpu.WARM_ROUNDS
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert rounds[1] == rounds[0][::-1]  # every second one goes backwards


@pytest.mark.usefixtures("on_cpu")
def test_warming_names_each_job(capsys):
    columns = {"fwd": ["standard", "nobody"], "bwd": ["standard"]}
    gpu.warm([{"pass": pass_, "cell": "64x2048f", "columns": names} for pass_, names in columns.items()])
    assert capsys.readouterr().out.splitlines() == [
        "! perfkit has no implementation called nobody",
        "warm fwd 64x2048f",
        "warm bwd 64x2048f",
    ]


@pytest.mark.usefixtures("on_cpu")
def test_what_torch_compiles_may_take_its_time(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "COMPILED", ("standard",))
    gpu.time_job({"pass": "fwd", "cell": "64x2048c", "columns": ["standard", "nobody"]}, torch.empty(8), 1)
    said = [line for line in capsys.readouterr().out.splitlines() if line[:2] in ("@ ", "wa", "! ")]
    assert said[:6] == ["@ inputs", "@ standard", "wait 180", "@ nobody", "wait 40", said[5]]
    assert said[5].startswith("! ")
    assert said[6:] == ["wait 40", *["@ timing"] * 3]


def test_triton_keeps_its_cache(monkeypatch):
    """torch's compiler sets TRITON_CACHE_DIR where it is not set."""
    seen = []
    monkeypatch.setattr(gpu, "warm", lambda _: seen.append(os.environ["TRITON_CACHE_DIR"]))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    expected = knobs.cache.dir
    gpu.serve({"do": "warm", "jobs": []})
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    gpu.serve({"do": "warm", "jobs": []})
    assert seen == [expected, "/elsewhere"]


def test_the_summary_of_samples():
    # Of 1 to 5: the middle is 3, and a quarter and three quarters of the way from first to last 2 and 4.
    assert gpu.summary([5.0, 1.0, 3.0, 2.0, 4.0]) == {"median_s": 3, "quartiles_s": [2, 4], "rounds": 5}
    assert gpu.summary([2.0]) == {"median_s": 2, "quartiles_s": [2, 2], "rounds": 1}


def test_a_reason_is_one_line_without_folders():
    assert gpu.reason(RuntimeError("no /opt/lib/a.so\nmore")) == "RuntimeError: no a.so"
    assert gpu.reason(ValueError("head dim 8: 16/8 a / b")) == "head dim 8: 16/8 a / b"
    assert gpu.reason(RuntimeError()) == "RuntimeError: "


@pytest.fixture
def few_problems(monkeypatch):
    few = [problem for problem in cases.CHECKS["bwd"] if problem.seq_q * problem.seq_k < 50_000]
    assert any(problem.away for problem in few)
    assert any(problem.causal and problem.seq_q > problem.seq_k for problem in few)
    monkeypatch.setitem(cases.CHECKS, "fwd", few)
    monkeypatch.setitem(cases.CHECKS, "bwd", few)


def right(q, k, v, causal, **_):
    out, lse = gpu.reference(q, k, v, causal)
    return out.to(q.dtype), lse


def other_mask(q, k, v, causal, **_):
    return right(q, k, v, not causal)


def poisoned(*given, **_):
    out, lse = right(*given)
    return out * float("nan"), lse


@pytest.mark.usefixtures("on_cpu", "few_problems")
@pytest.mark.parametrize(("forward", "expected"), [(right, True), (other_mask, False), (poisoned, False)])
def test_the_forward_check_tells_right_from_wrong(forward, expected, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "forward_of", lambda _: forward)
    assert gpu.check_forward("64-3p") == expected
    out = capsys.readouterr().out
    assert ("WRONG" not in out) == expected
    assert "worst error" in out


@pytest.mark.usefixtures("on_cpu", "few_problems")
@pytest.mark.parametrize(
    ("name", "other", "expected"), [("64", 0, True), ("64-det", 0, False), ("64", 1, False)]
)
def test_only_dq_may_differ_between_runs(name, other, expected, monkeypatch, capsys):
    """dQ, number 0, unless the variant is deterministic; dK and dV never."""
    count = itertools.count()

    def call(q, k, v, _out, _lse, dout, causal, **_):
        grads = list(gpu.gradients(q.float(), k.float(), v.float(), dout.float(), causal)[:3])
        grads[other] = grads[other] + 1e-6 * next(count)
        return grads

    monkeypatch.setattr(gpu, "backward_of", lambda _: call)
    assert gpu.check_backward(name) == expected
    assert ("two runs differ" in capsys.readouterr().out) != expected
