"""What a check of `memprof doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """A finding: `pass`, `warn` (a figure is missing or may mislead), `fail` (memprof does not work)."""

    name: str
    level: Level
    finding: str
