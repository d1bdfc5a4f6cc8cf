"""The command `memprof diff`."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from memprof.cli.options import DebugOption
from memprof.errors import ExitCode, MemprofError

if TYPE_CHECKING:
    from memprof.gate.diff import Difference


class DiffFormat(str, Enum):
    """The formats that `memprof diff` can print."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD.json", help="The older comparison, saved with --export-json.")],
    new: Annotated[str, typer.Argument(metavar="NEW.json", help="The newer comparison.")],
    shown: Annotated[
        DiffFormat,
        typer.Option("--format", help="The format on stdout: table, json or markdown.", metavar="NAME"),
    ] = DiffFormat.TABLE,
    everything: Annotated[bool, typer.Option("--all", help="Also show the figures that did not change.")] = False,
    debug: DebugOption = False,
) -> None:
    """Say what changed between two saved comparisons, and in which category and module."""
    from memprof.documents.comparison import Comparison
    from memprof.gate.diff import compare_documents

    difference = compare_documents(Comparison.load(old), Comparison.load(new), (old, new))
    _show(difference, shown, everything)
    if not any(run.old_status and run.new_status for run in difference.runs):
        raise MemprofError(f"{old} and {new} have no optimizer in common", ExitCode.NOTHING_TO_DO)


def _show(difference: Difference, shown: DiffFormat, everything: bool) -> None:
    from memprof.gate.formats.diff import render, to_markdown
    from memprof.report.render.terminal import make_console

    if shown is DiffFormat.JSON:
        sys.stdout.write(difference.to_json())
    elif shown is DiffFormat.MARKDOWN:
        sys.stdout.write(to_markdown(difference, everything))
    else:
        render(difference, everything, make_console())
