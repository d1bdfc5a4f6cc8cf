"""Documents other than comparisons on the terminal: tables, lists and sentences one below the other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from memprof.report.blocks import Table
from memprof.report.render.terminal import _bullet as bullet
from memprof.report.render.terminal import _pieces as pieces

Part = Table | list[str] | str


def render_parts(heading: str, parts: Sequence[Part], console: Console) -> None:
    """Print a heading, then each part with a line between: a table folded to the width, a list, or a sentence."""
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
