"""The checks of `memprof doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """The finding of one check.

    Attributes:
        name: The name of the check.
        level: `pass`, `warn` (a figure is missing or may mislead) or `fail` (memprof does not work).
        finding: What was found, and how to mend it.
    """

    name: str
    level: Level
    finding: str
