"""The parts of a report around the main table: the breakdown at the peak, the phases, fits, notes and failures."""

from __future__ import annotations

from collections.abc import Iterable

from memprof.documents.comparison import CATEGORIES, Breakdown, Comparison, FitAnswer, Run
from memprof.documents.recipe import Recipe
from memprof.documents.timeline import fold_blocks
from memprof.documents.wording import category_title
from memprof.report.content.columns import is_open
from memprof.report.content.ranks import batch_words, devices, strategy_words
from memprof.report.text_table import Table, number_table
from memprof.units import ABSENT, format_count, format_size

_ALIKE = 1.005  # the peaks of two steps count as equal if their ratio is below this


def heading(comparison: Comparison) -> str:
    """Return one line that names the workload, the device and the recipe."""
    recipe, workload = comparison.recipe, comparison.workload
    if recipe is None or workload is None:
        parts = [comparison.subject, at_knobs(comparison), *devices(comparison), strategy_words(comparison)]
        return " · ".join(part for part in parts if part)
    knobs = ", ".join(f"{key}={value}" for key, value in workload.knobs.items() if key != "batch_size")
    parts = [
        workload.name,
        batch_words(comparison),
        knobs,
        ", ".join(devices(comparison)),
        strategy_words(comparison),
        recipe.precision,
        *_options(recipe),
    ]
    return " · ".join(part for part in parts if part)


def at_knobs(comparison: Comparison) -> str:
    """Return the values that a script's figures are of, `batch=52`; nothing for a workload, which has a batch size."""
    script = comparison.script
    return ", ".join(f"{name}={value}" for name, value in script.knobs.items()) if script is not None else ""


def sources(comparison: Comparison) -> str:
    """Return `measured`, `predicted`, or `measured and predicted`, as the figures were made."""
    return " and ".join(sorted({run.source for run in comparison.runs}))


def model_size(comparison: Comparison) -> str | None:
    """Return the size of the model, such as `124.4M parameters, 475 MiB`; None if it is not known."""
    known = (run.parameters for run in comparison.runs if run.parameters is not None)
    parameters = next(known, None)
    if parameters is None:
        return None
    frozen = parameters.count - parameters.trainable
    suffix = f", {format_count(frozen)} of them frozen" if frozen else ""
    share = " of them on each rank" if comparison.strategy == "fsdp" else ""
    return f"{format_count(parameters.count)} parameters, {format_size(parameters.bytes)}{share}{suffix}"


def problems(comparison: Comparison) -> list[str]:
    """Return a line for each optimizer that has no figures, with the reason."""
    return [f"{run.optimizer.spec}: {ending(run)}" for run in comparison.runs if run.status != "ok"]


def ending(run: Run) -> str:
    """Return how a run without figures ended: `failed: ...` or `out of memory: ...`."""
    word = "out of memory" if run.status == "oom" else "failed"
    reason = run.reason or "no reason was given"
    return reason if reason.startswith(word) else f"{word}: {reason}"


def notes(comparison: Comparison) -> list[str]:
    """Return the warnings and notes of the runs, each once.

    A note that does not concern all optimizers begins with the names of those that it concerns.
    """
    about: dict[str, list[str]] = {}
    for run in comparison.runs:
        for note in [*(run.confidence.warnings if run.confidence is not None else ()), *run.notes, *_earlier_peak(run)]:
            about.setdefault(note, []).append(run.optimizer.spec)
    finished = sum(run.status == "ok" for run in comparison.runs)
    return [note if len(names) >= finished > 1 else f"{', '.join(names)}: {note}" for note, names in about.items()]


def _earlier_peak(run: Run) -> Iterable[str]:
    """Yield a note if an earlier step has the peak, because the breakdown is that of the last step."""
    if run.peak is not None and run.breakdown is not None:
        least = run.breakdown.total_bytes
        if run.peak.step and run.peak.allocated_bytes > least * _ALIKE:
            yield (
                f"The peak of {format_size(run.peak.allocated_bytes)} is step {run.peak.step}'s; who holds the memory "
                f"is shown for the last step, which needs {format_size(least)}."
            )


def basis(comparison: Comparison) -> list[str]:
    """Return the sentences about the basis of the predictions, each once."""
    found = (run.confidence.basis for run in comparison.runs if run.confidence is not None)
    return list(dict.fromkeys(sentence for sentences in found for sentence in sentences))


def range_table(comparison: Comparison) -> Table:
    """Return a table with a row for each term of the upper bounds: its range, and the optimizers that it concerns."""
    whose: dict[tuple[str, ...], list[str]] = {}
    bounded = [(run.optimizer.spec, run.confidence.ranges) for run in comparison.runs if run.confidence is not None]
    for spec, ranges in bounded:
        for one in ranges:
            sizes = map(format_size, (one.low_bytes, one.bytes, one.high_bytes))
            whose.setdefault((one.what, *sizes), []).append(spec)
    rows = [
        ("all" if len(specs) == len(bounded) > 1 else ", ".join(specs), *row)
        for row, specs in sorted(whose.items(), key=lambda found: found[0][0])
    ]
    titles = ("optimizer", "estimate", "low", "taken", "high")
    right = (False, False, True, True, True)
    return Table(titles=titles, rows=tuple(rows), ranks=tuple(range(len(titles))), right=right)


