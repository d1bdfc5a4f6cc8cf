"""The command line: every command, and the options that come before a command."""

from __future__ import annotations

from typing import Annotated

import typer

from memprof.cli import (
    advise,
    compare,
    devices,
    diff,
    doctor,
    fit,
    gate,
    gate_init,
    models,
    optimizers,
    report,
    reproduce,
    run,
    schema,
)
from memprof.cli.options import DebugOption
from memprof.errors import ExitCode

app = typer.Typer(
    name="memprof",
    help="How much memory does training my model take with each optimizer, and does it fit?",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("compare", no_args_is_help=False)(compare.compare)
app.command("run", cls=run.RunCommand, no_args_is_help=False, context_settings={"allow_interspersed_args": False})(
    run.run
)
app.command("report")(report.report)
app.command("fit")(fit.fit)
app.command("advise")(advise.advise)
app.command("diff")(diff.diff)
app.command("reproduce")(reproduce.reproduce)
app.command("models")(models.models)
app.command("optimizers")(optimizers.optimizers)
app.command("devices")(devices.devices)
app.command("doctor")(doctor.doctor)
app.command("schema")(schema.schema)

gating = typer.Typer(pretty_exceptions_enable=False)
gating.callback(invoke_without_command=True)(gate.gate)
gating.command("init")(gate_init.init)
app.add_typer(gating, name="gate")


def _print_version(asked: bool) -> None:
    if asked:
        from memprof.devices.host import memprof_version

        typer.echo(f"memprof {memprof_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Show the help if no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)
