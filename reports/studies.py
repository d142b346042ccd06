"""Parts of a study that reports show apart: what was asked for, trials, one workload."""

from collections.abc import Callable

import msgspec

from perfkit.analysis.study import Study
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.record import Run


def parted(study: Study) -> tuple[Study, Study]:
    """The study of what was asked for, and that of the trials.

    Trials serve what they show together: several of them differ in their tiles only, and few of their
    workloads are those of another implementation, so that none is the fastest. Where there is nothing else
    they are what was asked for.
    """
    if all(run.trial for run in study.record.runs):
        return study, _where(study, lambda _: False)
    return _where(study, lambda run: not run.trial), _where(study, lambda run: run.trial)


def of_workload(study: Study, workload: AttentionWorkload) -> Study:
    """The study of the runs where one workload was asked for."""
    return _where(study, lambda run: run.setting == workload)


def _where(study: Study, chosen: Callable[[Run], bool]) -> Study:
    kept = [at for at, run in enumerate(study.record.runs) if chosen(run)]
    record = msgspec.structs.replace(study.record, runs=tuple(study.record.runs[at] for at in kept))
    return Study(record=record, findings=tuple(study.findings[at] for at in kept))
