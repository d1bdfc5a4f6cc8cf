"""Saved documents: JSON files that are written completely or not at all, and that are validated when they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from memprof.errors import UsageError
from memprof.files import write_text

# A list of numbers in indented JSON, with one number on each line. A JSON string cannot match, because it cannot
# contain a line break.
_NUMBERS = re.compile(r"\[\n\s+-?\d[^\[\]{}\"]*\]")

# The module that renders each kind of document, by schema name and function. These modules are above this package, so
# they are named here and imported only when they are needed.
_RENDERERS: Mapping[tuple[str, str], str] = {
    ("memprof.comparison", "to_markdown"): "memprof.report.render.markdown",
    ("memprof.comparison", "to_frame"): "memprof.report.render.frame",
    ("memprof.comparison", "to_html"): "memprof.report.render.frame",
    ("memprof.fit", "to_markdown"): "memprof.report.content.fit",
    ("memprof.fit", "to_frame"): "memprof.report.content.fit",
    ("memprof.advice", "to_markdown"): "memprof.report.content.advice",
}

_Self = TypeVar("_Self", bound="Saved")


class Saved(BaseModel):
    """The base class of all documents that are saved to files of their own; their field `schema` names their kind.

    Attributes:
        maker: The command that saves such a document.
    """

    maker: ClassVar[str] = "memprof"
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> str:
        """Return the document as indented JSON, ending in a newline."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False)
        return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the document to a file, completely or not at all.

        Args:
            path: The file to write.

        Raises:
            UsageError: The file cannot be written.
        """
        write_text(Path(path), self.to_json())

    def _rendered(self, function: str, *arguments: Any) -> Any:
        """Return the result of the renderer's function of that name for this document."""
        kind = self.__class__.model_fields["schema_"].default.partition("/")[0]
        return getattr(import_module(_RENDERERS[kind, function]), function)(self, *arguments)

    @classmethod
    def load(cls: type[_Self], path: str | Path) -> _Self:
        """Read a saved document.

        Args:
            path: The file to read.

        Raises:
            UsageError: The file is missing, is not JSON, or has a schema that this version does not read.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UsageError(f"cannot read {path}: {reason}; give a file saved by `{cls.maker}`") from None
        return cls._parse(text, str(path))

    @classmethod
    def _parse(cls: type[_Self], text: str, origin: str) -> _Self:
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"{origin}:{error.lineno}: not JSON ({error.msg}); is the file cut off?") from None
        wanted = cls.model_fields["schema_"].default
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != wanted:
            raise UsageError(
                f"{origin} has schema {schema!r}, this version reads {wanted!r}; upgrade memprof or re-run"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            kind = wanted.partition(".")[2].partition("/")[0]
            raise UsageError(f"{origin} is no valid {kind}: {where}: {first['msg']}; run it again") from None
