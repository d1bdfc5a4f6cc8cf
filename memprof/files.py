"""Writes files. A path is checked before any work is done, and a file is written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from memprof.errors import UsageError


def check_writable(path: Path, force: bool) -> None:
    """Refuse a path that cannot be written, or that exists without `force`. An existing file is not changed.

    Args:
        path: the file to write later.
        force: whether an existing file may be overwritten.

    Raises:
        UsageError: the path is a folder, its folder does not exist, or writing is not permitted.
    """
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force overwrites it")
    probe = _partial(path)  # files are replaced, so the folder must accept a new file
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
        if path.exists():
            path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from error


def check_exports(paths: Sequence[Path], force: bool) -> None:
    """Refuse files that cannot be written, as `check_writable` does, and files that are named twice.

    Args:
        paths: the files to write later.
        force: whether existing files may be overwritten.

    Raises:
        UsageError: a file is refused; the message names the first one.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("two exports name the same file; give each its own")
    for path in paths:
        check_writable(path, force)


def write_text(path: Path, text: str) -> None:
    """Write a file in such a way that nobody ever sees half of it.

    The text goes to a second file in the same folder, which then replaces the first.

    Args:
        path: the file.
        text: its content.

    Raises:
        UsageError: the path cannot be written.
    """
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
