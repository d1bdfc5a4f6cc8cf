"""Prints a comparison on the terminal. Tables are split to fit into its width, and no number is cut off."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from memprof.documents.comparison import Comparison
from memprof.documents.wording import category_title
from memprof.report.content import sections, validation
from memprof.report.content.columns import main_table
from memprof.report.content.outline import BASIS, HOLDERS, RANKS, VALIDATION
from memprof.report.content.ranks import rank_remark, rank_table
from memprof.report.content.summary import summarize
from memprof.report.text_table import GAP, Table, column_widths, fold
from memprof.units import format_size

# Wide enough for every column of the main table, so that the logs of CI machines show it as one table.
PLAIN_WIDTH = 160
_NARROWEST = 16  # the smallest width of a column of words, in terminal cells
_LETTERS = {
    "parameters": ("P", "blue"),
    "gradients": ("G", "cyan"),
    "optimizer_state": ("S", "magenta"),
    "activations": ("A", "green"),
    "temporaries": ("T", "yellow"),
    "buffers": ("B", "bright_blue"),
    "inputs": ("I", "bright_cyan"),
    "workspace": ("W", "bright_magenta"),
    "communication": ("C", "bright_yellow"),
    "unattributed": ("?", "red"),
}


def make_console(file: TextIO | None = None) -> Console:
    """Return a console that writes to a stream.

    Its width is that of the terminal, or that of the environment variable COLUMNS, or else 160 cells.

    Args:
        file: The stream; by default stdout.
    """
    stream = file if file is not None else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def render(comparison: Comparison, console: Console) -> None:
    """Print a comparison: the main table, failures, the breakdown at the peaks, notes, and last the summary.

    Args:
        comparison: The comparison to print.
        console: The terminal.
    """
    for part in _parts(comparison, console.width):
        console.print(part)


def captured(show: Callable[[Console], None]) -> str:
    """Call a function that prints to a console, and return what it printed as plain text."""
    stream = io.StringIO()
    show(Console(file=stream, width=PLAIN_WIDTH, highlight=False, markup=False, emoji=False, color_system=None))
    return stream.getvalue()


def category_letter(category: str) -> str:
    """Return the letter that represents a category in a bar."""
    return _LETTERS.get(category, ("?", "red"))[0]


def render_words(table: Table, console: Console) -> None:
    """Print a table of words. In a narrow terminal its cells are wrapped, except names and numbers.

    Args:
        table: The table to print.
        console: The terminal.
    """
    drawn = _plain_table()
    for index, title in enumerate(table.titles):
        right = table.right[index]
        drawn.add_column(Text(title), justify="right" if right else "left", no_wrap=right or index == 0)
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def render_checks(checks: Iterable[tuple[str, str, str]], console: Console) -> None:
    """Print findings, one on each line.

    Args:
        checks: The level (`pass`, `warn` or `fail`), the name and the sentence of each finding.
        console: The terminal.
    """
    colours = {"pass": "green", "warn": "yellow", "fail": "bold red"}
    grid = RichTable.grid(padding=(0, GAP, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    for level, name, finding in checks:
        grid.add_row(Text(level, style=colours[level]), Text(name), Text(finding))
    console.print(grid)


def bar(sizes: dict[str, int], total: int, width: int) -> Text:
    """Return a stacked bar in which each category has cells in proportion to its bytes, drawn with its letter.

    Cells that remain after rounding down go to the categories with the largest remainders, so that the sum is always
    right. A category that is too small for a cell gets none.

    Args:
        sizes: The bytes of each category.
        total: The bytes of all categories.
        width: The number of terminal cells.
    """
    exact = {name: width * size / total for name, size in sizes.items()} if total else {}
    cells = {name: int(share) for name, share in exact.items()}
    missing = width - sum(cells.values()) if exact else 0
    for name in sorted(exact, key=lambda name: cells[name] - exact[name])[:missing]:
        cells[name] += 1
    text = Text()
    for name, count in cells.items():
        letter, colour = _LETTERS.get(name, ("?", "red"))
        text.append(letter * count, style=f"black on {colour}")
    return text


def _parts(comparison: Comparison, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(sections.heading(comparison), style="bold")]
    size = sections.model_size(comparison)
    parts += [Text(f"{size}; {sections.sources(comparison)}")] if size else []
    parts += ["", *_pieces(main_table(comparison), width)]
    broken = sections.problems(comparison)
    parts += ["", *(Text(line, style="red") for line in broken)] if broken else []
    remark = sections.fit_remark(comparison)
    parts += ["", Text(remark)] if remark else []
    parts += _breakdown(comparison, width)
    parts += _ranks(comparison, width)
    parts += _validation(comparison, width)
    basis = sections.basis(comparison)
    parts += ["", Text(BASIS, style="bold"), *map(_bullet, basis)] if basis else []
    found = sections.notes(comparison)
    parts += ["", *([Text("Notes", style="bold")] if basis else []), *map(_bullet, found)] if found else []
    return [*parts, "", *(Text(sentence, style="bold") for sentence in summarize(comparison))]


def _ranks(comparison: Comparison, width: int) -> list[RenderableType]:
    remark = rank_remark(comparison)
    if not remark:
        return []
    return ["", Text(RANKS, style="bold"), *_pieces(rank_table(comparison), width), "", Text(remark)]


def _validation(comparison: Comparison, width: int) -> list[RenderableType]:
    if not validation.validated(comparison):
        return []
    makers = (validation.layer_table, validation.phase_table, validation.category_table)
    tables = [table for table in (make(comparison) for make in makers) if table.rows]
    parts: list[RenderableType] = ["", Text(VALIDATION, style="bold")]
    parts += [Text(remark)] if (remark := validation.remark(comparison)) else []
    parts += [Text(reason, style="red") for reason in validation.reasons(comparison)]
    return parts + [part for table in tables for part in ("", *_pieces(table, width))]


def _pieces(table: Table, width: int) -> list[RenderableType]:
    widths = column_widths(table, name_width=max(16, width // 3))
    pieces: list[RenderableType] = []
    for piece in fold(table, widths, width):
        pieces += ["", _rich_table(piece, width)]
    return pieces[1:]


def _rich_table(table: Table, width: int) -> RichTable:
    widths = column_widths(table, name_width=max(16, width // 3))
    wordy = _shrink(table, widths, width)
    drawn = _plain_table()
    for index, title in enumerate(table.titles):
        heading = title if cell_len(title) <= widths[index] else "\n".join(title.split())
        drawn.add_column(
            Text(heading),
            justify="right" if table.right[index] else "left",
            vertical="bottom",
            width=widths[index],
            no_wrap=index not in (0, wordy),
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _shrink(table: Table, widths: list[int], width: int) -> int:
    """Narrow the widest column of words until the table fits.

    Returns:
        The index of that column; 0 if the table fits already or has no column of words.
    """
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    words = [index for index in range(1, len(widths)) if not table.right[index]]
    if excess <= 0 or not words:
        return 0
    widest = max(words, key=lambda index: widths[index])
    widths[widest] = max(_NARROWEST, widths[widest] - excess)
    return widest


def _plain_table() -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.header_style = "bold"
    return drawn


def _bullet(note: str) -> RichTable:
    line = RichTable.grid(padding=(0, 1, 0, 0))
    line.add_row("-", Text(note))
    return line


def _breakdown(comparison: Comparison, width: int) -> list[RenderableType]:
    if not sections.breakdowns(comparison):
        return []
    title = Text(HOLDERS, style="bold")
    table = sections.category_table(comparison)
    needed = sum(column_widths(table, name_width=max(16, width // 3))) + GAP * (len(table.titles) - 1)
    numbers = _pieces(table, width) if needed <= width else []
    return ["", title, _bars(comparison, width), _legend(comparison), *([""] if numbers else []), *numbers]


def _bars(comparison: Comparison, width: int) -> RichTable:
    shown, names = sections.breakdowns(comparison), sections.present_categories(comparison)
    largest = max(found.total_bytes for _, found in shown)
    name_width = min(max(cell_len(run.optimizer.spec) for run, _ in shown), max(16, width // 3))
    bar_width = max(10, min(72, width - name_width - 14))
    grid = RichTable.grid(padding=(0, GAP, 0, 0))
    grid.add_column(width=name_width, overflow="fold")
    grid.add_column(width=bar_width, no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for run, found in shown:
        cells = round(bar_width * found.total_bytes / largest) if largest else 0
        held = {name: found.by_category.get(name, 0) for name in names}
        drawn = bar(held, found.total_bytes, cells)
        grid.add_row(Text(run.optimizer.spec), drawn, format_size(found.total_bytes))
    return grid


def _legend(comparison: Comparison) -> Text:
    legend = Text()
    for name in sections.present_categories(comparison):
        letter, colour = _LETTERS.get(name, ("?", "red"))
        legend.append(letter, style=f"black on {colour}").append(f" {category_title(name)}   ")
    legend.rstrip()
    return legend
