"""The parts of the Markdown report: results, comparison, IO check, environment."""

from collections.abc import Iterator, Sequence

from perfkit.analysis.comparison import Comparison, Contrast, Group, workloads
from perfkit.analysis.decode_map import decode_maps
from perfkit.analysis.figure2 import figure2
from perfkit.analysis.law import FittedLaw, laws
from perfkit.analysis.report import comparison_of
from perfkit.analysis.study import Finding, Study
from perfkit.analysis.verdict import Verdict
from perfkit.model.units import show, significant
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.reports import cells
from perfkit.reports.kernel_words import of_runs
from perfkit.reports.law import exponent_text, range_text
from perfkit.reports.law_plot import LEVEL_WORDS
from perfkit.reports.law_words import sentences
from perfkit.reports.markdown.decode_map import decode_text
from perfkit.reports.markdown.figure2 import figure2_text
from perfkit.reports.markdown.text import bullets, escape, folded, table
from perfkit.reports.places import place
from perfkit.reports.studies import parted
from perfkit.reports.words import comparison_words


def brief(study: Study) -> str:
    """What a study says in words, failures and their reasons among them, its results, law and figure."""
    asked, _ = parted(study)
    record = study.record
    maps = decode_text(decode_maps(study), record.backend)
    shown = (
        bullets(sentences(study)), maps, results(asked), law(laws(record)), figure2_text(figure2(record))
    )  # fmt: skip
    return "\n".join(text for text in shown if text)


def details(study: Study, threshold: float) -> str:
    """What is compared in a study, its IO check, its kernels, and where its numbers are from."""
    found = comparison_of(study, threshold)
    title = f"**Compared with {escape(study.record.baseline or '')}**\n\n"
    compared = "" if found is None else title + comparison(found)
    return "\n".join(text for text in (compared, io_check(study), kernels(study), environment(study)) if text)


def law(found: Sequence[FittedLaw]) -> str:
    """Exponents beside the law's, of bytes at the level that it is of; empty where nothing was swept.

    Modelled ones only where nothing else is known: they are what the law was made from.
    """
    judged = [one for one in found if one.law is not None]
    known = {one.sweep.impl for one in judged if one.source != "modelled"}
    rows = [_exponents(one) for one in judged if one.source != "modelled" or one.sweep.impl not in known]
    columns = ("impl", "bytes", "level", "varied", "range", "exponent", "law", "constant", "verdict")
    return f"**The law** of bytes: N^a d^b M^c\n\n{table(columns, rows)}" if rows else ""


def _exponents(one: FittedLaw) -> tuple[str, ...]:
    constant = "-" if one.constant is None else significant(one.constant)
    head = (one.sweep.impl, one.source, LEVEL_WORDS[one.level], one.sweep.variable, range_text(one))
    return (*head, exponent_text(one), f"{one.law:g}", constant, one.verdict.status)


def results(study: Study) -> str:
    """Time, rate, bytes and bound of every run that ended well; empty where none did."""
    among = workloads(study)
    columns = ("impl", "time", "achieved", "of roof", "DRAM", "SM<->L2", "FLOP/B", "bound")
    head = (cells.place_header(among),) if len(among) > 1 else ()
    rows = [
        (*_where(finding.placement.run.setting, among), *_result(finding))
        for finding in study.findings
        if cells.ended_well(finding.placement.run)
    ]
    if not rows:
        return ""
    marked = any("*" in cell or "+" in cell for row in rows for cell in row)
    note = (
        "\n`*` modelled, not measured (of times, the least). `+` at least, tiles unknown.\n" if marked else ""
    )
    return f"{table((*head, *columns), rows)}{note}"


def _where(workload: AttentionWorkload, among: Sequence[AttentionWorkload]) -> tuple[str, ...]:
    return (cells.place_text(workload, among),) if len(among) > 1 else ()


def _result(finding: Finding) -> tuple[str, ...]:
    placement = finding.placement
    dram = placement.point("DRAM")
    share = None if placement.invalid else finding.metrics["efficiency_clock"].value
    return (
        placement.run.impl,
        cells.time_text(placement),
        cells.rate_text(placement),
        show(share, "percent"),
        cells.level_text(placement, "DRAM"),
        cells.level_text(placement, "L2"),
        "-" if dram is None else f"{'<' if dram.upper else ''}{dram.intensity:.0f}",
        placement.bound or "-",
    )


def comparison(found: Comparison) -> str:
    """What a comparison says in words, and its table."""
    return f"{bullets(comparison_words(found))}\n{comparison_table(found)}"


