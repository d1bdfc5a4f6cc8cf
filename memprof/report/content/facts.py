"""The facts under which the figures of a comparison were made, and the caveats about them."""

from __future__ import annotations

from memprof.documents.comparison import Comparison, Environment
from memprof.documents.recipe import Recipe
from memprof.documents.wording import processor_words
from memprof.report.content import sections
from memprof.report.content.ranks import batch_words, strategy_words
from memprof.units import format_size


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the facts that a reader needs to reproduce the figures, as pairs of a name and a text.

    Facts that are not known are left out.
    """
    environment = comparison.environment
    lines = {
        **_subject(comparison),
        "Capacity": f"{format_size(comparison.capacity.bytes)} ({comparison.capacity.source})",
        "GPU": _gpu(environment),
        "Processor": processor_words(environment),
        "Memory": format_size(environment.memory_bytes),
        "Versions": f"memprof {environment.memprof}, torch {environment.torch}, Python {environment.python}",
        "Allocator settings": environment.allocator_conf,
        "Platform": environment.platform,
        "Date": environment.date,
    }
    return [(name, value) for name, value in lines.items() if value]


def caveats(comparison: Comparison) -> list[str]:
    """Return the caveats: the notes of the runs, and what a reader must not conclude from each kind of figure."""
    found = sections.notes(comparison)
    if any(run.source == "measured" and run.device == "cpu" for run in comparison.runs):
        found.append(
            "Measured on a CPU: a GPU's allocator rounds up and keeps what it has reserved, kernels take other scratch "
            "and optimizers run other implementations there; step times are this machine's."
        )
    if any(answer.method == "extrapolated" and answer.value for _, answer in sections.fit_answers(comparison)):
        found.append(
            "Values with ~ lie on straight lines through few trained ones; a kernel chosen by size bends them."
        )
    return found


def _subject(comparison: Comparison) -> dict[str, str]:
    workload, script = comparison.workload, comparison.script
    if workload is None or comparison.recipe is None:
        steps = str(script.steps) if script is not None and script.steps is not None else ""
        return {"Script": comparison.subject, "Steps": steps, "Ranks": strategy_words(comparison)}
    knobs = ", ".join(f"{key}={value}" for key, value in workload.knobs.items())
    return {
        "Model": f"{workload.model}, {batch_words(comparison)}{f', {knobs}' if knobs else ''}",
        "Inputs": ", ".join([*workload.inputs, *([f"target {workload.target}"] if workload.target else [])]),
        "Recipe": _recipe(comparison.recipe),
    }


def _recipe(recipe: Recipe) -> str:
    left_out = {"strategy", "world_size"} if recipe.strategy == "single" else set()
    shown = recipe.model_dump(exclude=left_out, exclude_none=True)
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def _gpu(environment: Environment) -> str:
    known = {
        "": environment.gpu,
        "memory ": format_size(environment.gpu_memory_bytes) if environment.gpu_memory_bytes else None,
        "driver ": environment.driver,
        "CUDA ": environment.cuda,
        "cuDNN ": environment.cudnn,
    }
    return ", ".join(f"{name}{value}" for name, value in known.items() if value) if environment.gpu else ""
