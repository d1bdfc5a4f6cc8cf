"""Writes a document to stdout and to the files that were asked for.

The paths are checked before any work begins, and a file is either written completely or not at all.
"""

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
        files: For each format (`json`, `csv`, `markdown`) the name of the file, `-` for stdout, or None.
        as_json: Whether `--json` was given, so that the JSON document goes to stdout.
        force: Whether to overwrite existing files.

    Raises:
        UsageError: A file exists, cannot be written or is named twice, or two outputs would both go to stdout.
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
        """Write the unfinished document to the JSON file, if there is one. It is called after every trial or cell."""
        if self._files.get("json", STDOUT) != STDOUT:
            document.save(self._files["json"])

    def show(self, document: _D, draw: Callable[[_D], None]) -> None:
        """Write all outputs.

        Args:
            document: The document.
            draw: A function that prints the document's tables on the terminal. It is called if no other output goes to
                stdout.
        """
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
        """Return the paths of all files that a format writes."""
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
    """The outputs of a comparison, which has the further format `html`, and SVG figures beside its `markdown`."""

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
    """Run a job with progress on stderr, and save the document as it grows.

    If the job is interrupted or fails, the unfinished document is shown before the error is raised again.

    Args:
        run: The job. It gets a function for progress events and one for unfinished documents, and returns the finished
            document.
        exports: The outputs of the document.
        draw: A function that prints the document's tables on the terminal.

    Returns:
        The finished document.

    Raises:
        MemprofError: The job failed.
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
    """Return the folder for traces, and create it if it does not exist.

    Args:
        name: The path of the folder, or None if no traces are wanted.
        optimizers: The optimizer specs; None for the default ones.
        force: Whether to overwrite existing traces.

    Returns:
        The folder, or None if no traces are wanted.

    Raises:
        UsageError: The folder cannot be created or written, or it already has a trace of an optimizer.
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
        shown: The format on stdout: `table` or one of `memprof.gate.formats.FORMATS`.
        files: For each format the name of the file, or None.
        force: Whether to overwrite existing files.

    Raises:
        UsageError: A file exists, cannot be written or is named twice.
    """

    def __init__(self, shown: str, files: Mapping[str, str | None], force: bool) -> None:
        from memprof.files import check_exports, check_writable

        self.shown = shown
        # The paths are relative to the folder where the command was given, not to the folder of the model files.
        self.files = {kind: Path(path).absolute() for kind, path in files.items() if path is not None}
        check_exports(list(self.files.values()), force)
        summary = os.environ.get(SUMMARY_VARIABLE)
        self.summary = Path(summary) if summary else None
        if self.summary is not None:
            check_writable(self.summary, force=True)

    def keep(self, report: Report) -> None:
        """Write the unfinished report to the JSON file, if there is one. It is called after every trial."""
        from memprof.files import write_text

        if "json" in self.files:
            write_text(self.files["json"], report.to_json())

    def write(self, report: Report) -> None:
        """Write all files and the step summary, and then print the report to stdout."""
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

        A runner obeys every line that looks like a workflow command, so commands are switched off while the table is
        printed, which can contain text of a user.
        """
        import secrets

        from memprof.gate.formats import FORMATS

        token = secrets.token_hex(16)
        print(f"::stop-commands::{token}")
        self._print_table(report)
        print(f"::{token}::")
        sys.stdout.write(FORMATS["github"](report))
