"""The gate's report: figures, verdicts and what to do, one JSON document that every format is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from memprof.errors import ExitCode, UsageError
from memprof.gate.baseline import Change
from memprof.gate.figures import Figures
from memprof.gate.verdicts import Verdict, counts
from memprof.trust import Document

SCHEMA: Literal["memprof.gate/1"] = "memprof.gate/1"


class Place(Document):
    """Where an entry stands in the configuration, for annotations."""

    file: str
    line: int | None = None


class Report(Document):
    """What a gate found.

    Attributes:
        memprof: the version that made it.
        config: the configuration's name.
        baseline: the baseline's name; null where there is none.
        places: where the entries stand.
        figures: of every run.
        verdicts: on every limit.
        changes: what `--update-baseline` did.
        updated: the baseline was to be updated.
        accept: the command that accepts these figures.
        exit_code: 0 to 5, as the design has them; 130 for a report that was cut short.
    """

    schema_: Literal["memprof.gate/1"] = Field(default=SCHEMA, alias="schema")
    memprof: str
    config: str
    baseline: str | None = None
    places: dict[str, Place] = Field(default_factory=dict)
    figures: list[Figures] = Field(default_factory=list)
    verdicts: list[Verdict] = Field(default_factory=list)
    changes: list[Change] = Field(default_factory=list)
    updated: bool = False
    accept: str
    exit_code: int

    @property
    def failures(self) -> list[Verdict]:
        """The verdicts that fail the build."""
        return [verdict for verdict in self.verdicts if verdict.weight == "error"]

    @property
    def warnings(self) -> list[Verdict]:
        """The verdicts that warn."""
        return [verdict for verdict in self.verdicts if verdict.weight == "warning"]

    def to_json(self) -> str:
        """Return the document as indented JSON, ending in a newline."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


def exit_code(verdicts: Sequence[Verdict], figures: Iterable[Figures]) -> ExitCode:
    """Return what the verdicts come to: a mistake (2) before a failed trial (3) before an exceeded budget (1).

    A failed run of an entry at level warn warns as well.
    """
    failed = {(one.entry, one.optimizer): one.mistake for one in figures if one.status == "failed"}
    errors = [verdict for verdict in verdicts if verdict.weight == "error"]
    broken = [failed[verdict.entry, verdict.optimizer] for verdict in errors if verdict.status == "failed"]
    if any(broken):
        return ExitCode.USAGE
    if broken:
        return ExitCode.FAILED
    return ExitCode.BUDGET_EXCEEDED if errors else ExitCode.OK


def summary(report: Report) -> str:
    """Return one sentence: how many checks failed, warned and passed."""
    number = counts(report.verdicts)
    checks = len(report.verdicts)
    words = {"error": "failed", "warning": "warned", "note": "new"}
    parts = [f"{number[weight]} {word}" for weight, word in words.items() if number[weight]]  # type: ignore[index]
    parts.append(f"{number['ok']} passed")
    return f"{checks} {'check' if checks == 1 else 'checks'}: {', '.join(parts)}"


def load_report(path: Path) -> Report:
    """Read a saved report.

    Raises:
        UsageError: the file is missing, is no JSON, or is no report of a schema this version knows.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON ({error.msg}); is the file cut off?") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}; give a file saved by `memprof gate --export-json`") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UsageError(
            f"{path} has schema {schema!r}, not {SCHEMA!r}; give a file saved by `memprof gate --export-json`"
        )
    try:
        return Report.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path} is no valid report: {where}: {first['msg']}; run the gate again") from None
