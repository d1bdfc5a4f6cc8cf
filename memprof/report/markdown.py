"""A comparison as Markdown for GitHub: the same document gives the same bytes."""

from __future__ import annotations

import re

from memprof.report import sections
from memprof.report.columns import fit_text, main_table
from memprof.report.summary import summarize
from memprof.report.table import Table
from memprof.report.text import ABSENT, phase_words
from memprof.results import Comparison, Environment, FitAnswer, Run
from memprof.training.recipe import Recipe
from memprof.units import format_size

_SPECIAL = re.compile(r"([\\`*\[\]|~])")
# An underscore inside a word is no markup, so names like seq_len stay readable in the source.
_UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def to_markdown(comparison: Comparison) -> str:
    """Return the report: headline, tables, notes, environment and the command that remakes it."""
    parts = [
        f"# Training memory of {escape(comparison.workload.name)}",
        _headline(comparison),
        render_table(main_table(comparison)),
        _list(sections.problems(comparison)),
        *_section("Who holds the memory at the peak", _breakdown(comparison)),
        *_section("Peak within each phase", _phases(comparison)),
        *_section("Largest batch and model", _fits(comparison)),
        *_section("What the prediction rests on", _basis(comparison)),
        *_section("Notes", _list(sections.notes(comparison))),
        *_section("Environment", _environment(comparison)),
        *_section("Reproduce", _command(comparison.environment)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line, also within a cell of a table."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\1", line))


def render_table(table: Table) -> str:
    """Return a table in GitHub's dialect; empty for a table without rows."""
    if not table.rows:
        return ""
    rule = ["---:" if right else "---" for right in table.right]
    rows = ([escape(cell) for cell in cells] for cells in (table.titles, *table.rows))
    head, *body = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])


def _headline(comparison: Comparison) -> str:
    size = sections.model_size(comparison)
    lines = [sections.heading(comparison), *([f"{size}; {sections.sources(comparison)}."] if size else [])]
    sentences = " ".join(summarize(comparison))
    return "\n\n".join([f"**{escape(sentences)}**", "  \n".join(escape(line) for line in lines)])


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text else []


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _breakdown(comparison: Comparison) -> str:
    if not sections.breakdowns(comparison):
        return ""
    categories = render_table(sections.category_table(comparison))
    modules = render_table(sections.module_table(comparison))
    return f"{categories}\n\nThe modules that hold most of it:\n\n{modules}" if modules else categories


def _phases(comparison: Comparison) -> str:
    table = render_table(sections.phase_table(comparison))
    return f"{table}\n\n\\* the phase that sets the peak of the step." if table else ""


def _basis(comparison: Comparison) -> str:
    sentences = _list(sections.basis(comparison))
    table = render_table(sections.range_table(comparison))
    return f"{sentences}\n\n{table}" if table else sentences


def _fits(comparison: Comparison) -> str:
    answers = sections.fit_answers(comparison)
    if not answers:
        return ""
    titles = ("optimizer", "knob", "largest", "peak there", "set by", "next", "needs", "trained")
    table = Table(
        titles=titles,
        rows=tuple(_fit_row(run, answer) for run, answer in answers),
        ranks=tuple(range(len(titles))),
        right=tuple(title in ("largest", "peak there", "next", "needs") for title in titles),
    )
    return f"{escape(sections.fit_remark(comparison) or '')}\n\n{render_table(table)}"


def _fit_row(run: Run, answer: FitAnswer) -> tuple[str, ...]:
    trained = (
        f"{point.value}: {'out of memory' if point.peak_bytes is None else format_size(point.peak_bytes)}"
        for point in answer.points
    )
    return (
        run.optimizer.spec,
        answer.knob,
        fit_text(answer),
        format_size(answer.peak_bytes),
        phase_words(answer.phase) if answer.phase else ABSENT,
        ABSENT if answer.next_value is None else str(answer.next_value),
        format_size(answer.next_peak_bytes),
        ", ".join(trained) or ABSENT,
    )


def _environment(comparison: Comparison) -> str:
    workload, environment = comparison.workload, comparison.environment
    knobs = ", ".join(f"{key}={value}" for key, value in workload.knobs.items())
    inputs = ", ".join([*workload.inputs, *([f"target {workload.target}"] if workload.target else [])])
    lines = {
        "Model": f"{workload.model}, batch size {workload.batch_size}{f', {knobs}' if knobs else ''}",
        "Inputs": inputs,
        "Recipe": _recipe(comparison.recipe),
        "Capacity": f"{format_size(comparison.capacity.bytes)} ({comparison.capacity.source})",
        "GPU": _gpu(environment),
        "Processor": f"{environment.processor}, {environment.cores} cores, {environment.threads} threads",
        "Memory": format_size(environment.memory_bytes),
        "Versions": f"memprof {environment.memprof}, torch {environment.torch}, Python {environment.python}",
        "Allocator settings": environment.allocator_conf,
        "Platform": environment.platform,
        "Date": environment.date,
    }
    return _list([f"{name}: {value}" for name, value in lines.items() if value])


def _recipe(recipe: Recipe) -> str:
    return ", ".join(f"{name}={value}" for name, value in recipe.model_dump().items() if value is not None)


def _gpu(environment: Environment) -> str:
    known = {
        "": environment.gpu,
        "memory ": format_size(environment.gpu_memory_bytes) if environment.gpu_memory_bytes else None,
        "driver ": environment.driver,
        "CUDA ": environment.cuda,
        "cuDNN ": environment.cudnn,
    }
    return ", ".join(f"{name}{value}" for name, value in known.items() if value) if environment.gpu else ""


def _command(environment: Environment) -> str:
    if not environment.command:
        return ""
    longest = max((len(run) for run in re.findall(r"`+", environment.command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{environment.command}\n{fence}"
