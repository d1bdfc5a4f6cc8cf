"""`--export-json`, `--export-csv`, `--export-markdown`, `--export-html`: checked before any training, written whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memprof.errors import UsageError

if TYPE_CHECKING:
    from memprof.results import Comparison

STDOUT = "-"


class Exports:
    """Where a comparison is to be written.

    Args:
        files: per format (`json`, `csv`, `markdown`, `html`) the file, `-` for stdout, or None.
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
        from memprof.files import check_writable

        paths = [path.resolve() for kind, name in self.files.items() if name != STDOUT for path in _paths(kind, name)]
        if len(set(paths)) < len(paths):
            raise UsageError("two exports name the same file; give each its own")
        for path in paths:
            check_writable(path, force)

    def keep(self, comparison: Comparison) -> None:
        """Write the JSON file so far, if one is asked for: called after every finished trial."""
        if self.files.get("json", STDOUT) != STDOUT:
            comparison.save(self.files["json"])

    def write(self, comparison: Comparison) -> list[str]:
        """Write every export and return the files written."""
        self.keep(comparison)
        written = []
        for kind, path in self.files.items():
            if path == STDOUT:
                sys.stdout.write(_WRITERS[kind](comparison))
            else:
                written += [path] if kind == "json" else self._write_file(kind, Path(path), comparison)
        return written

    def _write_file(self, kind: str, path: Path, comparison: Comparison) -> list[str]:
        from memprof.files import write_text
        from memprof.report.files import write_report

        if kind == "markdown":
            saved = self.files.get("json", STDOUT)
            return [str(file) for file in write_report(comparison, path, None if saved == STDOUT else Path(saved))]
        write_text(path, _WRITERS[kind](comparison))
        return [str(path)]


def make_trace_folder(name: str | None, optimizers: list[str] | None, force: bool) -> Path | None:
    """Return the folder that traces go to, made where it is not there; None where none is wanted.

    Raises:
        UsageError: it cannot be made or written, or a trace of an optimizer is there already.
    """
    if name is None:
        return None
    from memprof.exporting.paths import trace_paths
    from memprof.files import check_writable
    from memprof.optimizers.spec import DEFAULT_OPTIMIZERS

    folder = Path(name)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another") from None
    for spec in optimizers or DEFAULT_OPTIMIZERS:
        for path in trace_paths(folder, spec):
            check_writable(path, force)
    return folder


def _paths(kind: str, name: str) -> list[Path]:
    from memprof.report.files import report_paths

    return report_paths(Path(name)) if kind == "markdown" else [Path(name)]


def _to_csv(comparison: Comparison) -> str:
    from memprof.report.frame import to_csv

    return to_csv(comparison)


def _to_page(comparison: Comparison) -> str:
    from memprof.report.html import to_page

    return to_page(comparison)


_WRITERS: dict[str, Callable[[Comparison], str]] = {
    "json": lambda comparison: comparison.to_json(),
    "csv": _to_csv,
    "markdown": lambda comparison: comparison.to_markdown(),
    "html": _to_page,
}
