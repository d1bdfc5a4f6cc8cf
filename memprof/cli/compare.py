"""`memprof compare`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprof.cli import options as asked
from memprof.cli.exports import ComparisonExports, make_trace_folder, watched
from memprof.cli.options import (
    OPTIMIZERS,
    OUTPUT,
    DebugOption,
    JsonOption,
    make_recipe,
    option,
    takes_recipe,
)
from memprof.errors import ExitCode

if TYPE_CHECKING:
    from memprof.documents.comparison import Comparison

MEASURE, FIT = "Measurement", "Largest batch and model"


@takes_recipe()
def compare(
    model: asked.ModelArgument,
    batch_size: asked.BatchSizeOption = 8,
    knobs: asked.KnobsOption = None,
    inputs: asked.InputsOption = None,
    target: asked.TargetOption = None,
    optimizers: asked.OptimizersOption = None,
    reference: Annotated[
        str | None,
        option(
            "--reference",
            panel=OPTIMIZERS,
            text="The optimizer to compare with (default: adam).",
            metavar="SPEC",
        ),
    ] = None,
    device: Annotated[
        str,
        option(
            "--device",
            panel=MEASURE,
            text="auto, cpu, cuda, cuda:N; a GPU (rtx-4090) or a size (24GiB) is predicted for.",
            metavar="NAME",
        ),
    ] = "auto",
    recipe: Any = None,
    budget: Annotated[
        str | None,
        option(
            "--budget",
            panel=FIT,
            text="The memory to fill, e.g. 24GiB (default: the device's).",
            metavar="SIZE",
        ),
    ] = None,
    no_fit: Annotated[bool, option("--no-fit", panel=FIT, text="Do not look for the largest batch and model.")] = False,
    confirm: Annotated[bool, option("--confirm", panel=FIT, text="Prove the answers by training them.")] = False,
    validate: Annotated[
        bool, option("--validate", panel=MEASURE, text="Predict every trial as well and show how far off that is.")
    ] = False,
    as_json: JsonOption = False,
    export_json: Annotated[
        str | None,
        option("--export-json", panel=OUTPUT, text="Save the comparison, after every trial.", metavar="FILE"),
    ] = None,
    export_csv: Annotated[
        str | None,
        option("--export-csv", panel=OUTPUT, text="Save a row per optimizer; - is stdout.", metavar="FILE"),
    ] = None,
    export_markdown: Annotated[
        str | None,
        option(
            "--export-markdown",
            panel=OUTPUT,
            text="Save the report, its figures beside it; - is stdout, without figures.",
            metavar="FILE",
        ),
    ] = None,
    export_html: Annotated[
        str | None,
        option("--export-html", panel=OUTPUT, text="Save a page to explore; - is stdout.", metavar="FILE"),
    ] = None,
    export_trace: Annotated[
        str | None,
        option(
            "--export-trace",
            panel=OUTPUT,
            text="Save each run's whole trace in a folder: a snapshot for pytorch.org/memory_viz, JSON for Perfetto. "
            "Memory for the record then grows with the steps.",
            metavar="DIR",
        ),
    ] = None,
    force: asked.ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Train one model with several optimizers, each in a fresh process, and compare what memory they take."""
    files = {"json": export_json, "csv": export_csv, "markdown": export_markdown, "html": export_html}
    exports = ComparisonExports(files, as_json=as_json, force=force)
    traces = make_trace_folder(export_trace, optimizers, force)
    from memprof.api import compare as run_comparison
    from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS
    from memprof.documents.workload_spec import parse_knobs

    chosen = make_recipe(recipe)
    arguments: dict[str, Any] = {
        "batch_size": batch_size,
        "knobs": parse_knobs(knobs or []),
        "inputs": inputs or [],
        "target": target,
        "optimizers": optimizers or DEFAULT_OPTIMIZERS,
        "device": device,
        "recipe": chosen,
        "budget": budget,
        "fit": not no_fit,
        "confirm": confirm,
        "validate": validate,
        "reference": reference,
        "trace_folder": traces,
        "command": shlex.join(["memprof", *sys.argv[1:]]),
    }
    comparison = watched(
        lambda watcher, keep: run_comparison(model, on_progress=watcher, on_comparison=keep, **arguments), exports, draw
    )
    exports.show(comparison, draw)
    raise typer.Exit(exit_code(comparison))


def draw(comparison: Comparison) -> None:
    """Print the comparison's tables."""
    from memprof.report.render.terminal import make_console, render

    render(comparison, make_console())


def exit_code(comparison: Comparison) -> ExitCode:
    """Return 3 if a run failed, or nothing but ran out of memory when it was measured; to predict that is an answer."""
    answered = any(run.status == "ok" or run.source == "predicted" for run in comparison.runs)
    failed = any(run.status == "failed" for run in comparison.runs)
    return ExitCode.FAILED if failed or not answered else ExitCode.OK
