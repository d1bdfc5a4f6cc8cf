"""Options that several commands have."""

from __future__ import annotations

import os
from typing import Annotated

import typer

_asked = {"debug": False}


def debug_asked() -> bool:
    """Whether `--debug` was given: errors then come with their traceback."""
    return _asked["debug"]


def _remember_debug(value: bool) -> bool:
    _asked["debug"] = _asked["debug"] or value
    if value:
        os.environ["MEMPROF_DEBUG"] = "1"  # workers print their tracebacks too
    return value


DebugOption = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, help="Show tracebacks instead of one sentence.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
