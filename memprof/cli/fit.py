"""The command `memprof fit`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprof.cli import options as asked
from memprof.cli.exports import Exports, watched
from memprof.cli.options import DebugOption, JsonOption
from memprof.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from memprof.documents.fit import FitReport

SEARCH = "Search"


@asked.takes_recipe(without=asked.MEASURED)
def fit(
    model: asked.ModelArgument,
    vary: Annotated[
        str,
        asked.option(
            "--vary",
            panel=SEARCH,
            text="Make this as large as possible: batch_size, or a whole-number knob of the model.",
            metavar="KNOB[=LO:HI[:STEP]]",
        ),
    ] = "batch_size",
    devices: Annotated[
        list[str] | None,
        asked.option(
            "--device",
            panel=SEARCH,
            text="Fill this device: auto, cpu, cuda, cuda:N, a GPU to predict for (see memprof devices) or a size. "
            "Repeatable.",
            metavar="NAME",
        ),
    ] = None,
    global_batch: Annotated[
        int | None,
        asked.option(
            "--global-batch",
            panel=SEARCH,
            text="Train this many samples in each optimizer step, by accumulating as many micro-batches as needed.",
            metavar="N",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        asked.option(
            "--budget", panel=SEARCH, text="Fill this much memory, e.g. 24GiB (default: the device's).", metavar="SIZE"
        ),
    ] = None,
    margin: Annotated[
        str, asked.option("--margin", panel=SEARCH, text="Leave this much memory free: 5% or 1GiB.", metavar="SIZE")
    ] = "0%",
    confirm: Annotated[
        bool,
        asked.option(
            "--confirm/--no-confirm",
            panel=SEARCH,
            text="Check the answers by training under a memory limit, on devices of this machine.",
        ),
    ] = True,
    optimizers: asked.OptimizersOption = None,
    batch_size: asked.BatchSizeOption = 8,
    knobs: asked.KnobsOption = None,
    inputs: asked.InputsOption = None,
    target: asked.TargetOption = None,
    recipe: Any = None,
    as_json: JsonOption = False,
    export_json: asked.ExportJsonOption = None,
    export_csv: Annotated[
        str | None,
        asked.option(
            "--export-csv", panel=asked.OUTPUT, text="Save a CSV row for each cell; - is stdout.", metavar="FILE"
        ),
    ] = None,
    export_markdown: asked.ExportMarkdownOption = None,
    force: asked.ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the largest batch, or the largest model, for each optimizer on each device."""
    exports = Exports(
        {"json": export_json, "csv": export_csv, "markdown": export_markdown}, as_json=as_json, force=force
    )
    from memprof.api import fit as run_fit
    from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS
    from memprof.documents.workload_spec import parse_knobs

    chosen = asked.make_recipe(recipe)
    arguments: dict[str, Any] = {
        "vary": vary,
        "devices": devices or ["auto"],
        "batch_size": batch_size,
        "knobs": parse_knobs(knobs or []),
        "inputs": inputs or [],
        "target": target,
        "optimizers": optimizers or DEFAULT_OPTIMIZERS,
        "recipe": chosen,
        "global_batch": global_batch,
        "budget": budget,
        "margin": margin,
        "confirm": confirm,
        "command": shlex.join(["memprof", *sys.argv[1:]]),
    }
    report = watched(
        lambda watcher, keep: run_fit(model, on_progress=watcher, on_report=keep, **arguments), exports, draw
    )
    code = exit_code(report)
    exports.show(report, draw)
    raise typer.Exit(code)


def draw(report: FitReport) -> None:
    """Print the tables of a report on the terminal.

    Args:
        report: The report to print.
    """
    from memprof.report.content.fit import show
    from memprof.report.render.terminal import make_console

    show(report, make_console())


def exit_code(report: FitReport) -> ExitCode:
    """Return 3 if a cell failed, 1 if nothing fits, else 0.

    Args:
        report: The finished report.

    Raises:
        UsageError: The budget is too small for the weights.
    """
    if not any(cell.fits for cell in report.cells):
        if all(cell.answer is None for cell in report.cells):
            return ExitCode.FAILED
        weights = [note for cell in report.cells if cell.answer for note in cell.answer.notes if "weights" in note]
        if report.devices[0].source == "budget" and weights:
            raise UsageError(f"the budget is too small for the model: {weights[0][0].lower()}{weights[0][1:-1]}")
        return ExitCode.BUDGET_EXCEEDED
    return ExitCode.FAILED if any(cell.answer is None for cell in report.cells) else ExitCode.OK
