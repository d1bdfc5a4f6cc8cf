"""The configuration file: finding it, reading it, and saying where in it something stands."""

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
        path: where it is.
        text: what stands in it.
        table: what memprof's part of it says.
        prefix: of the table names: `tool.memprof.` in pyproject.toml, nothing in memprof.toml.
    """

    path: Path
    text: str
    table: dict[str, Any]
    prefix: str

    def line_of(self, table: str, key: str | None = None) -> int | None:
        """Return the line of a table's header, or of a key below it; None where it is written in another way."""
        lines = self.text.splitlines()
        wanted = _plain(self.prefix + table)
        for number, line in enumerate(lines, 1):
            if _header(line) == wanted:
                return number if key is None else _key_line(lines, number, key) or number
        return None

    def where(self, table: str, key: str | None = None) -> str:
        """Return `memprof.toml:12: [budgets.pretrain]`, what sentences about the table begin with."""
        line = self.line_of(table, key)
        place = f"{self.path.name}:{line}" if line is not None else self.path.name
        return f"{place}: [{self.prefix}{table}]"


def find_config(start: Path, explicit: str | None = None) -> ConfigFile:
    """Return the configuration: the file named, else the nearest in `start` and the folders above it.

    In one folder `memprof.toml` comes before the `[tool.memprof]` of `pyproject.toml`, as ruff's own file does.

    Raises:
        UsageError: the file named is not there, or a file is no TOML.
        MemprofError: no file was named and there is none (nothing to do).
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
    """Return the file's configuration, None for a pyproject.toml without one."""
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
    """Return a TOML file's text and what it says.

    Raises:
        UsageError: it cannot be read or is no TOML; the sentence has its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}; name a {OWN_FILE} or a {PROJECT_FILE}") from None
    return text, parse_toml(path, text)


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    """Return what TOML says that stands, or is to stand, in a file.

    Raises:
        UsageError: it is no TOML; the sentence has its line.
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
    hint = " (an entry or a key stands there twice)" if _DUPLICATE.search(said) else ""
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
