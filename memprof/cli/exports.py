"""`--export-json`, `--export-csv`, `--export-markdown`: checked before any training, written whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from memprof.errors import UsageError

if TYPE_CHECKING:
    from memprof.results import Comparison

STDOUT = "-"


class Exports:
    """Where a comparison is to be written.

    Args:
        files: per format (`json`, `csv`, `markdown`) the file, `-` for stdout, or None.
        as_json: `--json` was given: stdout is taken.
        force: overwrite files that exist.

    Raises:
        UsageError: a file exists, cannot be written or is named twice, or two outputs want stdout.
    """

    def __init__(self, files: Mapping[str, str | None], *, as_json: bool, force: bool) -> None:
        self.files = {kind: path for kind, path in files.items() if path is not None}
        to_stdout = [f"--export-{kind} -" for kind, path in self.files.items() if path == STDOUT]
        to_stdout += ["--json"] if as_json else []
        if len(to_stdout) > 1:
            raise UsageError(f"{' and '.join(to_stdout)} both write to stdout; give one of them a file")
        self.takes_stdout = bool(to_stdout)
        paths = [Path(path).resolve() for path in self.files.values() if path != STDOUT]
        if len(set(paths)) < len(paths):
            raise UsageError("two exports name the same file; give each its own")
        for path in paths:
            _check(path, force)

    def keep(self, comparison: Comparison) -> None:
        """Write the JSON file so far, if one is asked for: called after every finished trial."""
        if self.files.get("json", STDOUT) != STDOUT:
            comparison.save(self.files["json"])

    def write(self, comparison: Comparison) -> list[str]:
        """Write every export and return the files written."""
        self.keep(comparison)
        for kind, path in self.files.items():
            if path == STDOUT:
                sys.stdout.write(_WRITERS[kind](comparison))
            elif kind != "json":
                _write(Path(path), _WRITERS[kind](comparison))
        return [path for path in self.files.values() if path != STDOUT]


def _to_csv(comparison: Comparison) -> str:
    from memprof.report.frame import to_csv

    return to_csv(comparison)


_WRITERS: dict[str, Callable[[Comparison], str]] = {
    "json": lambda comparison: comparison.to_json(),
    "csv": _to_csv,
    "markdown": lambda comparison: comparison.to_markdown(),
}


def _check(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force overwrites it")
    try:
        if path.exists():
            path.open("a").close()
        else:
            path.touch(exist_ok=False)
            path.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
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