def breakdowns(comparison: Comparison) -> list[tuple[Run, Breakdown]]:
    """Return the runs that have a breakdown of their peak, with the breakdown."""
    return [(run, run.breakdown) for run in comparison.runs if run.breakdown is not None]


def present_categories(comparison: Comparison) -> list[str]:
    """Return the categories that hold memory at any run's peak, in the order in which the document defines them."""
    held = {name for _, found in breakdowns(comparison) for name, size in found.by_category.items() if size}
    return [name for name in CATEGORIES if name in held] + sorted(held.difference(CATEGORIES))


def category_table(comparison: Comparison) -> Table:
    """Return a table with a row for each optimizer: the memory of each category at its peak."""
    names = present_categories(comparison)
    rows = (
        (run.optimizer.spec, [*_sizes(found.by_category, names), format_size(found.total_bytes)])
        for run, found in breakdowns(comparison)
    )
    return number_table("optimizer", [*map(category_title, names), "total"], rows)


def module_table(comparison: Comparison, most: int = 10) -> Table:
    """Return a table with a row for each of the modules that hold most, and a column for each optimizer.

    Modules that differ only in the number of a repeated block are added up: `blocks.*.attention`.

    Args:
        comparison: The comparison.
        most: The largest number of modules to show.
    """
    shown = [(run, _fold_blocks(found.by_module)) for run, found in breakdowns(comparison)]
    held: dict[str, int] = {}
    for _, modules in shown:
        for module, size in modules.items():
            held[module] = max(size, held.get(module, 0))
    top = sorted(held, key=lambda module: (-held[module], module))[:most]
    rows = (
        (module or "(outside the model)", [format_size(modules.get(module)) for _, modules in shown]) for module in top
    )
    return number_table("module", [run.optimizer.spec for run, _ in shown], rows)


def phase_table(comparison: Comparison) -> Table:
    """Return a table with a row for each optimizer: the allocator's peak in each phase, with `*` at the highest."""
    phases = list(dict.fromkeys(phase for run in comparison.runs for phase in run.phases))
    rows = (
        (run.optimizer.spec, [_phase_text(run, phase) for phase in phases]) for run in comparison.runs if run.phases
    )
    return number_table("optimizer", phases, rows)


def fit_answers(comparison: Comparison) -> list[tuple[Run, FitAnswer]]:
    """Return the runs with their answers about the largest batch size, then about the largest model."""
    batches = [(run, run.fit.batch_size) for run in comparison.runs if run.fit is not None]
    models = [(run, run.fit.model) for run in comparison.runs if run.fit is not None]
    return [(run, answer) for run, answer in (*batches, *models) if answer is not None]


def fit_remark(comparison: Comparison) -> str | None:
    """Return a sentence about the memory that the largest values fill, and how they were found.

    Returns:
        The sentence; None if no largest value was searched for.
    """
    answers = [answer for _, answer in fit_answers(comparison)]
    if not answers:
        return None
    knobs = " and ".join(dict.fromkeys(answer.knob for answer in answers))
    shared = comparison.world_size > 1 and devices(comparison) == ["cpu"]
    device = "each rank's share of this machine's memory" if shared else "all of the device's memory"
    whose = "the budget" if comparison.capacity.source == "budget" else device
    methods = {answer.method for answer in answers if answer.value and not is_open(answer)}
    how = {
        frozenset({"extrapolated"}): "; ~ is extrapolated from smaller runs, --confirm trains it",
        frozenset({"confirmed"}): "; confirmed by training",
        frozenset({"predicted"}): "; predicted to fit, the next value not to",
        frozenset({"extrapolated", "confirmed"}): "; ~ is extrapolated, the others were trained",
    }.get(frozenset(methods), "")
    ended = "; + is where the values to try end" if any(map(is_open, answers)) else ""
    declared = comparison.workload is not None and comparison.workload.lengths == "longest_batch"
    longest = ", with the longest batches that the workload declares" if declared else ""
    return f"Largest {knobs} within {format_size(comparison.capacity.bytes)}, {whose}{longest}{how}{ended}."


def _options(recipe: Recipe) -> Iterable[str]:
    if recipe.accumulate > 1:
        yield f"{recipe.accumulate} micro-batches"
    if recipe.checkpoint_activations:
        yield "activation checkpointing"
    if recipe.clip_grad is not None:
        yield f"gradients clipped at {recipe.clip_grad:g}"
    if recipe.zero_grad != "after-step":
        yield f"gradients zeroed at {recipe.zero_grad}"
    if recipe.step_in_backward:
        yield "step in backward"


def _sizes(held: dict[str, int], names: list[str]) -> list[str]:
    return [format_size(held.get(name, 0)) for name in names]


def _fold_blocks(by_module: dict[str, int]) -> dict[str, int]:
    names, folded = fold_blocks(by_module), dict[str, int]()
    for module, size in by_module.items():
        folded[names[module]] = folded.get(names[module], 0) + size
    return folded


def _phase_text(run: Run, phase: str) -> str:
    found = run.phases.get(phase)
    if found is None:
        return ABSENT
    mark = " *" if run.peak is not None and run.peak.phase == phase else ""
    return format_size(found.allocated_bytes) + mark
