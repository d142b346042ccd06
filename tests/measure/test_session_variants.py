"""Implementations that run a workload of their own where another is asked for, compared as one case."""

from perfkit.analysis.comparison import compare, workloads
from perfkit.analysis.study import study
from perfkit.measure.model_backend import ModelBackend
from perfkit.measure.session import refusal, run_session
from perfkit.model.catalogue import load
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Record


def record() -> Record:
    op = find_op("decode-attention")
    rows = [row for name in ("mha", "gqa", "mqa") if (row := op.implementation(name))]
    w = AttentionWorkload(heads=32, kv_heads=32, seq_q=1, seq_k=16384, head_dim=128)
    backend = ModelBackend(load("h200-141gb-sxm"), "no GPU")
    return run_session(op, [w], rows, backend, lambda *_: None, baseline="mha")


def test_each_run_has_its_own_workload_and_says_so() -> None:
    runs = record().runs
    assert [run.workload.kv_heads for run in runs] == [32, 8, 1]
    assert [run.asked is None for run in runs] == [True, False, False]
    assert {run.setting for run in runs} == {runs[0].workload}
    assert runs[2].notes == ("runs its own workload: kv_heads 1 for 32",)


def test_they_are_one_group_of_a_comparison() -> None:
    subject = study(record())
    assert len(workloads(subject)) == 1
    (group,) = compare(subject, "mha", 0.01).groups
    assert [contrast.label for contrast in group.contrasts] == ["gqa", "mqa"]
    # K and V are 4 and 32 times smaller: 268 MB, 67.1 MB and 8.39 MB beside little else.
    speedups = [contrast.speedup.value for contrast in group.contrasts if contrast.speedup]
    assert 3.8 < speedups[0] < 4.0
    read = [run.numbers["dram_read_compulsory"].value for run in subject.record.runs]
    q = 32 * 128 * 2
    assert read == [q + 2 * heads * 16384 * 128 * 2 for heads in (32, 8, 1)]


def test_fp8_where_kernels_cannot_convert_it() -> None:
    op = find_op("decode-attention")
    row = op.implementation("flash-decode")
    assert row is not None
    w = AttentionWorkload(seq_q=1, seq_k=1024, cache_dtype="fp8")
    said = {name: refusal(row, w, load(name)) for name in ("a100-80gb-sxm", "l4", "h200-141gb-sxm")}
    assert said == {
        "a100-80gb-sxm": "cache dtype fp8: kernels convert it from compute capability 8.9 on",
        "l4": None,
        "h200-141gb-sxm": None,
    }
