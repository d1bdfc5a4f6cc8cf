"""Finds and reads the configuration file, and tells on which line of it a table or a key is."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memprof.errors import ExitCode, MemprofError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN_FILE = "memprof.toml"
PROJECT_FILE = "pyproject.toml"
_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_DUPLICATE = re.compile(r"[Cc]annot (?:declare|overwrite|mutate)|already")


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file.

    Attributes:
        path: The path of the file.
        text: The text of the file.
        table: The parsed table of memprof.
        prefix: What table names begin with: `tool.memprof.` in pyproject.toml, and the empty string in memprof.toml.
    """

    path: Path
    text: str
    table: dict[str, Any]
    prefix: str

    def line_of(self, table: str, key: str | None = None) -> int | None:
        """Return the line of a table's header, or of a key below it.

        The answer is None if the file has no such header line, for example because the table is written inline.
        """
        lines = self.text.splitlines()
        wanted = _plain(self.prefix + table)
        for number, line in enumerate(lines, 1):
            if _header(line) == wanted:
                return number if key is None else _key_line(lines, number, key) or number
        return None

    def where(self, table: str, key: str | None = None) -> str:
        """Return the beginning of an error message about a table: `memprof.toml:12: [budgets.pretrain]`."""
        line = self.line_of(table, key)
        place = f"{self.path.name}:{line}" if line is not None else self.path.name
        return f"{place}: [{self.prefix}{table}]"


def find_config(start: Path, explicit: str | None = None) -> ConfigFile:
    """Find the configuration.

    Within one folder, `memprof.toml` takes precedence over the `[tool.memprof]` of `pyproject.toml`, just as ruff
    prefers its own file.

    Args:
        start: The folder where the search begins. It continues in the folders above.
        explicit: The file that the user named; then there is no search.

    Returns:
        The file named, or the nearest one found.

    Raises:
        UsageError: The file named does not exist, or a file is not valid TOML.
        MemprofError: No file was named and none was found, so there is nothing to do.
    """
    if explicit is not None:
        found = _load(Path(explicit))
        if found is None:
            raise UsageError(
                f"{explicit} has no [tool.memprof]; `memprof gate init MODEL` writes budgets to start from"
            )
        return found
    for folder in (start, *start.parents):
        for name in (OWN_FILE, PROJECT_FILE):
            path = folder / name
            found = _load(path) if path.is_file() else None
            if found is not None:
                return found
    raise MemprofError(
        f"there is no {OWN_FILE} and no [tool.memprof] in a {PROJECT_FILE} here or above; `memprof gate init MODEL` "
        "writes budgets to start from",
        ExitCode.NOTHING_TO_DO,
    )


def _load(path: Path) -> ConfigFile | None:
    """Return the file's configuration, or None for a pyproject.toml without a `[tool.memprof]`."""
    text, document = read_toml(path)
    if path.name != PROJECT_FILE:
        return ConfigFile(path, text, document, "")
    tool = document.get("tool")
    table = tool.get("memprof") if isinstance(tool, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise UsageError(f"{path.name}: tool.memprof is {table!r}; it must be a table")
    return ConfigFile(path, text, table, "tool.memprof.")


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file and the parsed document.

    Raises:
        UsageError: The file cannot be read or is not valid TOML. The message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}; name a {OWN_FILE} or a {PROJECT_FILE}") from None
    return text, parse_toml(path, text)


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    """Parse the text of a TOML file.

    Args:
        path: The path of the file, for the error message; the file is not read and need not exist yet.
        text: The text to parse.

    Returns:
        The parsed document.

    Raises:
        UsageError: The text is not valid TOML. The message names the line.
    """
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(_malformed(path, text, str(error))) from None
    return document


def _malformed(path: Path, text: str, message: str) -> str:
    found = _LINE.search(message)
    line = (found[1] if found else None) or len(text.splitlines())
    said = message[: found.start()] if found else message
    hint = " (the file has an entry or a key twice)" if _DUPLICATE.search(said) else ""
    return f"{path.name}:{line}: not TOML: {said}{hint}"


def _header(line: str) -> tuple[str, ...] | None:
    found = re.fullmatch(r"\s*\[([^\[\]]+)\]\s*(#.*)?", line)
    return _plain(found[1]) if found else None


def _plain(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.split(r"\.(?=(?:[^\"']*[\"'][^\"']*[\"'])*[^\"']*$)", dotted))


def _key_line(lines: Sequence[str], header: int, key: str) -> int | None:
    pattern = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
    for number, line in enumerate(lines[header:], header + 1):
        if _header(line) is not None:
            return None
        if pattern.match(line):
            return number
    return None
