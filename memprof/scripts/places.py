"""Finds where a program is: the file and line of the frame that a reader of the script would look at."""

from __future__ import annotations

import ast
import linecache
import sys
from functools import cache
from pathlib import Path
from types import FrameType

import torch

_OURS = str(Path(__file__).resolve().parents[1])
_SM3 = str(Path(__file__).resolve().parents[2] / "sm3")
_TORCH = str(Path(torch.__file__).resolve().parent)
_PYTHON = str(Path(ast.__file__).resolve().parent)


@cache
def is_inner(file: str) -> bool:
    """Return whether a file belongs to memprof, sm3, PyTorch or Python's standard library."""
    if file.startswith(("<frozen", "<string", "<__array")):
        return True
    if file.startswith((_OURS, _SM3, _TORCH)):
        return True
    return file.startswith(_PYTHON) and "site-packages" not in file


def caller(frame: FrameType | None = None) -> FrameType | None:
    """Return the innermost frame that `is_inner` does not count as inner code, or None if there is none.

    Args:
        frame: The frame to begin with; None for the one that called this function.
    """
    found = sys._getframe(1) if frame is None else frame
    walked: FrameType | None = found
    while walked is not None and is_inner(walked.f_code.co_filename):
        walked = walked.f_back
    return walked


def place_of(frame: FrameType | None) -> str:
    """Return the place of a frame as `train.py:12`, or an empty text if there is no frame."""
    return "" if frame is None else f"{short(frame.f_code.co_filename)}:{frame.f_lineno}"


def short(file: str) -> str:
    """Return a path as a reader knows it: within its installed package, or else relative to the current folder."""
    path = Path(file)
    if "site-packages" in path.parts:
        return str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


@cache
def decides(file: str, line: int) -> bool:
    """Return whether a line decides a branch: an `if`, `while`, `assert`, conditional expression, `and` or `or`."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        test = getattr(node, "test", None)  # `if`, `while`, `assert` and the conditional expression have a test
        if isinstance(test, ast.expr) and test.lineno <= line <= (test.end_lineno or test.lineno):
            return True
        if isinstance(node, ast.BoolOp) and node.lineno <= line <= (node.end_lineno or node.lineno):
            return True
    return False
