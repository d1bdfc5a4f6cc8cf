"""Where a gate's report goes: stdout in one format, files in any, and GitHub's step summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memprof.gate.document import Report

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
        from memprof.report.terminal import make_console

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
