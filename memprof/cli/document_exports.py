"""Where a document goes: to stdout, as JSON or rendered, and into the files that were asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprof.cli.output import tell
from memprof.errors import UsageError

if TYPE_CHECKING:
    from memprof.documents import Saved

STDOUT = "-"


class DocumentExports:
    """The files of a document, checked before any work.

    Args:
        files: per format (`json`, `csv`, `markdown`) the file, `-` for stdout, or None.
        as_json: `--json` was given: stdout is taken.
        force: overwrite files that exist.

    Raises:
        UsageError: a file exists, cannot be written or is named twice, or two outputs want stdout.
    """

    def __init__(self, files: Mapping[str, str | None], *, as_json: bool, force: bool) -> None:
        from memprof.files import check_writable

        self._files = {kind: name for kind, name in files.items() if name is not None}
        self._as_json = as_json
        to_stdout = [f"--export-{kind} -" for kind, name in self._files.items() if name == STDOUT]
        to_stdout += ["--json"] if as_json else []
        if len(to_stdout) > 1:
            raise UsageError(f"{' and '.join(to_stdout)} both write to stdout; give one of them a file")
        self._takes_stdout = bool(to_stdout)
        paths = [Path(name).resolve() for name in self._files.values() if name != STDOUT]
        if len(set(paths)) < len(paths):
            raise UsageError("two exports name the same file; give each its own")
        for path in paths:
            check_writable(path, force)

    def keep(self, document: Saved) -> None:
        """Write the JSON file so far, if one is asked for."""
        if self._files.get("json", STDOUT) != STDOUT:
            document.save(self._files["json"])

    def show(self, document: Saved) -> bool:
        """Write every export, and say whether stdout is left for the terminal's tables."""
        from memprof.files import write_text

        if self._as_json:
            sys.stdout.write(document.to_json())
        for kind, name in self._files.items():
            text = _WRITERS[kind](document)
            if name == STDOUT:
                sys.stdout.write(text)
            else:
                write_text(Path(name), text)
        written = [name for name in self._files.values() if name != STDOUT]
        if written:
            tell(f"wrote {', '.join(written)}")
        return not self._takes_stdout


_WRITERS: dict[str, Callable[[Any], str]] = {
    "json": lambda document: document.to_json(),
    "csv": lambda document: document.to_frame().to_csv(index=False, lineterminator="\n"),
    "markdown": lambda document: document.to_markdown(),
}
