"""`memprof diff`."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from memprof.cli.options import DebugOption
from memprof.errors import ExitCode, MemprofError

if TYPE_CHECKING:
    from memprof.gate.diff import Difference


class Format(str, Enum):
    """What `memprof diff` can print."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD.json", help="Saved by memprof compare --export-json.")],
    new: Annotated[str, typer.Argument(metavar="NEW.json", help="The same, later.")],
    shown: Annotated[
        Format, typer.Option("--format", help="table, json or markdown, on stdout.", metavar="NAME")
    ] = Format.TABLE,
    everything: Annotated[bool, typer.Option("--all", help="Show figures that did not move as well.")] = False,
    debug: DebugOption = False,
) -> None:
    """Say what changed between two saved comparisons, and in which category and module."""
    from memprof.documents.comparison import Comparison
    from memprof.gate.diff import compare_documents

    difference = compare_documents(Comparison.load(old), Comparison.load(new), (old, new))
    _show(difference, shown, everything)
    if not any(run.old_status and run.new_status for run in difference.runs):
        raise MemprofError(f"{old} and {new} have no optimizer in common", ExitCode.NOTHING_TO_DO)


def _show(difference: Difference, shown: Format, everything: bool) -> None:
    from memprof.gate.formats.diff import render, to_markdown
    from memprof.report.render.terminal import make_console

    if shown is Format.JSON:
        sys.stdout.write(difference.to_json())
    elif shown is Format.MARKDOWN:
        sys.stdout.write(to_markdown(difference, everything))
    else:
        render(difference, everything, make_console())
