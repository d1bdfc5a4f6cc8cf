"""Prints documents other than comparisons on the terminal: tables, lists and sentences one below the other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from memprof.report.render.terminal import _bullet as bullet
from memprof.report.render.terminal import _pieces as pieces
from memprof.report.text_table import Table

Part = Table | list[str] | str


def render_parts(heading: str, parts: Sequence[Part], console: Console) -> None:
    """Print a heading and then each part, separated by empty lines.

    Args:
        heading: The heading.
        parts: Tables, which are split to fit into the width of the terminal, lists of lines, and sentences. Empty parts
            are left out.
        console: The terminal.
    """
    console.print(Text(heading, style="bold"))
    before: Part | None = None
    for part in parts:
        if not part or (isinstance(part, Table) and not part.rows):
            continue
        if not (isinstance(part, str) and isinstance(before, str)):
            console.print()
        if isinstance(part, Table):
            for piece in pieces(part, console.width):
                console.print(piece)
        elif isinstance(part, list):
            for line in part:
                console.print(bullet(line))
        else:
            console.print(Text(part, style="bold"))
        before = part
