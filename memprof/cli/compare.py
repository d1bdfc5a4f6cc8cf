"""The command `memprof compare`."""

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
            text="Compare the others with this optimizer (default: adam).",
            metavar="SPEC",
        ),
    ] = None,
    device: Annotated[
        str,
        option(
            "--device",
            panel=MEASURE,
            text="Train on this device: auto, cpu, cuda or cuda:N. A GPU (rtx-4090) or a size (24GiB) is simulated.",
            metavar="NAME",
        ),
    ] = "auto",
    recipe: Any = None,
    budget: Annotated[
        str | None,
        option(
            "--budget",
            panel=FIT,
            text="Fill this much memory, e.g. 24GiB (default: the device's).",
            metavar="SIZE",
        ),
    ] = None,
    no_fit: Annotated[bool, option("--no-fit", panel=FIT, text="Do not look for the largest batch and model.")] = False,
    confirm: Annotated[bool, option("--confirm", panel=FIT, text="Check the answers by training.")] = False,
    validate: Annotated[
        bool, option("--validate", panel=MEASURE, text="Predict every trial as well, and show how far off that is.")
    ] = False,
    as_json: JsonOption = False,
    export_json: Annotated[
        str | None,
        option("--export-json", panel=OUTPUT, text="Save the comparison as JSON, after every trial.", metavar="FILE"),
    ] = None,
    export_csv: Annotated[
        str | None,
        option("--export-csv", panel=OUTPUT, text="Save a CSV row for each optimizer; - is stdout.", metavar="FILE"),
    ] = None,
    export_markdown: Annotated[
        str | None,
        option(
            "--export-markdown",
            panel=OUTPUT,
            text="Save the report as Markdown, with its figures beside it; - is stdout, without figures.",
            metavar="FILE",
        ),
    ] = None,
    export_html: Annotated[
        str | None,
        option(
            "--export-html",
            panel=OUTPUT,
            text="Save the report as an interactive HTML page; - is stdout.",
            metavar="FILE",
        ),
    ] = None,
    export_trace: Annotated[
        str | None,
        option(
            "--export-trace",
            panel=OUTPUT,
            text="Save each run's whole trace in a folder: a snapshot for pytorch.org/memory_viz, JSON for Perfetto. "
            "The memory that memprof needs for the record then grows with the number of steps.",
            metavar="DIR",
        ),
    ] = None,
    force: asked.ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Train one model with several optimizers, each in a fresh process, and compare the memory that they take."""
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
    """Print the tables of a comparison on the terminal.

    Args:
        comparison: The comparison to print.
    """
    from memprof.report.render.terminal import make_console, render

    render(comparison, make_console())


def exit_code(comparison: Comparison) -> ExitCode:
    """Return 3 if a run failed or if every measured run ran out of memory, else 0.

    A prediction that a run does not fit is an answer and counts as success.

    Args:
        comparison: The finished comparison.
    """
    answered = any(run.status == "ok" or run.source == "predicted" for run in comparison.runs)
    failed = any(run.status == "failed" for run in comparison.runs)
    return ExitCode.FAILED if failed or not answered else ExitCode.OK
