"""Tables of text, and how they are split to fit into a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

GAP = 2
# Columns of this rank or above are left out if they would need one more table.
MINOR = 1000


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text whose first column names the rows.

    Attributes:
        titles: The headings of the columns.
        rows: The cells of each row.
        ranks: The priority of each column when the terminal is narrow; the lowest rank gets a place first.
        right: Whether each column is aligned to the right.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ranks: tuple[int, ...]
    right: tuple[bool, ...]

    @property
    def says_something(self) -> bool:
        """Whether there is a row."""
        return bool(self.rows)

    def select(self, indices: Iterable[int]) -> Table:
        """Return a table with only the columns of these indices, in this order."""
        chosen = tuple(indices)
        return Table(
            titles=tuple(self.titles[index] for index in chosen),
            rows=tuple(tuple(row[index] for index in chosen) for row in self.rows),
            ranks=tuple(self.ranks[index] for index in chosen),
            right=tuple(self.right[index] for index in chosen),
        )


def number_table(key: str, titles: Iterable[str], rows: Iterable[tuple[str, list[str]]]) -> Table:
    """Return a table with a name and numbers in each row; its columns get their places from left to right.

    Args:
        key: The heading of the names.
        titles: The headings of the numbers.
        rows: The name and the formatted numbers of each row.
    """
    heads = (key, *titles)
    return Table(
        titles=heads,
        rows=tuple((name, *cells) for name, cells in rows),
        ranks=tuple(range(len(heads))),
        right=(False, *(True for _ in heads[1:])),
    )


def column_widths(table: Table, name_width: int) -> list[int]:
    """Return the width that each column needs, in terminal cells.

    Headings may be broken at spaces.

    Args:
        table: The table.
        name_width: The largest width of the first column, whose names are wrapped after it.
    """
    cells = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.titles)
    widths = [
        max(cell_len(text) for text in (*title.split(), *column, ""))
        for title, column in zip(table.titles, cells, strict=True)
    ]
    return [min(widths[0], name_width), *widths[1:]]


def fold(table: Table, widths: Sequence[int], width: int) -> list[Table]:
    """Split a table into tables that fit into a terminal; each of them begins with the column of names.

    Columns are chosen by rank and shown in their original order. A column that is too wide for any table is shown alone
    next to the names. No column is lost, except minor columns that would need one more table.

    Args:
        table: The table.
        widths: The width of each column, in terminal cells.
        width: The width of the terminal, in cells.
    """
    waiting = sorted(range(1, len(table.titles)), key=lambda index: table.ranks[index])
    tables: list[Table] = []
    while waiting and not (tables and all(table.ranks[index] >= MINOR for index in waiting)):
        chosen = _fill(waiting, widths, width - widths[0]) or waiting[:1]
        tables.append(table.select((0, *sorted(chosen))))
        waiting = [index for index in waiting if index not in chosen]
    return tables or [table]


def _fill(waiting: Sequence[int], widths: Sequence[int], width: int) -> list[int]:
    chosen = []
    for index in waiting:
        if widths[index] + GAP <= width:
            chosen.append(index)
            width -= widths[index] + GAP
    return chosen
