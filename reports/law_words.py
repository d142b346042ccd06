"""What a study with sweeps says in words: on what was asked for, on its trials and on the law."""

from collections.abc import Iterator

from perfkit.analysis.law import FittedLaw, laws
from perfkit.analysis.study import Study
from perfkit.reports.places import joined
from perfkit.reports.studies import parted
from perfkit.reports.words import failures, invalid, io_check, verdict_words


def sentences(study: Study) -> tuple[str, ...]:
    """The verdict on what was asked for, then what must be known of the trials, then the law."""
    asked, swept = parted(study)
    return (*verdict_words(asked), *trial_words(swept), *law_words(laws(study.record)))


def trial_words(swept: Study) -> Iterator[str]:
    """How many runs are trials of sweeps, their IO checks, and what went wrong; nothing without any."""
    count = len(swept.findings)
    if count:
        yield f"{count} more run{' is a trial' if count == 1 else 's are trials'} of a series."
        yield from (*(f"Trials: {text}" for text in io_check(swept)), *invalid(swept), *failures(swept))


def law_words(found: tuple[FittedLaw, ...]) -> Iterator[str]:
    """How many exponents of which bytes are as the law says, and which are not."""
    judged = [one for one in found if one.law is not None]
    holding = [one.source for one in judged if one.verdict.status == "holds"]
    counts = joined(f"{holding.count(source)} {source}" for source in dict.fromkeys(holding))
    if holding:
        yield f"The law of bytes: {counts} exponents are as it says."
    for one in judged:
        if one.verdict.status == "violated":
            yield (
                f"VIOLATED: the law, {one.verdict.check}: "
                f"exponent {one.fit.exponent:.3f}, and the law says {one.law:g}."
            )
