"""The command `memprof run`, which runs a training script and reports how much memory it takes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from memprof.cli.compare import draw, exit_code
from memprof.cli.exports import ComparisonExports, make_trace_folder, watched
from memprof.cli.options import OPTIMIZERS, OUTPUT, DebugOption, ForceOption, JsonOption, option
from memprof.errors import ExitCode, UsageError


class RunCommand(TyperCommand):
    """A command that leaves all arguments after the script, or after `-m MODULE`, to the script."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse only memprof's own options."""
        return super().parse_args(ctx, _with_end_of_options(self, list(args)))


def _with_end_of_options(command: Any, args: list[str]) -> list[str]:
    """Insert `--` after `-m MODULE`, because no file name ends memprof's own options there."""
    flags = {name for one in command.params if getattr(one, "is_flag", False) for name in one.opts}
    place = 0
    while place < len(args) and args[place].startswith("-") and args[place] not in ("-", "--"):
        if args[place].startswith("-m"):
            end = place + (2 if args[place] == "-m" else 1)
            return [*args[:end], "--", *args[end:]]
        alone = args[place] in flags or args[place] in ("-h", "--help") or "=" in args[place]
        attached = not args[place].startswith("--") and len(args[place]) > 2
        place += 1 if alone or attached else 2
    return args


SCRIPT, VALUES = "Script", "What a prediction does not know"


def run(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCRIPT [ARGS]...", help="The training script, and what follows is its own."),
    ] = None,
    module: Annotated[
        str | None,
        option("-m", panel=SCRIPT, text="Run a module instead of a file, as python -m does.", metavar="MODULE"),
    ] = None,
    optimizers: Annotated[
        list[str] | None,
        option(
            "-o",
            "--optimizer",
            panel=OPTIMIZERS,
            text="as-is (the script's own, the default), or what takes its place: NAME or import path, then ,key=value "
            "options; NAME@1 replaces only the second, NAME@variable the one of that name. Repeatable.",
            metavar="SPEC",
        ),
    ] = None,
    every: Annotated[
        bool, option("--all", panel=OPTIMIZERS, text="as-is and the optimizers that memprof compare takes by default.")
    ] = False,
    reference: Annotated[
        str | None,
        option("--reference", panel=OPTIMIZERS, text="The optimizer to compare with (default: as-is).", metavar="SPEC"),
    ] = None,
    device: Annotated[
        str,
        option(
            "--device",
            panel=SCRIPT,
            text="auto, cpu, cuda, cuda:N; a GPU (rtx-4090) or a size (24GiB) is predicted for.",
            metavar="NAME",
        ),
    ] = "auto",
    steps: Annotated[
        int | None,
        option(
            "--steps",
            panel=SCRIPT,
            text="Training steps until the script is stopped (default: until two in a row allocate alike, 3 to 8).",
        ),
    ] = None,
    vary: Annotated[
        str | None,
        option(
            "--vary",
            panel=SCRIPT,
            text="Find the largest number that fits in the place of {NAME} in the script's arguments, for each "
            "optimizer: --vary batch=1:64 train.py --batch_size={batch}.",
            metavar="NAME=LO:HI[:STEP]",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        option(
            "--budget",
            panel=SCRIPT,
            text="The memory that there is, e.g. 24GiB (default: the device's).",
            metavar="SIZE",
        ),
    ] = None,
    timeout: Annotated[
        float,
        option(
            "--timeout", panel=SCRIPT, text="How long one run of the script may take, in seconds.", metavar="SECONDS"
        ),
    ] = 600.0,
    world_size: Annotated[
        int | None,
        option(
            "--world-size",
            panel=SCRIPT,
            text="Run the script as one of N ranks that torchrun starts: measured with N processes on this machine, "
            "predicted with nobody else there.",
            metavar="N",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        option(
            "--rank",
            panel=SCRIPT,
            text="The rank to predict (default: 0), or to show of those measured (default: that with the highest "
            "peak).",
            metavar="R",
        ),
    ] = None,
    validate: Annotated[
        bool, option("--validate", panel=SCRIPT, text="Predict what is measured as well and show how far off that is.")
    ] = False,
    assume: Annotated[
        list[str] | None,
        option(
            "--assume",
            panel=VALUES,
            text="What a value is that the script reads at a line, e.g. train.py:23=true; repeatable.",
            metavar="FILE:LINE=VALUE",
        ),
    ] = None,
    script_output: Annotated[
        str | None,
        option(
            "--script-output",
            panel=OUTPUT,
            text="Write what the script prints to a file (default: stderr).",
            metavar="FILE",
        ),
    ] = None,
    keep_outputs: Annotated[
        bool,
        option(
            "--keep-outputs", panel=OUTPUT, text="Leave what the script saves where it saves it, when it is measured."
        ),
    ] = False,
    as_json: JsonOption = False,
    export_json: Annotated[
        str | None, option("--export-json", panel=OUTPUT, text="Save the comparison, after every run.", metavar="FILE")
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
            text="Save each run's whole trace in a folder: a snapshot for pytorch.org/memory_viz, JSON for Perfetto.",
            metavar="DIR",
        ),
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a training script as it is, measured or on a GPU that is not here, and say what memory it takes."""
    from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS
    from memprof.documents.script import AS_IS

    if every and optimizers:
        raise UsageError("--all is a set of optimizers, and so are -o; give one of the two")
    chosen = [AS_IS, *DEFAULT_OPTIMIZERS] if every else optimizers or [AS_IS]
    files = {"json": export_json, "csv": export_csv, "markdown": export_markdown, "html": export_html}
    exports = ComparisonExports(files, as_json=as_json, force=force)
    traces = make_trace_folder(export_trace, chosen, force)
    if script_output is not None:
        _make_empty(script_output, force)
    from memprof.api_run import parse_assumptions
    from memprof.api_run import run as run_script

    words = command or []
    script = words[0] if module is None and words else None
    assumed = parse_assumptions(assume or [])
    comparison = watched(
        lambda watcher, keep: run_script(
            script,
            words if module is not None else words[1:],
            module=module,
            optimizers=chosen,
            device=device,
            steps=steps,
            vary=vary,
            budget=budget,
            validate=validate,
            reference=reference,
            timeout=timeout,
            world_size=world_size,
            rank=rank,
            assume=assumed,
            script_output=script_output,
            keep_outputs=keep_outputs,
            command=shlex.join(["memprof", *sys.argv[1:]]),
            trace_folder=traces,
            on_progress=watcher,
            on_comparison=keep,
        ),
        exports,
        draw,
    )
    exports.show(comparison, draw)
    answers = [run.fit.batch_size for run in comparison.runs if run.fit is not None]
    if answers and not any(answer.value for answer in answers if answer is not None):
        raise typer.Exit(ExitCode.BUDGET_EXCEEDED)
    raise typer.Exit(exit_code(comparison))


def _make_empty(file: str, force: bool) -> None:
    """Create or empty the file that takes the text that the script prints."""
    from memprof.files import check_writable

    check_writable(Path(file), force)
    Path(file).write_bytes(b"")