def comparison_table(found: Comparison) -> str:
    """Speed and cost of every candidate beside its baseline, and the baseline itself."""
    among = tuple(dict.fromkeys(group.workload for group in found.groups))
    head = (cells.place_header(among),) if len(among) > 1 else ()
    columns = (
        *head, "impl", "time", "speed-up", "DRAM", "SM<->L2", "tensor FLOPs", "peak memory", "energy",
        "verdict",
    )  # fmt: skip
    rows = []
    for group in found.groups:
        where = _where(group.workload, among)
        base = group.baseline.placement
        verdict = "INVALID" if base.invalid else "baseline"
        if not cells.ended_well(base.run):
            verdict = base.run.status
        rows.append((*where, group.label, cells.time_text(base), *[""] * 6, verdict))
        rows += [(*where, *_contrast(group, contrast)) for contrast in group.contrasts]
    return table(columns, rows)


def _contrast(group: Group, contrast: Contrast) -> tuple[str, ...]:
    placement = contrast.candidate.placement
    status: str = contrast.verdict.status
    if placement.invalid:
        status = "INVALID"
    elif not cells.ended_well(placement.run):
        status = placement.run.status
    ratios = (
        cells.beside(group, contrast, name, less)
        for name, less in (
            ("dram", "fewer"),
            ("l2", "fewer"),
            ("flops", "fewer"),
            ("peak_memory", "less"),
            ("energy", "less"),
        )
    )
    return contrast.label, cells.time_text(placement), cells.speedup_text(contrast), *ratios, status


def io_check(study: Study) -> str:
    """Checks that are violated or undecided spelled out; those that hold counted, and folded away."""
    judged = [(finding, verdict) for finding in study.findings for verdict in finding.verdicts]
    if not judged:
        return ""
    among = workloads(study)
    told = [pair for pair in judged if pair[1].status in ("violated", "undecided")]
    held = [pair for pair in judged if pair[1].status == "holds"]
    other = len(judged) - len(told) - len(held)
    parts = [f"**IO check**\n\n{bullets(_told(told, among))}"] if told else []
    if held:
        rest = f", {other} unchecked or only stated" if other else ""
        parts.append(folded(f"IO check: {len(held)} hold{rest}", _held(held, among)))
    elif other:
        parts.append(f"IO check: {other} unchecked or only stated.\n")
    return "\n".join(parts)


def _told(pairs: Sequence[tuple[Finding, Verdict]], among: Sequence[AttentionWorkload]) -> Iterator[str]:
    for finding, verdict in pairs:
        hint = cells.verdict_hint(verdict)
        numbers = f"expected {show(verdict.expected, hint)}, measured {show(verdict.measured, hint)}"
        yield f"{verdict.status}: {_subject(finding, verdict, among)}: {numbers}: {verdict.reason}"


def _subject(finding: Finding, verdict: Verdict, among: Sequence[AttentionWorkload]) -> str:
    run = finding.placement.run
    where = place(run.setting, among)
    return f"{run.impl}{f' at {where}' if where else ''}, {verdict.check}"


def _held(pairs: Sequence[tuple[Finding, Verdict]], among: Sequence[AttentionWorkload]) -> str:
    """Their table, and why some expect more than the model beside them has."""
    columns = (
        *((cells.place_header(among),) if len(among) > 1 else ()),
        "impl",
        "check",
        "expected",
        "measured",
    )
    rows = [
        (
            *_where(finding.placement.run.setting, among),
            finding.placement.run.impl,
            verdict.check,
            show(verdict.expected, cells.verdict_hint(verdict)),
            show(verdict.measured, cells.verdict_hint(verdict)),
        )
        for finding, verdict in pairs
    ]
    filled = [
        f"{_subject(finding, verdict, among)}: {verdict.reason}"
        for finding, verdict in pairs
        if "zeros" in verdict.reason
    ]
    return f"{table(columns, rows)}\n{bullets(filled)}" if filled else table(columns, rows)


def kernels(study: Study) -> str:
    """The tile and compiled code of every kernel that ran, folded away; empty where none is known."""
    asked, _ = parted(study)
    runs = (finding.placement.run for finding in asked.findings)
    labelled = ((run.impl, run) for run in runs if cells.ended_well(run))
    lines = tuple(of_runs(study.record.op, labelled, workloads(asked)))
    return folded("Kernels", bullets(lines)) if lines else ""


def environment(study: Study) -> str:
    """Where the numbers are from, in one line, and the notes of the record."""
    record, env = study.record, study.record.environment
    versions = (
        ("driver", env.driver), ("CUDA", env.cuda_runtime), ("cuDNN", env.cudnn), ("torch", env.torch),
        ("Triton", env.triton), ("Python", env.python), ("perfkit", env.perfkit),
    )  # fmt: skip
    where = [
        env.gpu or env.cpu or "device not named",
        f"profile {record.device.name}{' (derived)' if record.device.derived else ''}",
        f"backend {record.backend}",
        *(f"{name} {version}" for name, version in versions if version),
        env.os,
        env.timestamp,
    ]
    line = f"Environment: {escape(', '.join(where))}\n"
    return f"{line}\n{bullets(record.notes)}" if record.notes else line
