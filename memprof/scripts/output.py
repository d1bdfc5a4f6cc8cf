"""Sends the text that a script prints to stderr, dimmed if that is a terminal, or to a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO
from unittest.mock import patch

_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"
_CLEAR_LINE = "\r\x1b[2K"  # clears the progress line, which is drawn again below


class DimmedText:
    """A wrapper around a terminal's text stream that dims the text written to it. All else is left to the stream.

    Args:
        stream: The text stream of the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_line = False

    def write(self, text: str) -> int:
        """Write a text and return its length in characters."""
        if text:
            clear = "" if self._in_line else _CLEAR_LINE
            self._in_line = not text.endswith("\n")
            self._stream.write(f"{clear}{_DIM}{text}{_PLAIN}")
            self._stream.flush()
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write the texts one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def script_output(file: str | None) -> Iterator[None]:
    """Send everything that is printed within the `with` block to a file, or to stderr.

    Args:
        file: The path of the file; None for stderr.
    """
    if file is not None:
        with _into(file):
            yield
        return
    sys.stdout.flush()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that its lines keep their order with those of stderr
    if not _dims():
        yield
        sys.stdout.flush()
        return
    with patch.object(sys, "stdout", DimmedText(sys.stderr)), patch.object(sys, "stderr", DimmedText(sys.stderr)):
        yield


def _dims() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextmanager
def _into(file: str) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    taker = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, _ in kept:
        os.dup2(taker, number)
    os.close(taker)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
