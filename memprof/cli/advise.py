"""The command `memprof advise`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprof.cli import options as asked
from memprof.cli.exports import Exports, watched
from memprof.cli.options import DebugOption, JsonOption
from memprof.errors import ExitCode

if TYPE_CHECKING:
    from memprof.documents.advice import AdviceReport

DEVICE = "Device"


@asked.takes_recipe(without=asked.MEASURED)
def advise(
    model: asked.ModelArgument,
    device: Annotated[
        str,
        asked.option(
            "--device",
            panel=DEVICE,
            text="Fit into this device: auto, cpu, cuda, cuda:N, a GPU to predict for (see memprof devices) or a size.",
            metavar="NAME",
        ),
    ] = "auto",
    budget: Annotated[
        str | None,
        asked.option(
            "--budget",
            panel=DEVICE,
            text="Fit into this much memory, e.g. 24GiB (default: the device's).",
            metavar="SIZE",
        ),
    ] = None,
    margin: Annotated[
        str, asked.option("--margin", panel=DEVICE, text="Leave this much memory free: 5% or 1GiB.", metavar="SIZE")
    ] = "0%",
    optimizer: Annotated[
        str,
        asked.option(
            "-o",
            "--optimizer",
            panel=asked.OPTIMIZERS,
            text="The training uses this optimizer: its name or import path, then options as ,key=value.",
            metavar="SPEC",
        ),
    ] = "adam",
    batch_size: asked.BatchSizeOption = 8,
    knobs: asked.KnobsOption = None,
    inputs: asked.InputsOption = None,
    target: asked.TargetOption = None,
    recipe: Any = None,
    as_json: JsonOption = False,
    export_json: asked.ExportJsonOption = None,
    export_markdown: asked.ExportMarkdownOption = None,
    force: asked.ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what to change so that a training fits, and what each change saves. Nothing is trained."""
    exports = Exports({"json": export_json, "markdown": export_markdown}, as_json=as_json, force=force)
    from memprof.api import advise as run_advise
    from memprof.documents.workload_spec import parse_knobs

    chosen = asked.make_recipe(recipe)
    arguments: dict[str, Any] = {
        "optimizer": optimizer,
        "device": device,
        "batch_size": batch_size,
        "knobs": parse_knobs(knobs or []),
        "inputs": inputs or [],
        "target": target,
        "recipe": chosen,
        "budget": budget,
        "margin": margin,
        "command": shlex.join(["memprof", *sys.argv[1:]]),
    }
    report = watched(lambda watcher, _: run_advise(model, on_progress=watcher, **arguments), exports, draw)
    exports.show(report, draw)
    helped = report.now.fits or any(suggestion.fits for suggestion in report.suggestions)
    raise typer.Exit(ExitCode.OK if helped else ExitCode.BUDGET_EXCEEDED)


def draw(report: AdviceReport) -> None:
    """Print the advice on the terminal.

    Args:
        report: The advice to print.
    """
    from memprof.report.content.advice import show
    from memprof.report.render.terminal import make_console

    show(report, make_console())
