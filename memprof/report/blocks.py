"""The blocks that a report is made of, in every format; `memprof.report.text_table` has the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from memprof.report.text_table import Table


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
class FigureReference:
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


Block = Table | Paragraph | Bullets | FigureReference | Folded | Command
