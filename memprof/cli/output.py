"""Printing for all commands: data goes to stdout, and everything else goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def print_json(document: Any) -> None:
    """Print a document as indented JSON."""
    import json

    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table of text whose cells are wrapped to fit the terminal's width.

    Args:
        titles: The column titles; the first column names the row.
        rows: The cells.
        numbers: The titles of the columns that are aligned right.
    """
    from memprof.report.render.terminal import make_console, render_words
    from memprof.report.text_table import Table

    table = Table(
        titles=tuple(titles),
        rows=tuple(tuple(row) for row in rows),
        ranks=tuple(range(len(titles))),
        right=tuple(title in numbers for title in titles),
    )
    render_words(table, make_console())


def tell(sentence: str) -> None:
    """Print a remark to stderr."""
    print(sentence, file=sys.stderr)
