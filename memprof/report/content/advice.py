"""The report of `memprof advise`: the suggested changes as tables and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memprof.documents.advice import AdviceReport, Suggestion
from memprof.documents.wording import category_title, phase_words
from memprof.report.render.parts import Part, render_parts
from memprof.report.text_table import Table
from memprof.units import ABSENT, format_share, format_size

if TYPE_CHECKING:
    from rich.console import Console

DISTURBANCE = ("nothing", "time", "rounding", "the optimizer")


def heading(report: AdviceReport) -> str:
    """Return one line that names the workload, the device, the optimizer and the recipe."""
    workload = report.workload
    knobs = ", ".join(f"{name}={value}" for name, value in workload.knobs.items())
    options = report.recipe.model_dump(exclude_defaults=True, exclude={"precision", "warmup", "steps", "seed"})
    changed = ", ".join(f"{name}={value}" for name, value in options.items())
    parts = [
        f"{workload.name} on {report.device.name}",
        report.optimizer,
        f"batch size {workload.batch_size}",
        knobs,
        report.recipe.precision,
        changed,
    ]
    return " · ".join(part for part in parts if part)


def table(report: AdviceReport) -> Table:
    """Return a table with a row for each suggestion that changes the peak, the best first."""
    titles = ("change", "peak", "saves", "fits", "disturbs", "how")
    useful = [one for one in report.suggestions if one.figures is not None and one.remark is None]
    return Table(
        titles=titles,
        rows=tuple(_row(report, one) for one in useful),
        ranks=(0, 1, 2, 3, 4, 5),
        right=(False, True, True, False, False, False),
    )


def no_use(report: AdviceReport) -> list[str]:
    """Return sentences about the changes that save nothing here or that the model cannot be trained with, and why."""
    lines = [f"{_name(one)} saves nothing here: {one.remark}." for one in report.suggestions if one.remark]
    return lines + [f"{_name(one)} cannot be predicted: {one.reason}" for one in report.suggestions if one.reason]


def effects(report: AdviceReport) -> list[str]:
    """Return sentences that say what each change in the table does to the training."""
    told = {
        name: effect
        for one in report.suggestions
        if one.figures is not None and one.remark is None
        for name, effect in zip(one.changes, one.effects, strict=True)
    }
    return [f"{name}: {effect}." for name, effect in told.items()]


def sentences(report: AdviceReport) -> list[str]:
    """Return sentences that say whether the training fits now, and which changes make it fit."""
    return [_about_now(report), *_about_best(report)]


def show(report: AdviceReport, console: Console) -> None:
    """Print a report: the suggestions, their effects, the notes, and last the sentences.

    Args:
        report: The document to print.
        console: The terminal.
    """
    parts: list[Part] = [table(report), effects(report), [*no_use(report), *report.notes], *sentences(report)]
    render_parts(heading(report), parts, console)


def to_markdown(report: AdviceReport) -> str:
    """Return the report as Markdown for GitHub."""
    from memprof.report.render.markdown import escape, render_table

    def listed(lines: list[str]) -> str:
        return "\n".join(f"- {escape(line)}" for line in lines)

    bold = "**" + escape(" ".join(sentences(report))) + "**"
    command = report.environment.command
    parts = [
        f"# What makes {escape(report.workload.name)} fit {escape(report.device.name)}",
        escape(heading(report)),
        bold,
        render_table(table(report)),
        listed(effects(report)),
        listed([*no_use(report), *report.notes]),
        f"```sh\n{command}\n```" if command else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(report: AdviceReport, one: Suggestion) -> tuple[str, ...]:
    assert one.figures is not None
    assert one.saves_bytes is not None
    share = one.saves_bytes / report.now.peak_bytes
    return (
        _name(one),
        format_size(one.figures.peak_bytes),
        f"{format_size(one.saves_bytes)} ({format_share(share)})",
        "yes" if one.fits else "no",
        DISTURBANCE[one.disturbance],
        one.how,
    )


def _name(one: Suggestion) -> str:
    return " + ".join(one.changes) or ABSENT


def _about_now(report: AdviceReport) -> str:
    now, usable = report.now, report.device.usable_bytes
    needs = f"needs {format_size(now.peak_bytes)} of {format_size(usable)}"
    total = sum(now.held.values()) or 1
    most = sorted(now.held.items(), key=lambda item: -item[1])[:3]
    held = ", ".join(f"{category_title(name)} ({format_share(size / total)})" for name, size in most)
    word = "It fits as it is" if now.fits else f"It does not fit: memory runs out in {phase_words(now.phase)}"
    return f"{word}; it {needs}. The peak in {phase_words(now.held_phase)} consists mostly of {held}."


def _about_best(report: AdviceReport) -> list[str]:
    if report.now.fits:
        return []
    fitting = [one for one in report.suggestions if one.fits]
    if not fitting:
        nearest = min(
            (one for one in report.suggestions if one.figures is not None),
            key=lambda one: one.figures.peak_bytes if one.figures else 0,
            default=None,
        )
        if nearest is None or nearest.figures is None:
            return ["No change could be predicted."]
        size = format_size(nearest.figures.peak_bytes)
        return [f"Nothing makes it fit; the nearest is {_name(nearest)} with {size}."]
    alone = [_name(one) for one in fitting if len(one.changes) == 1]
    first = f"The least disturbing change that makes it fit: {_name(fitting[0])} ({fitting[0].how})."
    return [first, f"Each of these does so alone: {', '.join(alone)}."] if len(alone) > 1 else [first]
