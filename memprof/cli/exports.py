"""Where a document goes: to stdout and into the files that were asked for, checked before any work, written whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memprof.cli.output import tell
from memprof.errors import MemprofError, UsageError

if TYPE_CHECKING:
    from memprof.documents.base import Saved
    from memprof.gate.report import Report
    from memprof.workers.progress import OnProgress


_D = TypeVar("_D", bound="Saved")
STDOUT = "-"


class Exports:
    """The outputs of a document.

    Args:
        files: per format (`json`, `csv`, `markdown`) the file, `-` for stdout, or None.
        as_json: `--json` was given: stdout is taken.
        force: overwrite files that exist.

    Raises:
        UsageError: a file exists, cannot be written or is named twice, or two outputs want stdout.
    """

    def __init__(self, files: Mapping[str, str | None], *, as_json: bool, force: bool) -> None:
        from memprof.files import check_exports

        self._files = {kind: name for kind, name in files.items() if name is not None}
        self._as_json = as_json
        to_stdout = [f"--export-{kind} -" for kind, name in self._files.items() if name == STDOUT]
        to_stdout += ["--json"] if as_json else []
        if len(to_stdout) > 1:
            raise UsageError(f"{' and '.join(to_stdout)} both write to stdout; give one of them a file")
        self._takes_stdout = bool(to_stdout)
        named = [self._paths(kind, name) for kind, name in self._files.items() if name != STDOUT]
        check_exports([path for paths in named for path in paths], force)

    def keep(self, document: Saved) -> None:
        """Write the JSON file so far, if one is asked for: called whenever something has finished."""
        if self._files.get("json", STDOUT) != STDOUT:
            document.save(self._files["json"])

    def show(self, document: _D, draw: Callable[[_D], None]) -> None:
        """Write every export and what stdout is to have, by `draw` where it is left for the terminal's tables."""
        written = []
        for kind, name in self._files.items():
            if name == STDOUT:
                sys.stdout.write(self._text(kind, document))
            else:
                written += self._write(kind, name, document)
        if self._as_json:
            sys.stdout.write(document.to_json())
        elif not self._takes_stdout:
            draw(document)
        if written:
            tell(f"wrote {', '.join(written)}")

    def _paths(self, kind: str, name: str) -> list[Path]:
        """Return the files that a format fills."""
        return [Path(name)]

    def _text(self, kind: str, document: Any) -> str:
        """Return the document in a format."""
        if kind == "csv":
            return str(document.to_frame().to_csv(index=False, lineterminator="\n"))
        return str(document.to_json() if kind == "json" else document.to_markdown())

    def _write(self, kind: str, name: str, document: Any) -> list[str]:
        """Write one export and return the files written."""
        from memprof.files import write_text

        write_text(Path(name), self._text(kind, document))
        return [name]


class ComparisonExports(Exports):
    """The outputs of a comparison, which has `html` as well, and figures beside its `markdown`."""

    def _paths(self, kind: str, name: str) -> list[Path]:
        from memprof.report.write import report_paths

        return report_paths(Path(name)) if kind == "markdown" else super()._paths(kind, name)

    def _text(self, kind: str, document: Any) -> str:
        if kind == "csv":
            from memprof.report.render.frame import to_csv

            return to_csv(document)
        if kind == "html":
            from memprof.report.render.html import to_page

            return to_page(document)
        return super()._text(kind, document)

    def _write(self, kind: str, name: str, document: Any) -> list[str]:
        if kind != "markdown":
            return super()._write(kind, name, document)
        from memprof.report.write import write_report

        saved = self._files.get("json", STDOUT)
        written = write_report(document, Path(name), None if saved == STDOUT else Path(saved))
        return [str(file) for file in written]


def watched(run: Callable[[OnProgress, Callable[[_D], None]], _D], exports: Exports, draw: Callable[[_D], None]) -> _D:
    """Run with progress on stderr, keep the document as it grows, and show what there is if the run is cut short.

    Args:
        run: told whom to tell of progress and of each document so far; returns the whole one.
        exports: where it goes.
        draw: prints its tables on the terminal.
    """
    from memprof.cli.watch import make_watcher

    finished: list[_D] = []

    def keep(document: _D) -> None:
        finished[:] = [document]
        exports.keep(document)

    try:
        with make_watcher() as watcher:
            return run(watcher, keep)
    except (KeyboardInterrupt, MemprofError):
        for document in finished:
            exports.show(document, draw)
        raise


def make_trace_folder(name: str | None, optimizers: list[str] | None, force: bool) -> Path | None:
    """Return the folder that traces go to, made where it is not there; None where none is wanted.

    Raises:
        UsageError: it cannot be made or written, or a trace of an optimizer is there already.
    """
    if name is None:
        return None
    from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS
    from memprof.export import trace_paths
    from memprof.files import check_writable

    folder = Path(name)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another") from None
    for spec in optimizers or DEFAULT_OPTIMIZERS:
        for path in trace_paths(folder, spec):
            check_writable(path, force)
    return folder


SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"


class GateOutputs:
    """The outputs of one gate.

    Args:
        shown: the format on stdout, `table` or one of `memprof.gate.formats.FORMATS`.
        files: per format the file, or None.
        force: overwrite files that exist.

    Raises:
        UsageError: a file exists, cannot be written or is named twice.
    """

    def __init__(self, shown: str, files: Mapping[str, str | None], force: bool) -> None:
        from memprof.files import check_exports, check_writable

        self.shown = shown
        # Relative to where the command was given, not to where the model files are.
        self.files = {kind: Path(path).absolute() for kind, path in files.items() if path is not None}
        check_exports(list(self.files.values()), force)
        summary = os.environ.get(SUMMARY_VARIABLE)
        self.summary = Path(summary) if summary else None
        if self.summary is not None:
            check_writable(self.summary, force=True)

    def keep(self, report: Report) -> None:
        """Write the JSON file so far, if one is asked for: called after every finished trial."""
        from memprof.files import write_text

        if "json" in self.files:
            write_text(self.files["json"], report.to_json())

    def write(self, report: Report) -> None:
        """Write every file, then stdout."""
        from memprof.files import write_text
        from memprof.gate.formats import FORMATS

        for kind, path in self.files.items():
            write_text(path, FORMATS[kind](report))
        if self.summary is not None:
            with self.summary.open("a", encoding="utf-8") as stream:
                stream.write(FORMATS["markdown"](report) + "\n")
        if self.shown == "github":
            self._print_for_github(report)
        elif self.shown == "table":
            self._print_table(report)
        else:
            sys.stdout.write(FORMATS[self.shown](report))

    def _print_table(self, report: Report) -> None:
        from memprof.gate.formats.table import render
        from memprof.report.render.terminal import make_console

        render(report, make_console())

    def _print_for_github(self, report: Report) -> None:
        """Print the table for the log, then the annotations.

        A runner obeys any line that looks like a command, whoever wrote it: a user's text in the table must not.
        """
        import secrets

        from memprof.gate.formats import FORMATS

        token = secrets.token_hex(16)
        print(f"::stop-commands::{token}")
        self._print_table(report)
        print(f"::{token}::")
        sys.stdout.write(FORMATS["github"](report))
