"""The blocks that reports are made of, and how tables fold into a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len

GAP = 2
# Columns of this rank or above are left out where they would need a table of their own.
MINOR = 1000


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text: the first column names the row, ranks give the order in which the others get a place."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ranks: tuple[int, ...]
    right: tuple[bool, ...]

    @property
    def says_something(self) -> bool:
        """Whether there is a row."""
        return bool(self.rows)

    def select(self, indices: Iterable[int]) -> Table:
        """Return the table of these columns, in this order."""
        chosen = tuple(indices)
        return Table(
            titles=tuple(self.titles[index] for index in chosen),
            rows=tuple(tuple(row[index] for index in chosen) for row in self.rows),
            ranks=tuple(self.ranks[index] for index in chosen),
            right=tuple(self.right[index] for index in chosen),
        )


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    text: str

    @property
    def says_something(self) -> bool:
        """Whether there is text."""
        return bool(self.text)


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    lines: tuple[str, ...]

    @property
    def says_something(self) -> bool:
        """Whether there is a line."""
        return bool(self.lines)


@dataclass(frozen=True)
class Figure:
    """A drawn figure by its name (`memprof.report.figures`), for formats that show drawings beside the text."""

    name: str
    says_something: ClassVar[bool] = True


@dataclass(frozen=True)
class Folded:
    """A table that opens when its summary is clicked."""

    summary: str
    table: Table

    @property
    def says_something(self) -> bool:
        """Whether the table has a row."""
        return self.table.says_something


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    text: str

    @property
    def says_something(self) -> bool:
        """Whether a command is known."""
        return bool(self.text)


Block = Table | Paragraph | Bullets | Figure | Folded | Command


def number_table(key: str, titles: Iterable[str], rows: Iterable[tuple[str, list[str]]]) -> Table:
    """Return a table of a name and numbers per row, whose columns get their places from left to right."""
    heads = (key, *titles)
    return Table(
        titles=heads,
        rows=tuple((name, *cells) for name, cells in rows),
        ranks=tuple(range(len(heads))),
        right=(False, *(True for _ in heads[1:])),
    )


def column_widths(table: Table, name_width: int) -> list[int]:
    """Return the terminal cells each column needs; headings break at spaces, names after `name_width`."""
    cells = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.titles)
    widths = [
        max(cell_len(text) for text in (*title.split(), *column, ""))
        for title, column in zip(table.titles, cells, strict=True)
    ]
    return [min(widths[0], name_width), *widths[1:]]


def fold(table: Table, widths: Sequence[int], width: int) -> list[Table]:
    """Split a table into tables that fit into `width` terminal cells, each beginning with the names.

    Columns get their places by rank and stand in their original order. A column too wide for any table stands
    alone beside the names. None is lost, but for minor columns that would need one more table.
    """
    waiting = sorted(range(1, len(table.titles)), key=lambda index: table.ranks[index])
    tables: list[Table] = []
    while waiting and not (tables and all(table.ranks[index] >= MINOR for index in waiting)):
        chosen = _fill(waiting, widths, width - widths[0]) or waiting[:1]
        tables.append(table.select((0, *sorted(chosen))))
        waiting = [index for index in waiting if index not in chosen]
    return tables or [table]


def _fill(waiting: Sequence[int], widths: Sequence[int], room: int) -> list[int]:
    chosen = []
    for index in waiting:
        if widths[index] + GAP <= room:
            chosen.append(index)
            room -= widths[index] + GAP
    return chosen
