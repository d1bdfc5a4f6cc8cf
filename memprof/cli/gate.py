"""The command `memprof gate`."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprof.cli.exports import GateOutputs
from memprof.cli.options import DebugOption
from memprof.errors import UsageError

if TYPE_CHECKING:
    from memprof.gate.report import Report
    from memprof.gate.run import GateRun

BUDGETS, BASELINE, OUTPUT = "Budgets", "Baseline", "Output"


class GateFormat(str, Enum):
    """The formats of `memprof gate` on stdout: the table, and those of `memprof.gate.formats`."""

    TABLE = "table"
    JSON = "json"
    JUNIT = "junit"
    GITHUB = "github"
    MARKDOWN = "markdown"
    GHA_BENCHMARK = "gha-benchmark"


def _option(*names: str, panel: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


ConfigOption = Annotated[
    str | None,
    _option(
        "--config",
        panel=BUDGETS,
        text="The configuration. Default: the nearest memprof.toml, or pyproject.toml with a tool.memprof table.",
        metavar="FILE",
    ),
]
ForceOption = Annotated[bool, _option("--force", panel=OUTPUT, text="Overwrite files that exist.")]


def gate(
    context: typer.Context,
    config: ConfigOption = None,
    only: Annotated[
        list[str] | None,
        _option("--only", panel=BUDGETS, text="Run only the budgets that match; repeatable.", metavar="NAME"),
    ] = None,
    saved: Annotated[
        str | None,
        _option("--from", panel=BUDGETS, text="Judge the figures of a saved report; run nothing.", metavar="FILE"),
    ] = None,
    baseline: Annotated[
        str | None,
        _option(
            "--baseline",
            panel=BASELINE,
            text="The file of accepted figures, or the JSON report of another branch. Default: as configured.",
            metavar="FILE",
        ),
    ] = None,
    update_baseline: Annotated[
        bool, _option("--update-baseline", panel=BASELINE, text="Accept these figures: write those that changed.")
    ] = False,
    strict: Annotated[
        bool, _option("--strict", panel=BASELINE, text="Fail if the baseline has no figure to compare with.")
    ] = False,
    fail_on_improvement: Annotated[
        bool,
        _option(
            "--fail-on-improvement",
            panel=BASELINE,
            text="Fail if an improvement makes the baseline stale.",
        ),
    ] = False,
    allow_other_environment: Annotated[
        bool,
        _option(
            "--allow-other-environment",
            panel=BASELINE,
            text="Compare measured figures with a baseline from another environment.",
        ),
    ] = False,
    shown: Annotated[
        GateFormat,
        _option(
            "--format",
            panel=OUTPUT,
            text="The format on stdout: table, json, junit, github, markdown or gha-benchmark.",
            metavar="NAME",
        ),
    ] = GateFormat.TABLE,
    export_json: Annotated[
        str | None,
        _option("--export-json", panel=OUTPUT, text="Save the report as JSON, after every trial.", metavar="FILE"),
    ] = None,
    export_junit: Annotated[
        str | None, _option("--export-junit", panel=OUTPUT, text="Save the report as JUnit XML.", metavar="FILE")
    ] = None,
    export_markdown: Annotated[
        str | None,
        _option("--export-markdown", panel=OUTPUT, text="Save the report as the body of a comment.", metavar="FILE"),
    ] = None,
    export_gha_benchmark: Annotated[
        str | None,
        _option("--export-gha-benchmark", panel=OUTPUT, text="Save the figures for benchmark-action.", metavar="FILE"),
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the memory budgets of pyproject.toml or memprof.toml; exit code 1 where one is exceeded."""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    files = {
        "json": export_json,
        "junit": export_junit,
        "markdown": export_markdown,
        "gha-benchmark": export_gha_benchmark,
    }
    outputs = GateOutputs(shown.value, files, force)
    accept = _accept_command(config, only or [], baseline, saved)
    from memprof.gate.judge import Policy

    policy = Policy(strict=strict, fail_on_improvement=fail_on_improvement, other_environment=allow_other_environment)
    gate_run = _open(config, only or [], baseline, policy, update_baseline, accept)
    report = _judge_saved(gate_run, Path(saved)) if saved is not None else _run(gate_run, outputs)
    outputs.write(report)
    raise typer.Exit(report.exit_code)


def _refuse_options(context: typer.Context) -> None:
    changed = {"debug": True, "shown": context.params.get("shown") is GateFormat.TABLE}
    given = [name for name, value in context.params.items() if value and not changed.get(name)]
    if given:
        flag = {"saved": "from", "shown": "format"}.get(given[0], given[0]).replace("_", "-")
        raise UsageError(f"--{flag} is an option of `memprof gate`; put those of `memprof gate init` after init")


def _open(
    config: str | None, only: list[str], baseline: str | None, policy: Any, updating: bool, accept: str
) -> GateRun:
    from memprof.gate.config import read_config
    from memprof.gate.config_file import find_config
    from memprof.gate.run import GateRun

    settings = read_config(find_config(Path.cwd(), config))
    if baseline is not None and not updating and not Path(baseline).exists():
        raise UsageError(f"there is no baseline {baseline}; name the file, or make it with --update-baseline")
    return GateRun(
        config=settings,
        budgets=settings.select(only),
        baseline_path=(Path(baseline) if baseline is not None else settings.baseline).absolute(),
        policy=policy,
        updating=updating,
        complete=not only,
        accept=accept,
    )


def _run(gate_run: GateRun, outputs: GateOutputs) -> Report:
    """Run the entries. If the user interrupts the run, the finished part is saved and shown."""
    from memprof.cli.watch import make_watcher

    finished: list[Report] = []

    def keep(report: Report) -> None:
        finished[:] = [report]
        outputs.keep(report)

    try:
        with make_watcher() as watcher:
            return gate_run.run(watcher, keep)
    except KeyboardInterrupt:
        for report in finished:
            outputs.write(report)
        raise


def _judge_saved(gate_run: GateRun, path: Path) -> Report:
    from memprof.gate.report import Report

    figures = Report.load(path).figures
    gate_run.refuse_other_setups(path.name, figures)
    return gate_run.report(figures)


def _accept_command(config: str | None, only: list[str], baseline: str | None, saved: str | None) -> str:
    """Return the command that accepts the figures of this one, quoted for a shell."""
    words = ["memprof", "gate", "--update-baseline"]
    words += ["--config", config] if config is not None else []
    words += [word for name in only for word in ("--only", name)]
    words += ["--baseline", baseline] if baseline is not None else []
    words += ["--from", saved] if saved is not None else []
    return shlex.join(words)
