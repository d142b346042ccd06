"""What a report is made of: one or more studies, what is compared in them, and a baseline."""

import msgspec

from perfkit.analysis.comparison import Comparison, compare, compare_records
from perfkit.analysis.speed import THRESHOLD
from perfkit.analysis.study import Study
from perfkit.errors import UsageError


class Titled(msgspec.Struct, frozen=True, kw_only=True):
    """A study and the name that readers know it by: the file it came from, or the command."""

    name: str
    study: Study


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The one thing that renderers of files take.

    `baseline` is an earlier state that every study is held against where it has runs in common.
    """

    parts: tuple[Titled, ...]
    baseline: Titled | None = None
    threshold: float = THRESHOLD

    @property
    def studies(self) -> tuple[Study, ...]:
        """The studies without their names."""
        return tuple(part.study for part in self.parts)


def comparison_of(study: Study, threshold: float = THRESHOLD) -> Comparison | None:
    """What a record of `perfkit compare` compares; None for a record of anything else."""
    baseline = study.record.baseline
    return None if baseline is None else compare(study, baseline, threshold)


def changes(report: Report) -> tuple[tuple[Titled, Comparison], ...]:
    """Each part of the report against its baseline; parts with no run in common with it are left out.

    None without a baseline; UsageError where no part has any.
    """
    if report.baseline is None:
        return ()
    old = report.baseline
    found: list[tuple[Titled, Comparison]] = []
    refused: UsageError | None = None
    for part in report.parts:
        try:
            names = (old.name, part.name)
            found.append((part, compare_records(old.study, part.study, names, report.threshold)))
        except UsageError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return tuple(found)
